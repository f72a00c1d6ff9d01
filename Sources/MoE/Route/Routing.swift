/// What the router decided for T tokens: made once in forward, replayed ever after.
struct Routing {
  let tokens: Int  // T
  let indices: UnsafeMutablePointer<Int32>  // [T,K] chosen experts, best first
  let weights: UnsafeMutablePointer<Float>  // [T,K]
  let chosenLogits: UnsafeMutablePointer<Float>  // [T,K]
  let probabilities: UnsafeMutablePointer<Float>  // [T,E] softmax over all logits
  let logSumExp: UnsafeMutablePointer<Float>  // [T]

  init(_ arena: inout Arena, _ c: Configuration, tokens: Int) {
    self.tokens = tokens
    indices = arena.take(Int32.self, tokens, c.topK)
    weights = arena.take(Float.self, tokens, c.topK)
    chosenLogits = arena.take(Float.self, tokens, c.topK)
    probabilities = arena.take(Float.self, tokens, c.experts)
    logSumExp = arena.take(Float.self, tokens)
  }
}

/// Tokens are routed, combined and so on in blocks of this many rows: large enough for the matrix products, small enough
/// that a call can be cancelled and shared out between threads. Fixed, since OpenBLAS's bits may depend on it.
let rowsPerBlock = 256

func blocks(of rows: Int) -> Int { (rows + rowsPerBlock - 1) / rowsPerBlock }

/// The rows of one block.
func rows(ofBlock block: Int, in rows: Int) -> Range<Int> {
  block * rowsPerBlock..<min((block + 1) * rowsPerBlock, rows)
}
