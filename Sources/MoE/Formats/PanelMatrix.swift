import CShims

/// A packed copy of one matrix [rows, depth], made once: products stream its panels as they will be multiplied.
/// Experts' matrices are packed together (Experts/Prepared.swift).
public struct PanelMatrix {
  let forms: RowForms
  fileprivate let rows: Int
  fileprivate let depth: Int
  /// [StoredMatrix.sampleCount] elements when it was packed; nil of panels from a file
  fileprivate let samples: UnsafeMutablePointer<Float>?
  fileprivate let isHeld: UnsafeMutablePointer<Int32>?  // [1] 0 = the matrix has what the form cannot hold
  private let panels: UnsafeMutableRawPointer  // panel behind panel

  fileprivate init(_ arena: inout Arena, _ forms: RowForms, rows: Int, depth: Int) {
    (self.forms, self.rows, self.depth) = (forms, rows, depth)
    samples = arena.take(Float.self, StoredMatrix.sampleCount)
    isHeld = arena.take(Int32.self, 1)
    panels = UnsafeMutableRawPointer(arena.take(UInt8.self, forms.bytes(before: chunks(of: rows), depth)))
  }

  /// Panels from a file, to which nobody writes.
  fileprivate init(_ packed: PackedMatrices, rows: Int, depth: Int) {
    (forms, self.rows, self.depth) = (packed.forms, rows, depth)
    panels = UnsafeMutableRawPointer(mutating: packed.panels)
    (samples, isHeld) = (nil, nil)
  }

  var packed: PackedMatrices { PackedMatrices(forms: forms, panels: panels, bytes: bytes) }
  var bytes: Int { forms.bytes(before: chunks(of: rows), depth) }

  /// Outputs from number 32 `chunk` on, as the products of a precision read them.
  func panel<P: Precision>(_: P.Type, _ chunk: Int) -> WeightPanel<P> { forms[chunk].panel(P.self, start(chunk)) }

  func start(_ chunk: Int) -> UnsafeMutableRawPointer { panels + forms.bytes(before: chunk, depth) }

  /// Some rows and columns as floats, in rows `stride` apart. Rows begin at a multiple of 32, columns at one of 256.
  func decode(
    _ rows: Range<Int>, _ columns: Range<Int>, into floats: UnsafeMutablePointer<Float>, stride: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    for first in Swift.stride(from: rows.lowerBound, to: rows.upperBound, by: chunkWidth) {
      let form = forms[first / chunkWidth]
      form.decode(
        start(first / chunkWidth) + form.panelBytes(columns.lowerBound), rows: min(chunkWidth, rows.upperBound - first),
        depth: columns.count, into: floats + (first - rows.lowerBound) * stride, stride: stride, kernels)
    }
  }

  /// A row as floats.
  func read(row: Int, into floats: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>) {
    let (panel, own) = row.quotientAndRemainder(dividingBy: chunkWidth)
    forms[panel].read(row: own, of: start(panel), depth: depth, into: floats, kernels)
  }

  /// Notes number i of the sample, where panels are made of something else than a matrix.
  func note(_ i: Int, _ value: Float) { samples?[i] = value }

  /// Whether the matrix is what was packed, as far as a sample tells: reading all of it would cost what the packing saves.
  func isCurrent(_ matrix: StoredMatrix, _ kernels: UnsafePointer<moei_kernels>) -> Bool {
    guard let samples else { return true }
    return withUnsafeTemporaryAllocation(of: Float.self, capacity: StoredMatrix.sampleCount) { now in
      matrix.sample(rows: rows, columns: depth, into: now.baseAddress!, kernels)
      for i in 0..<StoredMatrix.sampleCount where now[i].bitPattern != samples[i].bitPattern { return false }
      return true
    }
  }
}

/// One block of memory: the packed matrix, then what it points at.
typealias PanelMatrixPointer = UnsafeMutablePointer<PanelMatrix>

private struct PanelMatrixParts {
  let place: PanelMatrixPointer
  let matrix: PanelMatrix

  init(_ arena: inout Arena, _ forms: RowForms, rows: Int, depth: Int) {
    place = arena.take(PanelMatrix.self, 1)
    matrix = PanelMatrix(&arena, forms, rows: rows, depth: depth)
  }
}

extension UnsafeMutablePointer where Pointee == PanelMatrix {
  /// Panels of a parameter that is a matrix, for whoever fills them.
  static func room(
    _ parameter: Parameter, _ forms: RowForms, in context: ContextPointer
  ) throws(Fault) -> PanelMatrixPointer {
    let (rows, depth, _) = parameter.shape
    let parts = try context.pointee.allocator.make { PanelMatrixParts(&$0, forms, rows: rows, depth: depth) }
    parts.place.initialize(to: parts.matrix)
    parts.matrix.isHeld!.pointee = 1
    return parts.place
  }

  /// Notes what was packed, so that a change is noticed.
  func takeSample(of parameter: Parameter, _ kernels: UnsafePointer<moei_kernels>) {
    guard let samples = pointee.samples else { return }
    parameter.matrix.sample(rows: pointee.rows, columns: pointee.depth, into: samples, kernels)
  }

  /// Of a parameter that is a matrix; `squares` tells what it reads, where that is known. On an error there is nothing to free.
  static func create(
    _ parameter: Parameter, _ form: PanelForm, _ squares: InputSquares?, in context: ContextPointer
  ) throws(Fault) -> PanelMatrixPointer {
    let (_, depth, _) = parameter.shape
    try form.require(depth, inputsOfNamed: parameter.name)
    let made = try room(parameter, RowForms(form), in: context)
    made.takeSample(of: parameter, context.kernels)
    let job = PackPanels(target: made.pointee, matrix: parameter.matrix, kernels: context.kernels)
    do throws(Fault) {
      try job.run(form.code == nil ? nil : squares, in: context)
    } catch {
      made.free(context.pointee.allocator)
      throw error
    }
    if made.pointee.isHeld!.pointee == 0 {
      made.free(context.pointee.allocator)
      throw Fault(
        .notFinite,
        "\(parameter.name) holds a number that is not finite, or too large for its scale (\(form.constant)): mend it, or prepare another form"
      )
    }
    return made
  }

  /// Of a parameter whose panels come from a file.
  static func place(
    _ parameter: Parameter, _ packed: PackedMatrices, _ allocator: Allocator
  ) throws(Fault) -> PanelMatrixPointer {
    let place = try allocator.allocate(PanelMatrix.self, count: 1)
    place.initialize(to: PanelMatrix(packed, rows: parameter.shape.0, depth: parameter.shape.1))
    return place
  }

  func free(_ allocator: Allocator) { allocator.deallocate(self) }
}

/// An item is one panel.
private struct PackPanels: Job {
  let target: PanelMatrix
  let matrix: StoredMatrix
  let kernels: UnsafePointer<moei_kernels>
  var calibrated: CalibratedPacking?

  func run(_ squares: InputSquares?, in context: ContextPointer) throws(Fault) {
    let items = chunks(of: target.rows)
    guard let squares else { return context.runToTheEnd(items, self) }
    try context.withScratch({ CalibratedPacking(&$0, squares, lanes: context.lanes) }) { (calibrated) throws(Fault) in
      calibrated.begin(kernels)
      var own = self
      own.calibrated = calibrated
      context.runToTheEnd(items, own)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let isHeld = target.forms[item].pack(
      matrix, rows: target.rows, depth: target.depth, chunk: item, into: target.start(item), kernels,
      weighted: calibrated?.weighted(expert: 0, lane: lane.pointee.index, kernels))
    if !isHeld { moei_store(target.isHeld!, 0) }
  }
}
