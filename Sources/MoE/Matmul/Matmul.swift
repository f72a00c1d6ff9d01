import CShims

/// The seam through which the products of row-major matrices go. All three accumulate: C starts as zero, as a bias or
/// as the gradient so far. `ld` is the distance between rows, in elements. Of A (of A and B in addAtB) there are at most
/// `rowsPerBlock` rows. The native kernels want scratch memory.
/// The arguments are those of BLAS's gemm in its order, which is why they are more than ten.
struct Matmul {
  enum Backend: Int32 {
    // Numbers as in moe_matmul, AUTO being resolved when a context is made.
    case openBLAS = 1
    case reference = 2
    case native = 3
  }

  let backend: Backend
  let kernels: UnsafePointer<moei_kernels>

  typealias Source = UnsafePointer<Float>
  typealias Target = UnsafeMutablePointer<Float>

  /// Floats of scratch for products whose A (B in addAtB) has up to `width` columns, of blocks of `tokens` tokens. More than any
  /// memory has where that is beyond an Int: an arena refuses it.
  func scratch(tokens: Int, width: Int) -> Int {
    if backend != .native { return 0 }
    let (rows, tooMany) = min(tokens, rowsPerBlock).multipliedReportingOverflow(by: padded(width))
    let (all, tooMuch) = rows.addingReportingOverflow(F32.pieceSize)
    return tooMany || tooMuch ? .max : all
  }

  /// Forward: C[m,n] += A[m,k] B[n,k]^T.
  func addABt(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, lda: Int, _ b: Source, ldb: Int, _ c: Target, ldc: Int,
    _ scratch: Target? = nil
  ) {
    switch backend {
    case .openBLAS: OpenBLAS.addABt(m, n, k, a, lda, b, ldb, c, ldc)
    case .reference: reference(m, n, k, a, lda, 1, b, 1, ldb, c, ldc)
    case .native: native(m, n, k, a, lda, b, ldb, transposed: true, c, ldc, scratch!)
    }
  }

  /// Gradient of the input: C[m,n] += A[m,k] B[k,n].
  func addAB(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, lda: Int, _ b: Source, ldb: Int, _ c: Target, ldc: Int,
    _ scratch: Target? = nil
  ) {
    switch backend {
    case .openBLAS: OpenBLAS.addAB(m, n, k, a, lda, b, ldb, c, ldc)
    case .reference: reference(m, n, k, a, lda, 1, b, ldb, 1, c, ldc)
    case .native: native(m, n, k, a, lda, b, ldb, transposed: false, c, ldc, scratch!)
    }
  }

  /// Gradient of the weights: C[m,n] += A[k,m]^T B[k,n]; k counts tokens, in ascending order.
  func addAtB(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, lda: Int, _ b: Source, ldb: Int, _ c: Target, ldc: Int,
    _ scratch: Target? = nil
  ) {
    switch backend {
    case .openBLAS: OpenBLAS.addAtB(m, n, k, a, lda, b, ldb, c, ldc)
    case .reference: reference(m, n, k, a, 1, lda, b, ldb, 1, c, ldc)
    case .native: nativeAtB(m, n, k, a, lda, b, ldb, c, ldc, scratch!)
    }
  }

  private func reference(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ aRow: Int, _ aColumn: Int, _ b: Source, _ bRow: Int, _ bColumn: Int,
    _ c: Target, _ ldc: Int
  ) {
    kernels.pointee.matmul(
      Int64(m), Int64(n), Int64(k), a, Int64(aRow), Int64(aColumn), b, Int64(bRow), Int64(bColumn), c, Int64(ldc))
  }

  // MARK: our own kernels

  /// C[m,n] += A[m,k] B, or B^T. Scratch: A in chunks, then the panels.
  private func native(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, transposed: Bool, _ c: Target,
    _ ldc: Int, _ scratch: Target
  ) {
    let tiles = Tiles(rows: m, maxHeight: Int(kernels.pointee.tile_height), unit: 1)
    for tile in 0..<tiles.count {
      let rows = tiles.rows(tile)
      kernels.pointee.gather(
        Int64(rows.count), Int64(k), nil, a + rows.lowerBound * lda, Int64(lda), nil,
        scratch + rows.lowerBound * padded(k))
    }
    let products = PanelProducts<F32>(
      kernels: kernels, tiles: tiles, range: 0..<tiles.count, depth: k, packed: scratch + m * padded(k))
    func columns(_ chunk: Int) -> Int { min(chunkWidth, n - chunk * chunkWidth) }
    func panel(_ chunk: Int) -> WeightPanel<F32> {
      WeightPanel(
        StoredMatrix(b, .f32, first: chunk * chunkWidth * (transposed ? ldb : 1), rowStride: ldb),
        transposed: transposed, columns: columns(chunk))
    }
    (0..<chunks(of: n)).forEachRun(of: panelsAtOnce) { run in
      products.run(
        run.count, { panel(run.lowerBound + $0) }, next: { nil },
        a: { Source(scratch + $0.lowerBound * padded(k)) },
        start: { _ in nil }, c: { c + $1.lowerBound * ldc + (run.lowerBound + $0) * chunkWidth }, cStride: ldc,
        columns: { columns(run.lowerBound + $0) })
    }
  }

  /// Scratch: B in panels, then one panel of A.
  private func nativeAtB(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ lda: Int, _ b: Source, _ ldb: Int, _ c: Target, _ ldc: Int,
    _ scratch: Target
  ) {
    let tile = moei_tiles(count: 1, tall: 1, height: Int32(k))
    let panel = scratch + k * padded(n)
    for j in stride(from: 0, to: n, by: chunkWidth) {
      kernels.pointee.pack(Int64(min(chunkWidth, n - j)), Int64(k), b + j, Int64(ldb), scratch + j * k)
    }
    for i in stride(from: 0, to: m, by: chunkWidth) {
      let rows = min(chunkWidth, m - i)
      kernels.pointee.pack(Int64(rows), Int64(k), a + i, Int64(lda), panel)
      for j in stride(from: 0, to: n, by: chunkWidth) {
        kernels.pointee.product_over_tokens(
          Int64(rows), Int64(min(chunkWidth, n - j)), tile, panel, 0, 0, scratch + j * k, 0, 0, c + i * ldc + j,
          Int64(ldc), c + i * ldc + j, nil, 0)
      }
    }
  }
}
