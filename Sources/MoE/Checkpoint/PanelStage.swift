import CShims

/// How one matrix of a file is packed while it is read.
struct PanelSource {
  private let number: FormNumber
  /// Whether the form has exactly the file's numbers, which go into panels as they are written down.
  var isStored = false
  /// What other numbers become before they are packed.
  var type = ElementType.f32

  init(form: PanelForm, isStored: Bool = false, type: ElementType = .f32) {
    (number, self.isStored, self.type) = (FormNumber(form), isStored, type)
  }

  var form: PanelForm { number.form }
}

/// What a thread needs to pack rows of a matrix, up to 32 of them at a time: one panel.
struct PanelStage {
  private let source: PanelSource
  private let columns: Int
  private let kernels: UnsafePointer<moei_kernels>
  private let stored: StoredRows?
  private let numbers: UnsafeMutableRawPointer  // [32, columns] of other sources, or [columns, 32]

  init(_ arena: inout Arena, _ source: PanelSource, columns: Int, _ kernels: UnsafePointer<moei_kernels>) {
    (self.source, self.columns, self.kernels) = (source, columns, kernels)
    stored = source.isStored ? source.form.code.map { StoredRows(&arena, $0, columns: columns) } : nil
    let bytes = stored == nil ? source.type.bytes(chunkWidth * columns) : 0
    numbers = UnsafeMutableRawPointer(arena.take(UInt8.self, bytes))
  }

  static func bytes(
    _ source: PanelSource, columns: Int, _ kernels: UnsafePointer<moei_kernels>
  ) throws(Fault) -> Int {
    try Arena.bytes { PanelStage(&$0, source, columns: columns, kernels) }
  }

  /// Row number `i` becomes that of elements first, first + stride, ... of what was read, which is a whole row where numbers stay as
  /// they are written down.
  func gather(_ values: StoredValues, _ first: Int, stride: Int, as i: Int) {
    if let stored { return stored.gather(values, row: first / columns, as: i) }
    ParameterValues(numbers, source.type, kernels).write(i * columns, columns, from: values, first, stride: stride)
  }

  /// `rows` rows that lie in columns of what was read, `step` apart, whose rows are `stride` apart: `pack` then takes them `turned`.
  func gatherColumns(_ values: StoredValues, _ first: Int, stride: Int, step: Int, rows: Int) {
    let target = ParameterValues(numbers, source.type, kernels)
    // Rows that lie this far apart are fetched one by one: while some are copied, others are on their way.
    let rowsAhead = 16
    for p in 0..<columns {
      values.prefetch(first + (p + rowsAhead) * stride, (rows - 1) * step + 1)
      target.write(p * chunkWidth, rows, from: values, first + p * stride, stride: step)
    }
  }

  /// One number of what was read, as the matrix in memory would have it.
  func number(_ values: StoredValues, _ element: Int) -> Float {
    var (value, memory) = (Float(0), UInt32(0))
    values.read(element, stride: 1, count: 1, to: &value)
    if source.type == .f32 { return value }
    withUnsafeMutablePointer(to: &memory) {
      source.type.fromFloats(&value, 1, $0, 0, kernels)
      source.type.toFloats($0, 0, 1, &value, kernels)
    }
    return value
  }

  /// The first `rows` of them. False where the form cannot hold them.
  func pack(
    rows: Int, of values: StoredValues, turned: Bool = false, into panel: UnsafeMutableRawPointer
  ) -> Bool {
    if let stored { return stored.pack(rows: rows, of: values, into: panel, kernels) }
    let matrix =
      turned
      ? StoredMatrix(numbers, source.type, rowStride: 1, columnStride: chunkWidth)
      : StoredMatrix(numbers, source.type, rowStride: columns)
    return source.form.pack(matrix, rows: rows, depth: columns, chunk: 0, into: panel, kernels)
  }
}

extension Fault {
  /// A panel of a tensor that was read, in the form.
  static func notHeld(_ name: UnsafePointer<CChar>, _ source: PanelSource) -> Fault {
    if source.isStored {
      return Fault(
        .notFinite,
        "\(name): a scale or a number in the file is not finite: download the file again, or load it without packing")
    }
    return Fault(
      .notFinite,
      "\(name) holds a number that is not finite, or too large for its scale (\(source.form.constant)): mend it, or prepare another form"
    )
  }
}
