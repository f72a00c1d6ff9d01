import CShims

/// OpenBLAS behind the seam, loaded when a context asks for it. Sizes fit its 32-bit integers: the boundary has seen to
/// that.
enum OpenBLAS {
  typealias Source = UnsafePointer<Float>
  typealias Target = UnsafeMutablePointer<Float>

  static func addABt(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    gemm(.asItIs, .transposed, m, n, k, a, lda, b, ldb, c, ldc)
  }

  static func addAB(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    gemm(.asItIs, .asItIs, m, n, k, a, lda, b, ldb, c, ldc)
  }

  static func addAtB(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    gemm(.transposed, .asItIs, m, n, k, a, lda, b, ldb, c, ldc)
  }

  /// Numbers as in cblas.h.
  private enum Transpose: Int32 {
    case asItIs = 111
    case transposed = 112
  }
  private static var rowMajor: Int32 { 101 }

  /// With the arguments of cblas_sgemm, in their order, which are more than ten.
  private static func gemm(
    _ transposeA: Transpose, _ transposeB: Transpose, _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int,
    _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int
  ) {
    if m == 0 || n == 0 || k == 0 { return }
    state.pointee.sgemm!(
      rowMajor, transposeA.rawValue, transposeB.rawValue, Int32(m), Int32(n), Int32(k), 1, a, Int32(lda), b, Int32(ldb),
      1, c, Int32(ldc))
  }

  // MARK: life

  // There is one OpenBLAS per process, with one thread setting, so what is known of it has to be one per process too: the
  // only mutable global of the library, under one lock.
  private static var state: UnsafeMutablePointer<moei_openblas> { moei_openblas_state() }

  private static func locked(_ body: () throws(Fault) -> Void) throws(Fault) {
    let lock = Lock(at: &state.pointee.lock)
    guard lock.acquire() else { throw leftByFork }
    defer { lock.release() }
    try body()
  }

  /// Finds and loads it, once per process. Throws where there is none, or where it cannot start.
  static func load() throws(Fault) {
    try locked { () throws(Fault) in
      if state.pointee.config != nil { return }
      let room = 256
      try withUnsafeTemporaryAllocation(of: CChar.self, capacity: room) { (reason) throws(Fault) in
        let reason = reason.baseAddress!
        let result = moei_openblas_load(state, reason, room)
        if Int(result) != MOEI_OPENBLAS_FOUND { throw fault(result, UnsafePointer(reason)) }
      }
    }
  }

  private static func fault(_ result: Int32, _ reason: UnsafePointer<CChar>) -> Fault {
    switch Int(result) {
    case MOEI_OPENBLAS_NO_MEMORY:
      Fault(
        .outOfMemory,
        "out of memory: OpenBLAS needs address space for its code and a buffer of \(bufferBytes) bytes for each thread; allow more (ulimit -v), or choose MOE_MATMUL_NATIVE"
      )
    case MOEI_OPENBLAS_WIDE:
      .badState(
        "OpenBLAS would start a thread for every processor, since the system does not let this thread run on one alone (sched_setaffinity); load OpenBLAS beforehand, or choose MOE_MATMUL_NATIVE"
      )
    case MOEI_OPENBLAS_OTHER:
      Fault(
        .io,
        "the libopenblas.so found here has 64-bit integers, or lacks functions of OpenBLAS; install another (libopenblas0 on Debian and Ubuntu, openblas elsewhere), or choose MOE_MATMUL_NATIVE"
      )
    default:
      Fault(
        .io,
        "MOE_MATMUL_OPENBLAS finds no OpenBLAS: \(reason); install it (libopenblas0 on Debian and Ubuntu, openblas elsewhere), or choose MOE_MATMUL_NATIVE"
      )
    }
  }

  private static var leftByFork: Fault {
    .badState(
      "another thread was using OpenBLAS when this process was forked, and it stays taken here; fork while no call runs, or choose MOE_MATMUL_NATIVE"
    )
  }

  private static var bufferBytes: Int { Int(moei_openblas_buffer_bytes()) }

  /// "OpenBLAS 0.3.21 ... of /usr/lib/libopenblas.so.0", once it has been loaded.
  static func describe(_ text: inout TextBuffer) {
    text.append(state.pointee.config)
    text.append(" of ")
    text.append(state.pointee.path)
  }

  // MARK: calls

  // The products run in this library's own threads, each of which must find the setting 1, or threads would multiply.

  /// From here to `leave`, OpenBLAS uses one thread per calling thread, of which there may be `lanes`. Each of them will find
  /// a buffer: where there is no memory for one, OpenBLAS would ask for ever, or end the process.
  static func enter(lanes: Int) throws(Fault) {
    try locked { () throws(Fault) in
      let blas = state
      // Its own locks may be held by threads that are not here.
      if blas.pointee.users > 0 && blas.pointee.process != moei_process_id() { throw leftByFork }
      let wanted = blas.pointee.lanes + Int32(lanes)
      if wanted > blas.pointee.reserved {
        guard moei_openblas_reserve(blas, wanted) == wanted else {
          throw Fault(
            .outOfMemory,
            "out of memory: OpenBLAS needs a buffer of \(bufferBytes) bytes for each of \(Int(wanted)) threads; allow more address space (ulimit -v), take fewer threads, or choose MOE_MATMUL_NATIVE"
          )
        }
        blas.pointee.reserved = wanted
      }
      if blas.pointee.users == 0 {
        blas.pointee.process = moei_process_id()
        blas.pointee.host_threads = blas.pointee.get_num_threads!()
        if blas.pointee.host_threads != 1 { blas.pointee.set_num_threads!(1) }
      }
      blas.pointee.users += 1
      blas.pointee.lanes = wanted
    }
  }

  /// The last one out puts the host's setting back.
  static func leave(lanes: Int) {
    do throws(Fault) {
      try locked {
        let blas = state
        blas.pointee.users -= 1
        blas.pointee.lanes -= Int32(lanes)
        if blas.pointee.users == 0 && blas.pointee.host_threads != 1 {
          blas.pointee.set_num_threads!(blas.pointee.host_threads)
        }
      }
    } catch {}  // a forked child has nothing to put back
  }
}
