import CShims

/// What attention is asked for: moe_attention_config, with every default filled in, and as flat as that, so that nobody
/// has to learn a second order.
public struct AttentionCall {
  public var sequences: Int  // B
  public var queries: Int  // S of each sequence
  public var keys: Int  // U of each sequence
  public var heads: Int
  public var keyHeads: Int  // a divisor of heads
  public var headSize: Int  // D, of queries and keys
  public var valueSize: Int  // Dv, of values and outputs
  /// Floats from one token's heads to the next token's.
  public var queryStride: Int
  public var keyStride: Int
  public var valueStride: Int
  public var outputStride: Int
  /// Floats from one key head of a token to its next one.
  var keyHeadStride: Int
  var valueHeadStride: Int
  public var scale: Float
  /// What queries, keys, values, the softmax's weights and their gradients are rounded to where they are multiplied.
  var precision = PrecisionKind.f32
  /// Whether keys and values have been rounded, and are stored as what is multiplied; strides are of such numbers then. A forward alone may be over such.
  var areRounded = false
  public var masks: AttentionMasks
  /// One more logit of each head's softmax, without a value.
  public var sinks: UnsafePointer<Float>?  // [n_heads]
  /// What the first head, sequence and query are called where a score that is not finite is told: they may be some of a layer's.
  var firstHead = 0
  var calledFrom = (sequence: 0, query: 0)
  /// Of the softmax's weights.
  public var dropout: Float
  public var seed: UInt64
  public var step: UInt64  // below 2^56
  /// What the first sequence is called where weights are dropped: they may be some of several ranks'.
  var firstSequence = 0

  /// Rows one token after the other, nothing masked, nothing dropped, scale 1 / sqrt(D).
  public init(
    sequences: Int, queries: Int, keys: Int, heads: Int, keyHeads: Int, headSize: Int, valueSize: Int? = nil
  ) {
    (self.sequences, self.queries, self.keys) = (sequences, queries, keys)
    let valueSize = valueSize ?? headSize
    (self.heads, self.keyHeads, self.headSize, self.valueSize) = (heads, keyHeads, headSize, valueSize)
    (queryStride, outputStride) = (heads * headSize, heads * valueSize)
    (keyStride, valueStride) = (keyHeads * headSize, keyHeads * valueSize)
    (keyHeadStride, valueHeadStride) = (headSize, valueSize)
    scale = Float(1 / Double(headSize).squareRoot())
    masks = AttentionMasks(queries: queries, keys: keys)
    (dropout, seed, step) = (0, 0, 0)
  }

  /// Multiplies in float32 or bfloat16.
  public mutating func compute(in type: ElementType) { precision = type.format.precision }

  /// Query heads that share a key head.
  var group: Int { heads / keyHeads }
  /// Floats of one head's row in tiles.
  var width: Int { padded(headSize) }
  var valueWidth: Int { padded(valueSize) }

  /// What so many products of all queries with all keys they may see by their place have to do, over D and over Dv.
  func work(products: (head: Int, value: Int)) -> Work {
    Work(
      flops: 2 &* (products.head * headSize + products.value * valueSize) &* sequences &* heads &* masks.pairs,
      bytes: 4 &* sequences &* (headSize + valueSize) &* (queries * heads + keys * keyHeads))
  }

  // First element of a token's head.
  func query(_ sequence: Int, _ token: Int, _ head: Int) -> Int {
    (sequence * queries + token) * queryStride + head * headSize
  }
  func output(_ sequence: Int, _ token: Int, _ head: Int) -> Int {
    (sequence * queries + token) * outputStride + head * valueSize
  }
  func key(_ sequence: Int, _ token: Int, _ keyHead: Int) -> Int {
    (sequence * keys + token) * keyStride + keyHead * keyHeadStride
  }
  func value(_ sequence: Int, _ token: Int, _ keyHead: Int) -> Int {
    (sequence * keys + token) * valueStride + keyHead * valueHeadStride
  }
  /// Of [B,n_heads,S].
  func row(_ sequence: Int, _ head: Int, _ token: Int) -> Int { (sequence * heads + head) * queries + token }
}

/// Which keys a query sees.
public struct AttentionMasks {
  public typealias Bytes = UnsafePointer<UInt8>

  public let queries: Int
  public let keys: Int
  /// Query s sees keys 0 ... s + U - S.
  public var causal = false
  public var mask: Bytes?  // [S,U], 1 = seen
  public var added: UnsafePointer<Float>?  // [S,U], added to the score; minus infinity = never
  public var valid: Bytes?  // [B,U], 1 = a real key
  /// A query sees so many keys up to its own place alone; 0: all. With `causal`, as `chunk`.
  public var window = 0
  /// A query sees the keys alone whose place divided by this is that of its own; 0: all.
  public var chunk = 0

  public init(queries: Int, keys: Int) { (self.queries, self.keys) = (queries, keys) }

  /// So many keys, from the first on, are not hidden from the query by its place.
  func limit(_ query: Int) -> Int { causal ? min(keys, max(0, query + 1 + keys - queries)) : keys }

  /// Whether any query may be hidden from a key.
  var hideAny: Bool { causal && queries > 1 || hideEarly || mask != nil || added != nil || valid != nil }

  /// Queries times the keys that each of them may see by its place, padding not considered.
  var pairs: Int {
    if !causal { return queries &* keys }
    let queries = min(self.queries, keys)  // before the first key there is nothing to see
    var reach = keys
    if window > 0 { reach = min(reach, window) }
    if chunk > 0 { reach = min(reach, (chunk + 1) / 2) }  // about half a chunk on average
    // The first queries see fewer.
    let short = max(0, min(queries, reach - (keys - queries)))
    return (queries - short) &* reach &+ short &* (reach + reach - short + 1) / 2
  }

  /// Whether a query sees a key, from the first one on that its window and chunk leave it.
  func sees(_ sequence: Int, _ query: Int, _ key: Int, from first: Int) -> Bool {
    let place = query * keys + key
    return key >= first && key < limit(query) && mask.map { $0[place] != 0 } ?? true
      && added.map { $0[place] != -.infinity } ?? true
      && valid.map { $0[sequence * keys + key] != 0 } ?? true
  }

  /// The keys before it are padding. Blocks of keys begin with it, so that padding in front changes no bit.
  func firstKey(_ sequence: Int) -> Int {
    guard let valid else { return 0 }
    var first = 0
    while first < keys && valid[sequence * keys + first] == 0 { first += 1 }
    return first
  }

  /// Whether padding hides all of these keys.
  func hideAll(_ sequence: Int, _ keys: Range<Int>) -> Bool {
    guard let valid else { return false }
    return !keys.contains { valid[sequence * self.keys + $0] != 0 }
  }

  /// Whether every query sees every key, its score being what it is. `first`: of the last query, as in `sees`.
  func doNothing(_ sequence: Int, _ queries: Range<Int>, _ keys: Range<Int>, from first: Int) -> Bool {
    if mask != nil || added != nil || limit(queries.lowerBound) < keys.upperBound || first > keys.lowerBound {
      return false
    }
    guard let valid else { return true }
    return keys.allSatisfy { valid[sequence * self.keys + $0] != 0 }
  }

  /// What is added to the scores of a query and some keys: of key j of the range, bias[j * step], where 0 stands before. `first`: as
  /// in `sees`.
  func fill(
    _ bias: UnsafeMutablePointer<Float>, step: Int, _ sequence: Int, _ query: Int, _ keys: Range<Int>, from first: Int
  ) {
    let seen = max(0, min(keys.count, limit(query) - keys.lowerBound))
    let place = query * self.keys + keys.lowerBound
    if let added {
      for j in 0..<seen { bias[j * step] = added[place + j] }
    }
    if let mask {
      for j in 0..<seen { bias[j * step] = Self.hidden(bias[j * step], mask[place + j]) }
    }
    if let valid {
      let valid = valid + (sequence * self.keys + keys.lowerBound)
      for j in 0..<seen { bias[j * step] = Self.hidden(bias[j * step], valid[j]) }
    }
    for j in seen..<keys.count { bias[j * step] = -.infinity }
    for j in 0..<max(0, min(seen, first - keys.lowerBound)) { bias[j * step] = -.infinity }
  }

  /// bias, or minus infinity where the mask is 0: by its bits, since nothing foretells a branch on a mask.
  @inline(__always) private static func hidden(_ bias: Float, _ mask: UInt8) -> Float {
    let keep = 0 &- UInt32(truncatingIfNeeded: (UInt(mask) &+ 255) >> 8)  // all ones, or 0
    return Float(bitPattern: bias.bitPattern & keep | (-Float.infinity).bitPattern & ~keep)
  }
}

/// Dropout of the softmax's weights.
struct AttentionDropout {
  private let dropout: InvertedDropout
  private let countersPerRow: Int  // four weights each
  private let firstRow: Int

  /// nil where nothing is dropped.
  init?(_ call: AttentionCall, _ kernels: UnsafePointer<moei_kernels>) {
    guard call.dropout > 0 else { return nil }
    let draws = Draws(kernels: kernels, seed: call.seed, step: call.step, training: true)
    dropout = InvertedDropout(rate: call.dropout, draws.of(.attentionDropout))
    countersPerRow = (call.keys + 3) / 4
    firstRow = call.row(call.firstSequence, 0, 0)
  }

  /// What the weights of `count` keys from `first` (a multiple of 4) on are multiplied by; `row`: of [B,n_heads,S].
  func fill(_ kept: UnsafeMutablePointer<Float>, row: Int, first: Int, count: Int) {
    kept.update(repeating: 1, count: count)
    dropout.apply(kept, count: count, first: UInt64(firstRow + row) &* UInt64(countersPerRow) &+ UInt64(first / 4))
  }
}
