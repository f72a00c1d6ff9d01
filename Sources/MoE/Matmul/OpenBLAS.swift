import CShims
import COpenBLAS

/// OpenBLAS behind the seam. Sizes fit its 32-bit integers: the boundary has seen to that.
enum OpenBLAS {
  typealias Source = UnsafePointer<Float>
  typealias Target = UnsafeMutablePointer<Float>

  static func addABt(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    gemm(CblasNoTrans, CblasTrans, m, n, k, a, lda, b, ldb, c, ldc)
  }

  static func addAB(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    gemm(CblasNoTrans, CblasNoTrans, m, n, k, a, lda, b, ldb, c, ldc)
  }

  static func addAtB(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    gemm(CblasTrans, CblasNoTrans, m, n, k, a, lda, b, ldb, c, ldc)
  }

  private static func gemm(
    _ transposeA: CBLAS_TRANSPOSE, _ transposeB: CBLAS_TRANSPOSE, _ m: Int, _ n: Int, _ k: Int, _ a: Source,
    _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    if m == 0 || n == 0 || k == 0 { return }
    cblas_sgemm(
      CblasRowMajor, transposeA, transposeB, Int32(m), Int32(n), Int32(k), 1, a, Int32(lda), b, Int32(ldb), 1, c,
      Int32(ldc))
  }

  // MARK: the host's thread setting

  // OpenBLAS has one thread setting per process, so the guard over it has to be one per process too: the only
  // mutable globals of the library. The products run in this library's own threads, each of which must find the
  // setting 1, or threads would multiply.
  private static var lock: Lock { Lock(at: moei_openblas_lock()) }
  nonisolated(unsafe) private static var users = 0
  nonisolated(unsafe) private static var hostThreads: Int32 = 1

  /// From here to `leave`, OpenBLAS uses one thread per calling thread.
  static func enter() {
    lock.acquire()
    if users == 0 {
      hostThreads = openblas_get_num_threads()
      if hostThreads != 1 { openblas_set_num_threads(1) }
    }
    users += 1
    lock.release()
  }

  /// The last one out puts the host's setting back.
  static func leave() {
    lock.acquire()
    users -= 1
    if users == 0 && hostThreads != 1 { openblas_set_num_threads(hostThreads) }
    lock.release()
  }
}
