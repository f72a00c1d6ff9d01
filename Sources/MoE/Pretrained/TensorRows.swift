/// How the rows of a tensor lie in its parameter.
public struct TensorRows {
  /// Rows come in heads of so many; of each the numbers from `turnBegin` on, `turned` of them, are pairs in the file, and two halves in
  /// the parameter.
  private var head: Int
  private var turnBegin = 0
  private var turned = 0
  /// Where the first row of the tensor is in the parameter.
  private var first = 0
  /// Gates follow each head's queries in the file, all queries in the parameter: where they begin there.
  private var gates: Int?
  /// Where only a part of each head's rows is in the tensor: how many rows a head has in the parameter.
  private var headInParameter: Int?
  /// Of the model.
  let heads: Int

  let count: Int

  /// Sizes of a model's heads.
  public struct Shapes {
    public var heads: Int
    public var keyHeads: Int
    public var headSize: Int
    public var valueSize: Int
    var rotarySize: Int
    /// The rotated part is a head's last numbers; and the latent's size.
    var latentRank: Int

    /// Of a head's key what comes from its own latent, not from the part that turns.
    var ownKeySize: Int { headSize - rotarySize }

    public init(heads: Int, keyHeads: Int, headSize: Int, valueSize: Int, rotarySize: Int, latentRank: Int) {
      (self.heads, self.keyHeads, self.headSize) = (heads, keyHeads, headSize)
      (self.valueSize, self.rotarySize, self.latentRank) = (valueSize, rotarySize, latentRank)
    }
  }

  init(_ rule: FamilyRule, _ shapes: Shapes, rows: Int) {
    let (d, queries) = (shapes.headSize, shapes.heads * shapes.headSize)
    let keys = shapes.keyHeads * d
    head = d
    heads = shapes.heads
    switch rule.rows {
    case .all: (count, head) = (rows, rows)
    case .query: count = queries
    case .key: (first, count) = (queries, keys)
    case .value: (first, count, head) = (queries + keys, shapes.keyHeads * shapes.valueSize, shapes.valueSize)
    case .queryAndGate:
      count = 2 * queries
      gates = queries + keys + shapes.keyHeads * shapes.valueSize
    case .heads: count = rows
    case .latent: (count, head) = (rows, rows)
    case .latentKeys:
      (count, head) = (heads * shapes.ownKeySize, shapes.ownKeySize)
      headInParameter = shapes.ownKeySize + shapes.valueSize
    case .latentValues:
      (first, count, head) = (shapes.ownKeySize, heads * shapes.valueSize, shapes.valueSize)
      headInParameter = shapes.ownKeySize + shapes.valueSize
    }
    guard rule.isTurned else { return }
    turned = shapes.rotarySize
    if rule.rows == .heads { turnBegin = d - turned }
    if rule.rows == .latent { turnBegin = shapes.latentRank }
  }

  /// Whether a parameter of so many rows is one of these heads.
  static func fits(_ rule: FamilyRule, _ shapes: Shapes, rows: Int) -> Bool {
    let all = (shapes.heads + shapes.keyHeads) * shapes.headSize + shapes.keyHeads * shapes.valueSize
    let turns = shapes.rotarySize % 2 == 0 && shapes.rotarySize <= shapes.headSize
    switch rule.rows {
    case .all: return true
    case .query, .key, .value: return rows >= all && turns
    case .queryAndGate: return rows == all + shapes.heads * shapes.headSize && turns
    case .heads: return shapes.headSize > 0 && rows % shapes.headSize == 0 && turns
    case .latent: return rows == shapes.latentRank + shapes.rotarySize && turns
    case .latentKeys, .latentValues:
      return shapes.ownKeySize > 0 && rows == shapes.heads * (shapes.ownKeySize + shapes.valueSize)
    }
  }

  /// Whether rows follow one another in both.
  var isStraight: Bool { turned == 0 && gates == nil && headInParameter == nil }

  /// Rows of the parameter that are the tensor's, in one or two stretches.
  var stretches: (Range<Int>, Range<Int>?) {
    guard let gates else { return (first..<first + count, nil) }
    return (0..<count / 2, gates..<gates + count / 2)
  }

  /// The row of the tensor that is row p of the parameter, which is in one of these stretches; of tensors with whole heads.
  func row(at p: Int) -> Int {
    if let gates, p >= gates {
      let (h, within) = (p - gates).quotientAndRemainder(dividingBy: head)
      return (2 * h + 1) * head + within
    }
    var r = p - first
    let (h, within) = r.quotientAndRemainder(dividingBy: head)
    let turn = within - turnBegin
    if turned > 0 && turn >= 0 && turn < turned {
      r = h * head + turnBegin + turn % (turned / 2) * 2 + turn / (turned / 2)
    }
    return gates == nil ? r : r + h * head
  }

  /// Where row r of the tensor is in the parameter.
  func place(of r: Int) -> Int {
    var r = r
    if let gates {
      let (h, within) = r.quotientAndRemainder(dividingBy: 2 * head)
      if within >= head { return gates + h * head + within - head }
      r = h * head + within
    }
    if let headInParameter { return r / head * headInParameter + first + r % head }
    if turned == 0 { return first + r }
    let (h, within) = r.quotientAndRemainder(dividingBy: head)
    let pair = within - turnBegin
    if pair < 0 || pair >= turned { return first + r }
    return first + h * head + turnBegin + pair / 2 + (pair % 2) * (turned / 2)
  }
}
