/// Rows [E] of tokens, one for each of them; or so many as tokens are at work at once, which the next ones write over:
/// token t has row t mod `rows`.
struct TokenRows {
  private var start: UnsafeMutablePointer<Float>  // [rows,E]
  private let rows: Int
  private let experts: Int

  init(_ arena: inout Arena, rows: Int, experts: Int) {
    start = arena.take(Float.self, rows, experts)
    self.rows = max(rows, 1)
    self.experts = experts
  }

  /// [E] of token t
  func of(_ t: Int) -> UnsafeMutablePointer<Float> { start + t % rows * experts }

  /// Where all tokens have rows: those from token `first` on, which becomes number 0.
  func part(from first: Int) -> TokenRows {
    var own = self
    own.start += first * experts
    return own
  }
}
