/// The experts that the tokens of one call used: recorded by one forward, replayed by others, saved and loaded.
/// One block of memory, which grows to the largest call.
public struct RoutingRecord {
  fileprivate let context: ContextPointer
  public private(set) var experts = 0  // E; 0 while nothing is recorded
  public private(set) var tokens = 0  // T
  public private(set) var choices = 0  // C
  private var memory: UnsafeMutablePointer<Int32>?
  private var capacity = 0  // elements of `memory`

  fileprivate init(_ context: ContextPointer) { self.context = context }

  /// [T,C] as in Routing, which tells none and dropped apart: replayed weights share a divisor with what was dropped.
  /// nil while nothing is recorded.
  public var indices: UnsafePointer<Int32>? { memory.map { UnsafePointer($0) } }
  var count: Int { tokens * choices }

  /// Copies the first `choices` of each `stride` indices. When memory is short, the record stays as it was.
  public mutating func store(
    _ indices: UnsafePointer<Int32>, stride: Int, tokens: Int, choices: Int, experts: Int
  ) throws(Fault) {
    let memory = try room(tokens * choices)
    for t in 0..<tokens { (memory + t * choices).update(from: indices + t * stride, count: choices) }
    (self.tokens, self.choices, self.experts) = (tokens, choices, experts)
  }

  /// Room for `count` indices; what was there may be lost, and the sizes are the caller's to set.
  fileprivate mutating func room(_ count: Int) throws(Fault) -> UnsafeMutablePointer<Int32> {
    if let memory, count <= capacity { return memory }
    let allocator = context.pointee.allocator
    let larger = try allocator.allocate(Int32.self, count: count)
    allocator.deallocate(memory)
    memory = larger
    capacity = count
    return larger
  }

  fileprivate func free() { context.pointee.allocator.deallocate(memory) }
}

// MARK: the saved form

// Little-endian: "moeroute"; version, experts, tokens, choices as uint32; the checksum as uint64; then [T,C] int32.

extension RoutingRecord {
  private enum Place {
    static var version: Int { 8 }
    static var experts: Int { 12 }
    static var tokens: Int { 16 }
    static var choices: Int { 20 }
    static var checksum: Int { 24 }
    static var indices: Int { 32 }
  }

  private static var magic: UInt64 { 0x6574_756F_7265_6F6D }  // "moeroute", the first letter lowest
  private static var version: UInt32 { 1 }

  public var savedBytes: Int { Place.indices + 4 * count }

  /// Writes `savedBytes` bytes.
  public func save(to bytes: UnsafeMutableRawPointer) {
    bytes.storeBytes(of: Self.magic.littleEndian, as: UInt64.self)
    put(Self.version, at: Place.version, of: bytes)
    put(UInt32(truncatingIfNeeded: experts), at: Place.experts, of: bytes)
    put(UInt32(truncatingIfNeeded: tokens), at: Place.tokens, of: bytes)
    put(UInt32(truncatingIfNeeded: choices), at: Place.choices, of: bytes)
    if let memory {
      for i in 0..<count { put(UInt32(bitPattern: memory[i]), at: Place.indices + 4 * i, of: bytes) }
    }
    bytes.storeBytes(
      of: Self.checksum(bytes, savedBytes).littleEndian, toByteOffset: Place.checksum, as: UInt64.self)
  }

  /// Takes over what `save` wrote. Anyone may have written these bytes: all of them are checked before the record
  /// changes.
  public mutating func load(from bytes: UnsafeRawPointer, size: Int) throws(Fault) {
    guard size >= Place.indices else { throw .cutOff(size, needed: Place.indices) }
    guard UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self)) == Self.magic else {
      throw .invalid("memory: no saved routing begins here")
    }
    let version = Self.get(bytes, Place.version)
    if version != Self.version {
      throw .invalid("memory: a routing of version \(Int(version)); this library reads \(Int(Self.version))")
    }
    let experts = Int(Self.get(bytes, Place.experts))
    let tokens = Int(Self.get(bytes, Place.tokens))
    let choices = Int(Self.get(bytes, Place.choices))
    // Below 2^32 each, so the product fits in 64 bits, unsigned.
    let largest = UInt64(Int32.max)
    let count = UInt64(tokens) * UInt64(choices)
    guard experts <= largest && tokens <= largest && choices <= largest && count <= largest else {
      throw .invalid("memory: a routing of \(tokens) tokens, \(choices) choices and \(experts) experts cannot be")
    }
    let needed = Place.indices + 4 * Int(count)
    guard size >= needed else { throw .cutOff(size, needed: needed) }
    let sum = UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: Place.checksum, as: UInt64.self))
    if sum != Self.checksum(bytes, needed) { throw .invalid("memory: wrong checksum, so bytes have changed") }
    for i in 0..<Int(count) {
      let index = Self.index(bytes, i)
      guard Int(index) >= -1 - experts && Int(index) < experts else {
        throw .invalid("memory: expert \(Int(index)) of token \(i / choices) is not one of \(experts)")
      }
    }
    let memory = try room(Int(count))
    for i in 0..<Int(count) { memory[i] = Self.index(bytes, i) }
    (self.experts, self.tokens, self.choices) = (experts, tokens, choices)
  }

  private func put(_ word: UInt32, at offset: Int, of bytes: UnsafeMutableRawPointer) {
    bytes.storeBytes(of: word.littleEndian, toByteOffset: offset, as: UInt32.self)
  }

  private static func get(_ bytes: UnsafeRawPointer, _ offset: Int) -> UInt32 {
    UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }

  private static func index(_ bytes: UnsafeRawPointer, _ i: Int) -> Int32 {
    Int32(bitPattern: get(bytes, Place.indices + 4 * i))
  }

  /// FNV-1a, 64 bits [Fowler, Noll and Vo], over everything but itself: it finds accidents, not forgers.
  private static func checksum(_ bytes: UnsafeRawPointer, _ size: Int) -> UInt64 {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325
    for i in 0..<size where i < Place.checksum || i >= Place.indices {
      hash = (hash ^ UInt64(bytes.load(fromByteOffset: i, as: UInt8.self))) &* 0x100_0000_01B3
    }
    return hash
  }
}

extension Fault {
  fileprivate static func cutOff(_ size: Int, needed: Int) -> Fault {
    .invalid("size = \(size), but the routing in memory needs \(needed) bytes")
  }
}

// MARK: life

public typealias RoutingRecordPointer = UnsafeMutablePointer<RoutingRecord>

extension UnsafeMutablePointer where Pointee == RoutingRecord {
  public static func create(in context: ContextPointer) throws(Fault) -> RoutingRecordPointer {
    let record = try context.pointee.allocator.place(RoutingRecord(context))
    context.retain()
    return record
  }

  public func free() {
    let context = pointee.context
    pointee.free()
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
