/// The tensor with the numbers of quantised weights, and those that stand beside it: BASE.weight_packed and BASE.weight_scale, say.
struct QuantisedWeight {
  /// Of the base.
  let length: Int
  private let tensor: StoredTensor
  private let checkpoint: Checkpoint
  private let kind: Kind

  /// By the name. The raw type is for the linker, see ExpertForm.
  enum Kind: Int32 {
    case packed, words, bytes

    fileprivate init?(_ name: UnsafePointer<CChar>) {
      if hasEnd(name, cText(".weight_packed")) {
        self = .packed
      } else if hasEnd(name, cText(".qweight")) {
        self = .words
      } else if hasEnd(name, cText(".weight")) {
        self = .bytes
      } else {
        return nil
      }
    }

    fileprivate var end: StaticString {
      switch self {
      case .packed: ".weight_packed"
      case .words: ".qweight"
      case .bytes: ".weight"
      }
    }

    /// What stands beside it, '|' between them.
    fileprivate var beside: StaticString {
      switch self {
      case .packed:
        "weight_scale|weight_shape|weight_zero_point|weight_g_idx|weight_global_scale|input_global_scale|input_scale"
      case .words: "scales|qzeros|g_idx"
      case .bytes: "weight_scale|weight_scale_inv|weight_scale_2|input_scale"
      }
    }
  }

  /// nil where it holds none.
  init?(_ tensor: StoredTensor, in checkpoint: Checkpoint) {
    guard let kind = Kind(tensor.name) else { return nil }
    (self.tensor, self.checkpoint, self.kind) = (tensor, checkpoint, kind)
    length = textLength(tensor.name) - kind.end.utf8CodeUnitCount
    if kind != .bytes { return }
    switch tensor.type {
    case .f8E4M3, .f8E5M2, .i8, .u8:
      if beside(".weight_scale") == nil && beside(".weight_scale_inv") == nil { return nil }
    default: return nil
    }
  }

  fileprivate init?(_ base: UnsafePointer<CChar>, _ length: Int, _ kind: Kind, in checkpoint: Checkpoint) {
    let tensor = withText {
      $0.append(base, count: length)
      $0.append(kind.end)
    } body: {
      checkpoint.tensor($0)
    }
    guard let tensor, let weight = QuantisedWeight(tensor, in: checkpoint) else { return nil }
    self = weight
  }

  /// Whether its kind reads a tensor that is called so behind the base.
  fileprivate func reads(_ own: UnsafePointer<CChar>) -> Bool { JSONText(own).isAmong(cText(kind.beside)) }

  /// BASE and `end`, where the files have it.
  private func beside(_ end: StaticString) -> StoredTensor? {
    withText {
      $0.append(tensor.name, count: length)
      $0.append(end)
    } body: {
      checkpoint.tensor($0)
    }
  }

  // MARK: what it is

  func matrix(_ hints: QuantisationHints) throws(Fault) -> QuantisedMatrix {
    if tensor.shape.rank != 2 {
      throw .invalid(
        "\(tensor.name): \(tensor.shape.rank) dimensions, and quantised weights are read as matrices alone")
    }
    switch kind {
    case .packed where tensor.type == .u8: return try fp4()
    case .packed: return try packed(hints)
    case .words: return try words(hints)
    case .bytes where tensor.type == .u8: return try fp4()
    case .bytes: return try bytes(hints)
    }
  }

  private func packed(_ hints: QuantisationHints) throws(Fault) -> QuantisedMatrix {
    try require(.i32, tensor)
    let (rows, words) = (tensor.shape[0], tensor.shape[1])
    var columns = words.multipliedReportingOverflow(by: 8).partialValue
    if let shape = beside(".weight_shape") {
      let given = try two(shape)
      if given.0 != rows || given.1 < 1 || given.1 > 32 * max(1, min(words, 1 << 32)) {
        throw .invalid(
          "\(shape.name): \(given.0) by \(given.1) is not what \(tensor.name) of \(rows) rows of \(words) words can be")
      }
      columns = given.1
    }
    guard let bits = bits(columns, words) else {
      throw .invalid("\(tensor.name): rows of \(words) words are none of \(columns) numbers of 2, 4 or 8 bits")
    }
    let scales = try needed(".weight_scale")
    let grid = try ScaleGrid(
      scales, rows, columns, (1, hints.group ?? 0), isSaid: hints.group != nil, of: tensor)
    var matrix = QuantisedMatrix(scheme: .packed, rows, columns, bits: bits, grid, tensor, scales)
    if let zeros = beside(".weight_zero_point") {
      try require(.i32, zeros)
      if grid.rows != 1 { throw inconsistent(zeros, scales) }
      try require(zeros, (rows - 1) / (32 / bits) + 1, grid.groups)
      matrix.zeros = QuantisedMatrix.Part(zeros)
    }
    if let order = beside(".weight_g_idx") { matrix.order = try checked(order, columns, grid) }
    return matrix
  }

  /// Of numbers that fill so many words of 32 bits.
  private func bits(_ numbers: Int, _ words: Int) -> Int? {
    func fill(_ bits: Int) -> Bool { numbers > 0 && (numbers - 1) / (32 / bits) + 1 == words }
    return fill(4) ? 4 : fill(8) ? 8 : fill(2) ? 2 : nil
  }

  /// AWQ and GPTQ: which of them, the shapes tell.
  private func words(_ hints: QuantisationHints) throws(Fault) -> QuantisedMatrix {
    try require(.i32, tensor)
    let (scales, zeros) = (try needed(".scales"), try needed(".qzeros"))
    try ScaleGrid.requireType(scales)
    try require(.i32, zeros)
    if scales.shape.rank != 2 || zeros.shape.rank != 2 || scales.shape[0] != zeros.shape[0] || scales.shape[0] < 1 {
      throw inconsistent(zeros, scales)
    }
    let (groups, rows) = (scales.shape[0], scales.shape[1])
    let order = beside(".g_idx")
    let isAwq = order == nil && rows % 8 == 0 && tensor.shape[1] == rows / 8
    if !isAwq && tensor.shape[1] != rows {
      throw .invalid(
        "\(tensor.name): rows of \(tensor.shape[1]) words, but \(scales.name) has scales for \(rows) outputs")
    }
    let bits = isAwq ? 4 : self.bits(rows, zeros.shape[1])
    guard let bits, self.bits(rows, zeros.shape[1]) == bits else { throw inconsistent(zeros, scales) }
    let columns = isAwq ? tensor.shape[0] : try columns(bits)
    if columns < 1 { throw .invalid("\(tensor.name): \(tensor.shape) holds no weights") }
    if let said = hints.group, (columns - 1) / said + 1 != groups {
      throw .invalid(
        "\(scales.name): \(groups) groups of \(columns) inputs, but quantization_config has group_size = \(said)")
    }
    let grid = ScaleGrid(rows: 1, columns: hints.group ?? columns / groups, groups: groups)
    if order == nil && (grid.columns < 1 || (columns - 1) / grid.columns + 1 != groups) {
      throw .invalid("\(scales.name): \(groups) groups of \(columns) inputs are not equally large")
    }
    var matrix = QuantisedMatrix(
      scheme: isAwq ? .awq : .gptq, rows, columns, bits: bits, grid, tensor, scales)
    matrix.zeros = QuantisedMatrix.Part(zeros)
    matrix.zeroShift = isAwq ? 0 : hints.zeroShift
    if let order { matrix.order = try checked(order, columns, grid) }
    return matrix
  }

  private func columns(_ bits: Int) throws(Fault) -> Int {
    let (columns, overflow) = tensor.shape[0].multipliedReportingOverflow(by: 32 / bits)
    if overflow { throw .invalid("\(tensor.name): its inputs do not fit in 63 bits") }
    return columns
  }

  private func bytes(_ hints: QuantisationHints) throws(Fault) -> QuantisedMatrix {
    let inverse = beside(".weight_scale_inv")
    let scales: StoredTensor
    if let inverse { scales = inverse } else { scales = try needed(".weight_scale") }
    let block = hints.block ?? (inverse == nil ? (rows: 0, columns: 0) : (rows: 128, columns: 128))
    let (rows, columns) = (tensor.shape[0], tensor.shape[1])
    let grid = try ScaleGrid(scales, rows, columns, block, isSaid: hints.block != nil, of: tensor)
    return QuantisedMatrix(scheme: .bytes, rows, columns, bits: 8, grid, tensor, scales)
  }

  /// NVFP4 with scales of 16 numbers and one of all; MXFP4 with scales of 32.
  private func fp4() throws(Fault) -> QuantisedMatrix {
    let scales = try needed(".weight_scale")
    let (columns, overflow) = tensor.shape[1].multipliedReportingOverflow(by: 2)
    if overflow { throw .invalid("\(tensor.name): its inputs do not fit in 63 bits") }
    let rows = tensor.shape[0]
    let grid = try ScaleGrid(scales, rows, columns, (1, scales.type == .f8E4M3 ? 16 : 32), of: tensor)
    var matrix = QuantisedMatrix(scheme: .fp4, rows, columns, bits: 4, grid, tensor, scales)
    if let whole = beside(".weight_global_scale") {
      matrix.divisor = try single(whole)
    } else if let whole = beside(".weight_scale_2") {
      matrix.factor = try single(whole)
    }
    return matrix
  }

  // MARK: what stands beside it

  private func needed(_ end: StaticString) throws(Fault) -> StoredTensor {
    if let found = beside(end) { return found }
    throw withText {
      $0.append(tensor.name, count: length)
      $0.append(end)
    } body: { (name) -> Fault in
      Fault.invalid("\(name): the files have no such tensor, which \(tensor.name) needs: download them again")
    }
  }

  private func require(_ type: StoredType, _ tensor: StoredTensor) throws(Fault) {
    if tensor.type != type { throw .invalid("\(tensor.name): \(tensor.typeName) is not \(type.name)") }
  }

  private func require(_ tensor: StoredTensor, _ rows: Int, _ columns: Int) throws(Fault) {
    if tensor.shape != StoredShape(rows, columns) {
      throw .invalid(
        "\(tensor.name): \(tensor.shape) is not [\(rows), \(columns)], as \(self.tensor.name) wants it")
    }
  }

  private func inconsistent(_ zeros: StoredTensor, _ scales: StoredTensor) -> Fault {
    .invalid(
      "\(zeros.name): \(zeros.shape) does not go with \(scales.name) of \(scales.shape)")
  }

  /// I64 or I32 [2]
  private func two(_ tensor: StoredTensor) throws(Fault) -> (Int, Int) {
    if tensor.shape != StoredShape(2) || (tensor.type != .i64 && tensor.type != .i32) {
      throw .invalid("\(tensor.name): \(tensor.typeName) of \(tensor.shape) is not the two sizes of weights")
    }
    var both = (0, 0)
    try checkpoint.forEachElement(tensor) { (_, element) in
      both = (both.1, tensor.type == .i64 ? Int(element.load(as: Int64.self)) : Int(element.load(as: Int32.self)))
    }
    return both
  }

  /// F32, of one number.
  private func single(_ tensor: StoredTensor) throws(Fault) -> Float {
    var (value, count) = (Float(0), 0)
    if tensor.type == .f32 {
      try checkpoint.forEachElement(tensor) { (_, element) in
        value = element.load(as: Float.self)
        count += 1
      }
    }
    if count != 1 || !(value > 0 && value < .infinity) {
      throw .invalid("\(tensor.name): \(tensor.typeName) of \(tensor.shape) is not one scale above 0, in F32")
    }
    return value
  }

  /// The groups of columns, each of which there is; nil where columns come group by group.
  private func checked(
    _ order: StoredTensor, _ columns: Int, _ grid: ScaleGrid
  ) throws(Fault) -> QuantisedMatrix.Part? {
    var isInOrder = grid.columns > 0
    try require(.i32, order)
    if order.shape != StoredShape(columns) {
      throw .invalid("\(order.name): \(order.shape) is not [\(columns)], as \(tensor.name) wants it")
    }
    try checkpoint.forEachElement(order) { (index, element) throws(Fault) in
      let group = Int(element.load(as: Int32.self))
      if group < 0 || group >= grid.groups {
        throw .invalid("\(order.name): input \(index) is of group \(group), but there are \(grid.groups)")
      }
      if isInOrder && index / grid.columns != group { isInOrder = false }
    }
    return isInOrder ? nil : QuantisedMatrix.Part(order)
  }
}

extension Checkpoint {
  /// Whether a tensor is one that quantised weights are read together with.
  func isBesideWeights(_ name: UnsafePointer<CChar>) -> Bool {
    var (dot, i) = (0, 0)
    while name[i] != 0 {
      if name[i] == CChar(UInt8(ascii: ".")) { dot = i }
      i += 1
    }
    if dot == 0 { return false }
    for number in Int32(0)..<3 {
      if let weight = QuantisedWeight(name, dot, QuantisedWeight.Kind(rawValue: number)!, in: self),
        weight.reads(name + dot + 1)
      {
        return true
      }
    }
    return false
  }
}
