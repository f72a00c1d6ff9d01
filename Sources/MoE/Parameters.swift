import CShims

/// What a tensor's elements are. Numbers as in moe_dtype.
public enum ElementType: Int32 {
  case f32 = 0
  case bf16 = 1

  public var size: Int { self == .f32 ? 4 : 2 }
}

/// One parameter tensor: row-major without gaps. Its gradient is float32 whatever the type, so that sums lose nothing.
public struct Parameter {
  public let name: StaticString
  public let rank: Int
  public let shape: (Int, Int, Int)  // entries from `rank` on are 1
  public let count: Int
  public let type: ElementType
  public var bytes: Int { count * type.size }
  public fileprivate(set) var data: UnsafeMutableRawPointer?
  public fileprivate(set) var grad: UnsafeMutablePointer<Float>?
  fileprivate var ownsData = true
  fileprivate var ownsGrad = true
}

/// The layer's parameters, in the order a token meets them.
struct Parameters {
  enum Role: Int {
    case routerWeight  // [E,H]
    case routerBias  // [E]
    case gateWeight  // [E,I,H]
    case gateBias  // [E,I]
    case upWeight  // [E,I,H]
    case upBias  // [E,I]
    case downWeight  // [E,H,I]
    case downBias  // [E,H]
    case selectionBias  // [E], without a gradient
    case expertScale  // [E]
  }

  static let capacity = 10
  private let slots: UnsafeMutablePointer<Parameter?>

  init(_ slots: UnsafeMutablePointer<Parameter?>) {
    self.slots = slots
    slots.initialize(repeating: nil, count: Self.capacity)
  }

  subscript(role: Role) -> Parameter? { slots[role.rawValue] }

  /// A float32 tensor's values.
  func data(_ role: Role) -> UnsafeMutablePointer<Float>? { memory(role)?.assumingMemoryBound(to: Float.self) }
  /// Those of a tensor of either type.
  func memory(_ role: Role) -> UnsafeMutableRawPointer? { slots[role.rawValue]?.data }
  func value(_ role: Role, _ index: Int) -> Float {
    let p = slots[role.rawValue]!
    switch p.type {
    case .f32: return p.data!.assumingMemoryBound(to: Float.self)[index]
    case .bf16: return Float(bitPattern: UInt32(p.data!.assumingMemoryBound(to: UInt16.self)[index]) << 16)
    }
  }
  func grad(_ role: Role) -> UnsafeMutablePointer<Float>? { slots[role.rawValue]?.grad }

  // MARK: the public list, which skips what the configuration does not have

  var count: Int {
    var count = 0
    for slot in 0..<Self.capacity where slots[slot] != nil { count += 1 }
    return count
  }

  subscript(index: Int) -> Parameter { slots[slot(index)]! }

  private func slot(_ index: Int) -> Int {
    var left = index
    for slot in 0..<Self.capacity where slots[slot] != nil {
      if left == 0 { return slot }
      left -= 1
    }
    return 0
  }

  func bind(
    _ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?, allocator: Allocator
  ) {
    let slot = slot(index)
    // What is bound already, the library's own memory perhaps, stays as it is.
    if slots[slot]!.data != data {
      if slots[slot]!.ownsData { allocator.deallocate(slots[slot]!.data) }
      slots[slot]!.data = data
      slots[slot]!.ownsData = false
    }
    guard let grad, slots[slot]!.grad != grad else { return }
    if slots[slot]!.ownsGrad { allocator.deallocate(slots[slot]!.grad) }
    slots[slot]!.grad = grad
    slots[slot]!.ownsGrad = false
  }

  func zeroGrad() {
    for slot in 0..<Self.capacity {
      if let parameter = slots[slot], let grad = parameter.grad { grad.update(repeating: 0, count: parameter.count) }
    }
  }

  // MARK: life

  func allocate(_ c: Configuration, allocator: Allocator) throws(Fault) {
    try add(.routerWeight, "router.weight", (c.experts, c.hidden, 1), rank: 2, c, allocator)
    if c.routerBias { try add(.routerBias, "router.bias", (c.experts, 1, 1), rank: 1, c, allocator) }
    if c.gated {
      try add(.gateWeight, "experts.gate.weight", (c.experts, c.intermediate, c.hidden), rank: 3, c, allocator)
      if c.expertBias {
        try add(.gateBias, "experts.gate.bias", (c.experts, c.intermediate, 1), rank: 2, c, allocator)
      }
    }
    if !c.linear {
      try add(.upWeight, "experts.up.weight", (c.experts, c.intermediate, c.hidden), rank: 3, c, allocator)
      if c.expertBias { try add(.upBias, "experts.up.bias", (c.experts, c.intermediate, 1), rank: 2, c, allocator) }
    }
    let (weight, bias): (StaticString, StaticString) =
      c.linear ? ("experts.weight", "experts.bias") : ("experts.down.weight", "experts.down.bias")
    try add(.downWeight, weight, (c.experts, c.hidden, c.intermediate), rank: 3, c, allocator)
    if c.expertBias { try add(.downBias, bias, (c.experts, c.hidden, 1), rank: 2, c, allocator) }
    if c.choice.selectionBias {
      try add(.selectionBias, "router.selection_bias", (c.experts, 1, 1), rank: 1, c, allocator)
    }
    if c.choice.expertScale { try add(.expertScale, "router.expert_scale", (c.experts, 1, 1), rank: 1, c, allocator) }
  }

  private func add(
    _ role: Role, _ name: StaticString, _ shape: (Int, Int, Int), rank: Int, _ c: Configuration, _ allocator: Allocator
  ) throws(Fault) {
    let count = shape.0 * shape.1 * shape.2  // fits: the boundary has seen to that
    let type = rank == 3 ? c.weights : .f32  // the experts' matrices
    var parameter = Parameter(name: name, rank: rank, shape: shape, count: count, type: type)
    parameter.data = try allocator.allocate(bytes: count * type.size)  // fits, as count does in float32
    slots[role.rawValue] = parameter  // from here on `free` sees it
    if c.trainable && role != .selectionBias {
      slots[role.rawValue]!.grad = try allocator.allocate(Float.self, count: count)
    }
  }

  func free(allocator: Allocator) {
    for slot in 0..<Self.capacity {
      guard let parameter = slots[slot] else { continue }
      if parameter.ownsData { allocator.deallocate(parameter.data) }
      if parameter.ownsGrad { allocator.deallocate(parameter.grad) }
    }
  }

  // MARK: initial values

  /// Kaiming for the router, Xavier for the experts' weights, PyTorch's default for biases (include/moe.h); gradients 0.
  /// Comes after all allocations, so that a layer that does not fit is refused before any memory is touched.
  func initialise(_ c: Configuration, _ kernels: UnsafePointer<moei_kernels>) {
    zeroGrad()
    let fromHidden = 1 / Double(c.hidden).squareRoot()
    let fromIntermediate = 1 / Double(c.intermediate).squareRoot()
    let xavier = (6 / Double(c.hidden + c.intermediate)).squareRoot()
    let random = Random(kernels: kernels, seed: c.seed, stream: 0, step: 0)
    random.of(.routerWeight)
      .fillNormal(data(.routerWeight)!, count: self[.routerWeight]!.count, deviation: fromHidden)
    fill(.routerBias, fromHidden, random)
    fill(.gateWeight, xavier, random)
    fill(.gateBias, fromHidden, random)
    fill(.upWeight, xavier, random)
    fill(.upBias, fromHidden, random)
    fill(.downWeight, xavier, random)
    fill(.downBias, fromIntermediate, random)
    data(.selectionBias)?.update(repeating: 0, count: c.experts)
    data(.expertScale)?.update(repeating: 1, count: c.experts)
  }

  /// Uniform values, in bfloat16 the same ones rounded.
  private func fill(_ role: Role, _ bound: Double, _ random: Random) {
    guard let p = self[role] else { return }
    let random = random.of(role)
    guard p.type == .bf16 else {
      return random.fillUniform(data(role)!, from: 0, count: p.count, bound: Float(bound))
    }
    let stretch = 256  // so that the memory is the stack's
    let data = p.data!.assumingMemoryBound(to: UInt16.self)
    withUnsafeTemporaryAllocation(of: Float.self, capacity: stretch) { values in
      for first in Swift.stride(from: 0, to: p.count, by: stretch) {
        let count = min(stretch, p.count - first)
        random.fillUniform(values.baseAddress!, from: first, count: count, bound: Float(bound))
        random.kernels.pointee.to_bf16(Int64(count), values.baseAddress!, data + first)
      }
    }
  }
}

extension Random {
  /// Numbers for a parameter's initial values: each has a stream of its own.
  fileprivate func of(_ role: Parameters.Role) -> Random {
    Random(kernels: kernels, seed: seed, stream: UInt8(role.rawValue), step: 0)
  }
}
