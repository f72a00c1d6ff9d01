import CShims

/// The seam through which every matrix product of the layer goes. All three accumulate: C starts as zero, as a bias or
/// as the gradient so far. Row-major; `ld` is the distance between rows, in elements.
struct Matmul {
  enum Backend: Int32 {
    // Numbers as in moe_matmul, AUTO being resolved when a context is made.
    case openBLAS = 1
    case reference = 2
  }

  let backend: Backend
  let kernels: UnsafePointer<moei_kernels>

  typealias Source = UnsafePointer<Float>
  typealias Target = UnsafeMutablePointer<Float>

  /// Forward: C[m,n] += A[m,k] B[n,k]^T.
  func addABt(_ m: Int, _ n: Int, _ k: Int, _ a: Source, lda: Int, _ b: Source, ldb: Int, _ c: Target, ldc: Int) {
    switch backend {
    case .openBLAS: OpenBLAS.addABt(m, n, k, a, lda, b, ldb, c, ldc)
    case .reference: reference(m, n, k, a, lda, 1, b, 1, ldb, c, ldc)
    }
  }

  /// Gradient of the input: C[m,n] += A[m,k] B[k,n].
  func addAB(_ m: Int, _ n: Int, _ k: Int, _ a: Source, lda: Int, _ b: Source, ldb: Int, _ c: Target, ldc: Int) {
    switch backend {
    case .openBLAS: OpenBLAS.addAB(m, n, k, a, lda, b, ldb, c, ldc)
    case .reference: reference(m, n, k, a, lda, 1, b, ldb, 1, c, ldc)
    }
  }

  /// Gradient of the weights: C[m,n] += A[k,m]^T B[k,n]; k counts tokens, in ascending order.
  func addAtB(_ m: Int, _ n: Int, _ k: Int, _ a: Source, lda: Int, _ b: Source, ldb: Int, _ c: Target, ldc: Int) {
    switch backend {
    case .openBLAS: OpenBLAS.addAtB(m, n, k, a, lda, b, ldb, c, ldc)
    case .reference: reference(m, n, k, a, 1, lda, b, ldb, 1, c, ldc)
    }
  }

  private func reference(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ aRow: Int, _ aColumn: Int, _ b: Source, _ bRow: Int, _ bColumn: Int,
    _ c: Target, _ ldc: Int
  ) {
    kernels.pointee.matmul(
      Int64(m), Int64(n), Int64(k), a, Int64(aRow), Int64(aColumn), b, Int64(bRow), Int64(bColumn), c, Int64(ldc))
  }
}
