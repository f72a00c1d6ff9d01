import CShims

/// From floats to a panel, by the errors' importance: with each scale weights are clipped at some shares of the largest
/// magnitude, encoded, and decoded again, and the share stays whose sum of  m (w - q)^2  is least. It knows of a code no more than
/// how to encode and decode it. The result is never worse than without clipping, which is one of the shares. Where it is known how
/// inputs go together, w is what makes up for errors of the weights before (ErrorFeedback.swift).
struct WeightedEncoding {
  let code: PanelCode
  let matrix: StoredMatrix
  let rows: Int
  let depth: Int
  let kernels: UnsafePointer<moei_kernels>
  let scratch: WeightedScratch

  /// Shares of the largest magnitude, 1 the first, so that it stays in a tie.
  static var candidates: Int { 13 }
  private static func share(_ number: Int) -> Float { 1 - Float(number) / 32 }

  /// False where a scale is not finite.
  func run(into panel: UnsafeMutableRawPointer) -> Bool {
    panel.initializeMemory(as: UInt8.self, repeating: 0, count: code.bytes(depth))
    if code.hasRowScales { return runByRows(into: panel) }
    var isFinite = true
    for p in stride(from: 0, to: depth, by: code.inputs) {
      isFinite = encode(p, into: panel + code.bytes(p)) && isFinite
    }
    return isFinite
  }

  // MARK: scales in blocks

  private var inputsOfScale: Int { code.inputsOfScale ?? code.inputs }
  private var scales: Int { code.inputs / inputsOfScale }

  private func encode(_ p: Int, into block: UnsafeMutableRawPointer) -> Bool {
    let count = min(code.inputs, depth - p)
    read(p, count)
    makeUp(p, count)
    findLimits(count)
    // Without clipping first: what is not finite then is not finite at all.
    if !encode(count, scratch.rows, into: block) { return false }
    begin()
    for number in 0..<Self.candidates {
      clip(count) { _, _ in Self.share(number) }
      if !measure(p, count) { continue }
      for i in 0..<scales * chunkWidth where scratch.errors[i] < scratch.least[i] {
        (scratch.least[i], scratch.best[i]) = (scratch.errors[i], Self.share(number))
      }
      for row in 0..<rows where scratch.rowErrors[row] < scratch.rowLeast[row] {
        (scratch.rowLeast[row], scratch.rowBest[row]) = (scratch.rowErrors[row], Self.share(number))
      }
    }
    // Scales of one row are not quite by themselves where they have one in common: the best of each is tried together.
    clip(count) { row, scale in scratch.best[scale * chunkWidth + row] }
    let isHeld = measure(p, count)
    for row in 0..<rows {
      if isHeld && scratch.rowErrors[row] <= scratch.rowLeast[row] { continue }
      for scale in 0..<scales { scratch.best[scale * chunkWidth + row] = scratch.rowBest[row] }
    }
    clip(count) { row, scale in scratch.best[scale * chunkWidth + row] }
    block.initializeMemory(as: UInt8.self, repeating: 0, count: code.blockBytes)
    let isFinite = encode(count, scratch.clipped, into: block)
    noteErrors(p, count, of: block)
    return isFinite
  }

  private func begin() {
    scratch.least.update(repeating: .infinity, count: scales * chunkWidth)
    scratch.best.update(repeating: 1, count: scales * chunkWidth)
    scratch.rowLeast.update(repeating: .infinity, count: chunkWidth)
    scratch.rowBest.update(repeating: 1, count: chunkWidth)
  }

  /// Of each scale; one for all rows where they share it.
  private func findLimits(_ count: Int) {
    for scale in 0..<scales {
      let limits = scratch.limits + scale * chunkWidth
      let first = scale * inputsOfScale
      var most: Float = 0
      for row in 0..<rows {
        let own =
          first < count
          ? moei_largest(scratch.rows + row * code.inputs + first, Int64(min(inputsOfScale, count - first))) : 0
        limits[row] = own
        most = max(most, own)
      }
      if code.sharing == .scales { limits.update(repeating: most, count: rows) }
    }
  }

  private func clip(_ count: Int, _ share: (_ row: Int, _ scale: Int) -> Float) {
    for row in 0..<rows {
      let (from, to) = (scratch.rows + row * code.inputs, scratch.clipped + row * code.inputs)
      for scale in 0..<scales {
        let limit = scratch.limits[scale * chunkWidth + row] * share(row, scale)
        let first = scale * inputsOfScale
        for i in first..<max(first, min(count, first + inputsOfScale)) { to[i] = min(max(from[i], -limit), limit) }
      }
    }
  }

  /// Errors of what was clipped. False where it cannot be encoded.
  private func measure(_ p: Int, _ count: Int) -> Bool {
    scratch.block.initializeMemory(as: UInt8.self, repeating: 0, count: code.blockBytes)
    if !encode(count, scratch.clipped, into: scratch.block) { return false }
    decode(scratch.block, count)
    scratch.rowErrors.update(repeating: 0, count: chunkWidth)
    for scale in 0..<scales {
      let errors = scratch.errors + scale * chunkWidth
      errors.update(repeating: 0, count: chunkWidth)
      let first = scale * inputsOfScale
      addErrors(p, first..<max(first, min(count, first + inputsOfScale)), to: errors)
      for row in 0..<chunkWidth { scratch.rowErrors[row] += errors[row] }
    }
    if code.sharing != .nothing { shareErrors() }
    return true
  }

  /// Where rows have something in common they are taken or left together, and so are scales that they share.
  private func shareErrors() {
    var sum: Float = 0
    for row in 0..<rows { sum += scratch.rowErrors[row] }
    scratch.rowErrors.update(repeating: sum, count: rows)
    if code.sharing == .scales { scratch.errors.update(repeating: sum, count: rows) }
  }

  // MARK: a scale for a row

  /// Numbers are clipped by the encoding itself, by what it is told to be the largest. That is chosen for the whole row beforehand.
  private func runByRows(into panel: UnsafeMutableRawPointer) -> Bool {
    findLargest()
    begin()
    var isFinite = true
    for number in 0..<(scratch.factor == nil ? Self.candidates : 1) {
      for row in 0..<chunkWidth { scratch.errors[row] = scratch.limits[row] * Self.share(number) }
      scratch.rowErrors.update(repeating: 0, count: chunkWidth)
      for p in stride(from: 0, to: depth, by: code.inputs) {
        let count = min(code.inputs, depth - p)
        read(p, count)
        scratch.block.initializeMemory(as: UInt8.self, repeating: 0, count: code.blockBytes)
        isFinite = encode(count, scratch.rows, largest: scratch.errors, into: scratch.block) && isFinite
        decode(scratch.block, count)
        addErrors(p, 0..<count, to: scratch.rowErrors)
      }
      for row in 0..<rows where scratch.rowErrors[row] < scratch.rowLeast[row] {
        (scratch.rowLeast[row], scratch.rowBest[row]) = (scratch.rowErrors[row], Self.share(number))
      }
    }
    for row in 0..<chunkWidth { scratch.errors[row] = scratch.limits[row] * scratch.rowBest[row] }
    for p in stride(from: 0, to: depth, by: code.inputs) {
      let count = min(code.inputs, depth - p)
      read(p, count)
      makeUp(p, count)
      isFinite = encode(count, scratch.rows, largest: scratch.errors, into: panel + code.bytes(p)) && isFinite
      noteErrors(p, count, of: panel + code.bytes(p))
    }
    return isFinite
  }

  private func findLargest() {
    scratch.limits.update(repeating: 0, count: chunkWidth)
    for p in stride(from: 0, to: depth, by: code.inputs) {
      let count = min(code.inputs, depth - p)
      read(p, count)
      for row in 0..<rows {
        let (own, most) = (moei_largest(scratch.rows + row * code.inputs, Int64(count)), scratch.limits[row])
        if !(own <= most) && most == most { scratch.limits[row] = own }
      }
    }
  }

  // MARK: blocks

  /// Inputs from number p on: in rows, and turned.
  private func read(_ p: Int, _ count: Int) {
    for row in 0..<rows {
      let own = scratch.rows + row * code.inputs
      matrix.from(row: row).from(column: p).read(0, count, into: own, kernels)
      for i in 0..<count { scratch.turned[i * chunkWidth + row] = own[i] }
    }
    if rows == chunkWidth { return }
    for i in 0..<count {
      (scratch.turned + (i * chunkWidth + rows)).update(repeating: 0, count: chunkWidth - rows)
    }
  }

  private func encode(
    _ count: Int, _ floats: UnsafePointer<Float>, largest: UnsafePointer<Float>? = nil,
    into block: UnsafeMutableRawPointer
  ) -> Bool {
    code.kernels(kernels).pointee.encode(
      Int64(code.inputs), 0, Int64(rows), Int64(count), floats, Int64(code.inputs), largest, block) != 0
  }

  func decode(_ block: UnsafeRawPointer, _ count: Int) {
    for i in stride(from: 0, to: count, by: chunkWidth) {
      code.decode(block, from: i, min(chunkWidth, count - i), into: scratch.decoded + i * chunkWidth, kernels)
    }
  }

  /// Of all rows at once, one chain for each.
  private func addErrors(_ p: Int, _ inputs: Range<Int>, to errors: UnsafeMutablePointer<Float>) {
    for i in inputs {
      let (weight, from) = (scratch.importance[p + i], i * chunkWidth)
      let (own, decoded) = (scratch.turned + from, scratch.decoded + from)
      for row in 0..<chunkWidth {
        let error = own[row] - decoded[row]
        errors[row] += weight * (error * error)
      }
    }
  }
}
