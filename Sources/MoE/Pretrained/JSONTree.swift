/// A JSON text of which any value may be asked for, in any order: config.json. Its values are listed in the order of the text, what
/// an object or array holds right behind it.
public struct JSONTree {
  /// With a raw type, since that of others would bring a hash with a seed from the system.
  public enum Kind: UInt8 {
    case object, array, text, number, yes, no, null
  }

  struct Node {
    let kind: Kind
    let key: JSONText?  // of an object's member
    let key0: Int  // where the member begins: the key's quote
    let begin: Int  // the value's bytes
    var end = 0
    var behind = 0  // the number of the value that follows all that this one holds
    var count = 0  // members or elements
  }

  let text: UnsafePointer<UInt8>
  let count: Int
  let nodes: UnsafeMutablePointer<Node>

  static var largest: Int { 1 << 20 }
  private static var mostMembers: Int { 4096 }
  private static var deepest: Int { 16 }

  /// Of a text that outlives it. `path` is for messages.
  init(
    _ text: UnsafePointer<UInt8>, count: Int, path: UnsafePointer<CChar>, _ allocator: Allocator
  ) throws(Fault) {
    (self.text, self.count) = (text, count)
    var total = 0
    var reader = JSONReader(text, count: count, path: path)
    try Self.read(&reader, nil, &total, key: nil, key0: 0, depth: 0)
    try reader.end()
    nodes = try allocator.allocate(Node.self, count: total)
    (total, reader) = (0, JSONReader(text, count: count, path: path))
    do throws(Fault) {
      try Self.read(&reader, nodes, &total, key: nil, key0: 0, depth: 0)
    } catch {
      allocator.deallocate(nodes)
      throw error
    }
  }

  func free(_ allocator: Allocator) { allocator.deallocate(nodes) }

  public var root: JSONValue { JSONValue(tree: self, index: 0) }

  /// Without `nodes` it only counts.
  private static func read(
    _ reader: inout JSONReader, _ nodes: UnsafeMutablePointer<Node>?, _ total: inout Int, key: JSONText?, key0: Int,
    depth: Int
  ) throws(Fault) {
    if depth == deepest { throw reader.fault("objects and arrays are nested too deeply") }
    reader.skipSpace()
    let (own, kind) = (total, kind(reader.next))
    (nodes.map { $0 + own })?.initialize(to: Node(kind: kind, key: key, key0: key0, begin: reader.at))
    total += 1
    var held = 0
    switch kind {
    case .object:
      try reader.objectMembers { (reader, key, key0) throws(Fault) in
        held += 1
        if held > mostMembers { throw reader.fault("an object has too many members") }
        if let nodes { try requireNew(key, in: nodes, own, below: total, reader) }
        try read(&reader, nodes, &total, key: key, key0: key0, depth: depth + 1)
      }
    case .array:
      try reader.elements { (reader) throws(Fault) in
        held += 1
        try read(&reader, nodes, &total, key: nil, key0: 0, depth: depth + 1)
      }
    default: try reader.skip()
    }
    guard let nodes else { return }
    (nodes[own].end, nodes[own].behind, nodes[own].count) = (reader.at, total, held)
  }

  private static func kind(_ byte: UInt8) -> Kind {
    switch byte {
    case UInt8(ascii: "{"): .object
    case UInt8(ascii: "["): .array
    case UInt8(ascii: "\""): .text
    case UInt8(ascii: "t"): .yes
    case UInt8(ascii: "f"): .no
    case UInt8(ascii: "n"): .null
    default: .number
    }
  }

  private static func requireNew(
    _ key: JSONText, in nodes: UnsafeMutablePointer<Node>, _ own: Int, below total: Int, _ reader: JSONReader
  ) throws(Fault) {
    var other = own + 1
    while other < total {
      if let name = nodes[other].key, name == key { throw reader.fault("an object has two members of one name") }
      other = nodes[other].behind
    }
  }
}

/// One value of a tree.
public struct JSONValue {
  let tree: JSONTree
  let index: Int

  private var node: JSONTree.Node { tree.nodes[index] }

  public var kind: JSONTree.Kind { node.kind }
  /// Members or elements.
  public var count: Int { node.count }
  public var key: JSONText? { node.key }
  /// Where its bytes are in the text, and where the member's that it is the value of begin.
  var bytes: Range<Int> { node.begin..<node.end }
  var memberBegin: Int { node.key0 }
  public var isNull: Bool { kind == .null }

  /// Its bytes; of a string without its quotes.
  public var text: JSONText {
    let quote = kind == .text ? 1 : 0
    return JSONText(start: tree.text + node.begin + quote, count: node.end - node.begin - 2 * quote)
  }

  /// Its bytes, quotes among them: for messages.
  public var written: JSONText { JSONText(start: tree.text + node.begin, count: node.end - node.begin) }

  /// nil where it is no number.
  public var number: Double? { kind == .number ? decimal(text) : nil }

  /// Each member's or element's value.
  public func forEach<E: Error>(_ body: (JSONValue) throws(E) -> Void) throws(E) {
    var child = index + 1
    while child < node.behind {
      try body(JSONValue(tree: tree, index: child))
      child = tree.nodes[child].behind
    }
  }

  /// Of an object.
  public func member(_ name: UnsafePointer<CChar>) -> JSONValue? {
    if kind != .object { return nil }
    let name = JSONText(name)
    var child = index + 1
    while child < node.behind {
      if let key = tree.nodes[child].key, key == name { return JSONValue(tree: tree, index: child) }
      child = tree.nodes[child].behind
    }
    return nil
  }

  public func member(_ name: StaticString) -> JSONValue? { member(cText(name)) }
}

extension JSONText {
  public init(_ text: UnsafePointer<CChar>) {
    self.init(start: UnsafeRawPointer(text).assumingMemoryBound(to: UInt8.self), count: textLength(text))
  }

  /// Whether it is one of the words between which '|' stands.
  public func isAmong(_ words: UnsafePointer<CChar>) -> Bool {
    var found = false
    Self.forEachWord(words) { if $0 == self { found = true } }
    return found
  }

  public static func forEachWord(_ words: UnsafePointer<CChar>, _ body: (JSONText) -> Void) {
    let all = JSONText(words)
    var first = 0
    for i in 0...all.count where i == all.count || all.start[i] == UInt8(ascii: "|") {
      body(JSONText(start: all.start + first, count: i - first))
      first = i + 1
    }
  }

  public static func equal(_ a: JSONText, _ b: JSONText) -> Bool { a == b }
}
