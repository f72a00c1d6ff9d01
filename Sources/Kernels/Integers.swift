import CShims

// Tokens as integers of 8 bits, which weights of few bits are multiplied by (codes/tokens.h in CShims).

/// `gather` as integers: for each 32 features of a row 64 bytes, with their step and their sums.
@inline(never) func gatherIntegers(
  _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?,
  _ out: UnsafeMutableRawPointer
) {
  var r = 0
  while r < m {
    let row = Row(r, of: m, tokens, x, xRow, weights)
    var c = 0
    while c < columns {
      moei_put_token(row.part(c, columns), row.part(c &+ 16, columns), out + (c / 32 &* m &+ r) &* 64)
      c &+= 32
    }
    r &+= 1
  }
}
