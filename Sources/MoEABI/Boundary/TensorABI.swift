import CMoE
import MoE

extension moe_tensor {
  /// Describes a parameter of the library's.
  init(_ parameter: Parameter, struct_size: Int) {
    self.init()
    self.struct_size = struct_size
    name = parameter.name
    dtype = parameter.type.rawValue
    rank = Int32(truncatingIfNeeded: parameter.rank)
    let (a, b, c) = parameter.shape
    shape = (Int64(a), parameter.rank > 1 ? Int64(b) : 0, parameter.rank > 2 ? Int64(c) : 0, 0)
    strides = (Int64(b * c), parameter.rank > 1 ? Int64(c) : 0, parameter.rank > 2 ? 1 : 0, 0)
    data = UnsafeMutableRawPointer(parameter.data)
    grad = UnsafeMutableRawPointer(parameter.gradMemory)
    buffer = parameter.isBuffer ? 1 : 0
    frozen = parameter.isFrozen ? 1 : 0
  }
}

/// The caller's array of tensors. Its elements are as far apart as the caller's struct is large.
struct TensorList {
  let count: Int
  private let start: UnsafeRawPointer
  private let distance: Int

  init(_ tensors: UnsafePointer<moe_tensor>?, count: Int64) throws(Fault) {
    try require(Int(count), "count", from: 0, to: Int(Int32.max))
    self.count = Int(count)
    let tensors = try array(tensors, count: self.count, "tensors")
    start = UnsafeRawPointer(tensors)
    distance = count == 0 ? 0 : try requireSize(tensors, "tensors[0]")
    for index in 0..<self.count { try check(index) }
  }

  private func pointer(_ index: Int) -> UnsafePointer<moe_tensor> {
    (start + index * distance).assumingMemoryBound(to: moe_tensor.self)
  }

  private func check(_ index: Int) throws(Fault) {
    let size = try requireSize(pointer(index), "tensors")
    if size != distance {
      throw .invalid("tensors[\(index)]: struct_size = \(size) differs from tensors[0]'s \(distance)")
    }
    let tensor = pointer(index).pointee
    if tensor.frozen != 0 && tensor.frozen != 1 {
      throw .invalid("\(place(index)): frozen = \(Int(tensor.frozen)) is neither 0 nor 1")
    }
    if ElementType(rawValue: tensor.dtype) == nil {
      throw withTypes(forTokens: false) {
        .invalid("\(place(index)): dtype = \(Int(tensor.dtype)) is none of \($0)")
      }
    }
    guard tensor.rank >= 1 && tensor.rank <= 4 else {
      throw .invalid("\(place(index)): rank = \(Int(tensor.rank)) is not 1 to 4")
    }
    // Row-major without gaps: the last stride is 1, each other one the product of the dimensions behind it.
    var product = 1
    var dimension = Int(tensor.rank) - 1
    var (gapless, isEmpty) = (true, false)
    while dimension >= 0 {
      let extent = Int(tensor.extent(dimension))
      if extent < 0 { throw .invalid("\(place(index)): shape[\(dimension)] = \(extent) is negative") }
      if Int(tensor.stride(dimension)) != product && extent > 1 { gapless = false }
      // A 0 makes the tensor empty, and the other dimensions no smaller.
      let (next, overflow) = product.multipliedReportingOverflow(by: max(extent, 1))
      if overflow || next > Int.max / MemoryLayout<Float>.size {
        throw .invalid("\(place(index)): the bytes of shape do not fit in 63 bits")
      }
      product = next
      if extent == 0 { isEmpty = true }
      dimension -= 1
    }
    let unset = tensor.strides.0 == 0 && tensor.strides.1 == 0 && tensor.strides.2 == 0 && tensor.strides.3 == 0
    if !gapless && !unset && !isEmpty {
      throw .invalid("\(place(index)): strides are not row-major without gaps (all 0 stands for that)")
    }
  }

  /// Fits in 63 bits: the dimensions' product does, that of an empty tensor's too where a 0 counts as 1.
  func elements(_ index: Int) -> Int {
    let tensor = pointer(index).pointee
    var product = 1
    for dimension in 0..<Int(tensor.rank) { product *= Int(tensor.extent(dimension)) }
    return product
  }

  func type(_ index: Int) -> ElementType { ElementType(rawValue: pointer(index).pointee.dtype)! }
  func name(_ index: Int) -> UnsafePointer<CChar>? { pointer(index).pointee.name }
  /// For messages.
  func place(_ index: Int) -> TensorPlace { TensorPlace(index: index, name: name(index)) }
  func index(of name: UnsafePointer<CChar>) -> Int? {
    for index in 0..<count { if let own = self.name(index), compareText(own, name) == 0 { return index } }
    return nil
  }

  /// The matrices that a tensor's last two dimensions make; nil where it has one dimension.
  func matrix(_ index: Int) -> Optimizer.Matrix? {
    let tensor = pointer(index).pointee
    let rank = Int(tensor.rank)
    if rank < 2 { return nil }
    return Optimizer.Matrix(rows: Int(tensor.extent(rank - 2)), columns: Int(tensor.extent(rank - 1)))
  }

  func shape(_ index: Int) -> StoredShape {
    let tensor = pointer(index).pointee
    var shape = StoredShape()
    for dimension in 0..<Int(tensor.rank) { shape.append(Int(tensor.extent(dimension))) }
    return shape
  }

  /// Call `requireGrad` first, and `requireData`.
  func grad(_ index: Int) -> UnsafeMutablePointer<Float> {
    memory(pointer(index).pointee.grad).assumingMemoryBound(to: Float.self)
  }
  func data(_ index: Int) -> UnsafeMutableRawPointer { memory(pointer(index).pointee.data) }

  func requireGrad(_ index: Int) throws(Fault) {
    try requireNotFrozen(index)
    try requireValues(pointer(index).pointee.grad, .f32, index, "grad", cure: ", or leave its step to backward")
  }
  func requireNotFrozen(_ index: Int) throws(Fault) {
    if pointer(index).pointee.frozen == 0 { return }
    throw .invalid(
      "\(place(index)) is frozen, so that it has no gradient: leave it out, and make optimizers without it"
    )
  }
  func requireData(_ index: Int) throws(Fault) {
    try requireValues(pointer(index).pointee.data, type(index), index, "data", cure: "")
  }

  /// The structs themselves.
  func addStructs(to operands: inout Operands) throws(Fault) {
    try operands.add(Operand(start, bytes: byteCount(count, distance), cText("tensors"), writes: false))
  }

  /// What a call reads or writes of tensor `index`; NULL has no memory.
  func dataOperand(_ index: Int, writes: Bool) -> Operand {
    let tensor = pointer(index).pointee
    return Operand(
      tensor.data, bytes: byteCount(elements(index), of: type(index)), tensor.name, writes: writes,
      part: .tensorData, index: index)
  }

  func gradOperand(_ index: Int, writes: Bool) -> Operand {
    let tensor = pointer(index).pointee
    return Operand(
      tensor.grad, bytes: byteCount(elements(index), MemoryLayout<Float>.size), tensor.name, writes: writes,
      part: .tensorGrad, index: index)
  }

  private func requireValues(
    _ memory: UnsafeMutableRawPointer?, _ type: ElementType, _ index: Int, _ field: StaticString, cure: StaticString
  ) throws(Fault) {
    guard memory != nil || elements(index) == 0 else {
      throw .invalid("\(place(index)): \(field) is NULL: give it memory\(cure)")
    }
    guard Int(bitPattern: memory) % type.alignment == 0 else {
      throw .invalid("\(place(index)): \(field) is not aligned to \(type.alignment) bytes")
    }
  }

  /// An empty tensor has no memory; any address that is not nil stands for it.
  private func memory(_ memory: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer {
    memory ?? UnsafeMutableRawPointer(bitPattern: MemoryLayout<Float>.alignment)!
  }
}

/// Which of a list's tensors it is.
struct TensorPlace {
  let index: Int
  let name: UnsafePointer<CChar>?
}

extension ErrorText.StringInterpolation {
  /// "tensors[3] (norm.weight)", or "tensors[3]" of one without a name.
  mutating func appendInterpolation(_ tensor: TensorPlace) {
    appendLiteral("tensors[")
    appendInterpolation(tensor.index)
    appendLiteral("]")
    guard let name = tensor.name else { return }
    appendLiteral(" (")
    appendInterpolation(name)
    appendLiteral(")")
  }
}

extension moe_tensor {
  fileprivate func extent(_ dimension: Int) -> Int64 {
    switch dimension {
    case 0: shape.0
    case 1: shape.1
    case 2: shape.2
    default: shape.3
    }
  }

  fileprivate func stride(_ dimension: Int) -> Int64 {
    switch dimension {
    case 0: strides.0
    case 1: strides.1
    case 2: strides.2
    default: strides.3
    }
  }
}
