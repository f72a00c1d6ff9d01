// The plain matrix product: the definition that every faster one has to equal bit for bit. It has more than ten
// parameters: those of BLAS's gemm, but for strides in both directions in place of its words for transposed matrices.

/// C[i,j] = fma(A[i,k-1], B[k-1,j], ... fma(A[i,0], B[0,j], C[i,j])): one chain per output, p ascending.
@inline(never) func matmul(
  _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ aRow: Int, _ aColumn: Int, _ b: Source, _ bRow: Int, _ bColumn: Int,
  _ c: Target, _ cRow: Int
) {
  var i = 0
  while i < m {
    var j = 0
    while j < n {
      var total = c[i &* cRow &+ j]
      var p = 0
      while p < k {
        // Without an FMA instruction this is libm's fmaf: slow, and the same bits.
        total = total.addingProduct(a[i &* aRow &+ p &* aColumn], b[p &* bRow &+ j &* bColumn])
        p &+= 1
      }
      c[i &* cRow &+ j] = total
      j &+= 1
    }
    i &+= 1
  }
}
