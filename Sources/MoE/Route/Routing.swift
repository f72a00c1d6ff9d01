/// What the router decided for T tokens: made once in forward, replayed ever after. A token has a slot for each of its
/// choices, then one for each shared expert. Beside the decisions stand the measures they were made from, which are kept
/// for backward, or made for some tokens at a time: in forward for a wave, and again in backward for a chunk.
/// Its many fields are an array each, with a row for every token: a tape is laid out by them, and a chunk is the same
/// rows of all.
struct Routing {
  private(set) var tokens: Int  // T
  /// Whether a token may name an expert twice.
  let mayRepeat: Bool
  let choices: Int  // K, or E where experts choose
  let slots: Int  // and the shared experts
  private(set) var indices: UnsafeMutablePointer<Int32>  // [T,slots] experts, best first; see below
  private(set) var weights: UnsafeMutablePointer<Float>  // [T,slots], 0 where nothing is computed
  private(set) var sharedLogits: UnsafeMutablePointer<Float>  // [T, gates of the shared experts]
  /// In a residual layer what all choices of a token are multiplied by beside their weights.
  private(set) var coefficients: UnsafeMutablePointer<Float>?  // [T]
  /// What was chosen before some choices found another expert; else the same as `indices`.
  private(set) var wanted: UnsafeMutablePointer<Int32>  // [T,slots]
  private var valid: TokenMask  // without marks all tokens are real
  /// Which tokens count in losses and statistics; without marks those that are valid.
  private var counted: TokenMask
  let norm: UnsafeMutablePointer<Float>  // [3,H] mean, unbiased variance and 1 / deviation of a gate's normalised input
  // The measures:
  /// What a choice's weight is made from, see ChosenValues; nil where nobody looks at it again.
  private(set) var chosen: UnsafeMutablePointer<Float>?  // [T,choices]
  /// Softmax over all logits, of all tokens or of a wave; empty without a gate.
  private(set) var probabilities: TokenRows
  private(set) var logSumExp: UnsafeMutablePointer<Float>?  // [T], for backward

  /// The decisions.
  init(_ arena: inout Arena, _ c: Configuration, _ call: Call) {
    tokens = call.tokens
    mayRepeat = call.givenIndices != nil || c.router.mayRepeat
    choices = c.choices
    slots = c.slots
    indices = arena.take(Int32.self, tokens, c.slots)
    weights = arena.take(Float.self, tokens, c.slots)
    probabilities = TokenRows(&arena, rows: 0, experts: c.experts)
    sharedLogits = arena.take(Float.self, tokens, c.sharedGates)
    coefficients = c.sharedGate == .residual ? arena.take(Float.self, tokens) : nil
    wanted = c.movesChoices(call) ? arena.take(Int32.self, tokens, c.slots) : indices
    valid = TokenMask(&arena, call.validMask == nil ? nil : tokens)
    counted = TokenMask(&arena, call.lossMask == nil ? nil : tokens)
    norm = arena.take(Float.self, c.exploration.batchNorm == nil ? 0 : 3, c.hidden)
  }

  /// Memory for the measures of all tokens, as backward has them.
  mutating func takeMeasures(_ arena: inout Arena, _ c: Configuration) {
    chosen = arena.take(Float.self, tokens, c.choices)
    probabilities = TokenRows(&arena, rows: c.hasGate ? tokens : 0, experts: c.experts)
    logSumExp = c.hasGate ? arena.take(Float.self, tokens) : nil
  }

  /// Memory for those of a wave of tokens, which forward makes and lets go of.
  mutating func takeMeasures(_ arena: inout Arena, _ c: Configuration, wave: Int, keepsChosen: Bool) {
    chosen = keepsChosen ? arena.take(Float.self, tokens, c.choices) : nil
    probabilities = TokenRows(&arena, rows: c.hasGate ? min(tokens, wave) : 0, experts: c.experts)
  }

  /// The routing of one chunk, whose first token is number 0.
  func part(_ chunk: Range<Int>, _ c: Configuration) -> Routing {
    var own = self
    let first = chunk.lowerBound
    own.tokens = chunk.count
    own.indices += first * slots
    own.weights += first * slots
    own.wanted += first * slots
    own.sharedLogits += first * c.sharedGates
    own.coefficients = coefficients.map { $0 + first }
    own.valid.marks = valid.marks.map { $0 + first }
    own.counted.marks = counted.marks.map { $0 + first }
    own.chosen = chosen.map { $0 + first * choices }
    own.probabilities = probabilities.part(from: c.hasGate ? first : 0)
    own.logSumExp = logSumExp.map { $0 + first }
    return own
  }

  /// The caller's masks are copied: they need not live until backward.
  func start(_ call: Call) {
    if let marks = valid.marks { marks.update(from: call.validMask!, count: tokens) }
    if let marks = counted.marks { marks.update(from: call.lossMask!, count: tokens) }
    validCount.pointee = call.valid(in: 0..<tokens)
    countedCount.pointee = call.ranks?.pointee.all.counted ?? call.counted(in: 0..<tokens)
  }

  var validCount: UnsafeMutablePointer<Int> { valid.count }
  var countedCount: UnsafeMutablePointer<Int> { counted.count }
  func isValid(_ t: Int) -> Bool { valid.marks.map { $0[t] != 0 } ?? true }
  func counts(_ t: Int) -> Bool { counted.marks.map { $0[t] != 0 } ?? isValid(t) }
  /// Whether the gate's word on a token is of interest.
  func isRouted(_ t: Int) -> Bool { isValid(t) || counts(t) }
}

/// Some of a call's tokens, and how many of the whole call's they are; of those that count, over all ranks.
struct TokenMask {
  fileprivate(set) var marks: UnsafeMutablePointer<UInt8>?  // [T]
  let count: UnsafeMutablePointer<Int>  // 1

  fileprivate init(_ arena: inout Arena, _ marked: Int?) {
    marks = marked.map { arena.take(UInt8.self, $0) }
    count = arena.take(Int.self, 1)
  }
}

/// A slot holds an expert's number, none, or, below that, the number of an expert that had no room.
extension Int32 {
  static var noExpert: Int32 { -1 }
  var isExpert: Bool { self >= 0 }
  var wasDropped: Bool { self < -1 }
  var dropped: Int32 { -2 - self }
  /// The expert that was chosen, dropped or not.
  var chosen: Int32 { wasDropped ? -2 - self : self }
}

/// Tokens are routed, combined and so on in blocks of this many rows: large enough for the matrix products, small enough
/// that a call can be cancelled and shared out between threads. Fixed, since OpenBLAS's bits may depend on it.
let rowsPerBlock = 256

func blocks(of rows: Int) -> Int { (rows + rowsPerBlock - 1) / rowsPerBlock }

/// The rows of one block.
func rows(ofBlock block: Int, in rows: Int) -> Range<Int> {
  block * rowsPerBlock..<min((block + 1) * rowsPerBlock, rows)
}
