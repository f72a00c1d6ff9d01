import CShims

/// A model's own parameters; those of the ffn's belong to their layers.
struct ModelParameters {
  /// Once in a model.
  enum Role: Int {
    case embedding  // [V,H]
    case positions  // [P,H]
    case normWeight  // [H]
    case normBias  // [H]
    case output  // [V,H]

    static var count: Int { 5 }
  }

  /// Once in each layer.
  enum LayerRole: Int {
    case norm1Weight  // [H]
    case norm1Bias  // [H]
    case qkvWeight  // [(heads + 2 kv_heads) D, H]
    case qkvBias  // [(heads + 2 kv_heads) D]
    case queryNorm  // [D]
    case keyNorm  // [D]
    case outputWeight  // [H, heads D]
    case outputBias  // [H]
    case norm2Weight  // [H]
    case norm2Bias  // [H]

    static var count: Int { 10 }
  }

  private let slots: UnsafeMutablePointer<Parameter?>  // [Role.count + layers LayerRole.count]
  private let names: UnsafeMutablePointer<CChar>  // [slots, nameSize]
  private let layers: Int

  static var nameSize: Int { 64 }

  init(_ arena: inout Arena, _ c: ModelConfiguration) {
    layers = c.layers
    slots = arena.take(Parameter?.self, Role.count + c.layers * LayerRole.count)
    names = arena.take(CChar.self, Role.count + c.layers * LayerRole.count, Self.nameSize)
  }

  var count: Int { Role.count + layers * LayerRole.count }

  /// Once, before anything else.
  func clear() { slots.initialize(repeating: nil, count: count) }

  static func slot(_ role: Role) -> Int { role.rawValue }
  static func slot(_ n: Int, _ role: LayerRole) -> Int { Role.count + n * LayerRole.count + role.rawValue }

  subscript(slot: Int) -> Parameter? { slots[slot] }
  subscript(role: Role) -> Parameter? { slots[Self.slot(role)] }
  subscript(n: Int, role: LayerRole) -> Parameter? { slots[Self.slot(n, role)] }

  func bind(_ slot: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?, allocator: Allocator) {
    slots[slot]!.bind(data: data, grad: grad, allocator: allocator)
  }

  func zeroGrad() {
    for slot in 0..<count { slots[slot]?.zeroGrad() }
  }

  // MARK: life

  func allocate(_ c: ModelConfiguration, allocator: Allocator) throws(Fault) {
    func add(_ role: Role, _ name: StaticString, _ rows: Int, _ columns: Int? = nil, _ type: ElementType = .f32)
      throws(Fault)
    {
      try self.add(Self.slot(role), nil, name, rows, columns, type, c, allocator)
    }
    if c.vocabulary > 0 { try add(.embedding, "embed.weight", c.vocabulary, c.hidden) }
    if c.positions > 0 { try add(.positions, "positions.weight", c.positions, c.hidden) }
    if c.finalNorm {
      try add(.normWeight, "norm.weight", c.hidden)
      if c.normBias { try add(.normBias, "norm.bias", c.hidden) }
    }
    if c.vocabulary > 0 && !c.tiedOutput { try add(.output, "output.weight", c.vocabulary, c.hidden, c.weights) }
    for n in 0..<c.layers { try allocateLayer(n, c, allocator) }
  }

  private func allocateLayer(_ n: Int, _ c: ModelConfiguration, _ allocator: Allocator) throws(Fault) {
    func add(_ role: LayerRole, _ name: StaticString, _ rows: Int, _ columns: Int? = nil) throws(Fault) {
      try self.add(Self.slot(n, role), n, name, rows, columns, columns == nil ? .f32 : c.weights, c, allocator)
    }
    if c.normPlace != .none {
      try add(.norm1Weight, "norm1.weight", c.hidden)
      if c.normBias { try add(.norm1Bias, "norm1.bias", c.hidden) }
      try add(.norm2Weight, "norm2.weight", c.hidden)
      if c.normBias { try add(.norm2Bias, "norm2.bias", c.hidden) }
    }
    try add(.qkvWeight, "attention.qkv.weight", c.projected, c.hidden)
    if c.qkvBias { try add(.qkvBias, "attention.qkv.bias", c.projected) }
    if c.headNorm {
      try add(.queryNorm, "attention.q_norm.weight", c.headSize)
      try add(.keyNorm, "attention.k_norm.weight", c.headSize)
    }
    try add(.outputWeight, "attention.output.weight", c.hidden, c.queries)
    if c.outputBias { try add(.outputBias, "attention.output.bias", c.hidden) }
  }

  private func add(
    _ slot: Int, _ layer: Int?, _ name: StaticString, _ rows: Int, _ columns: Int?, _ type: ElementType,
    _ c: ModelConfiguration, _ allocator: Allocator
  ) throws(Fault) {
    let memory = names + slot * Self.nameSize
    var text = TextBuffer(memory, capacity: Self.nameSize)
    if let layer { Self.append(layer, to: &text) }
    text.append(name)
    slots[slot] = Parameter(
      name: memory, rank: columns == nil ? 1 : 2, shape: (rows, columns ?? 1, 1), type: type,
      hasGradient: c.trainable)
    try slots[slot]!.allocate(allocator)
  }

  static func append(_ layer: Int, to text: inout TextBuffer) {
    text.append("layers.")
    text.append(layer)
    text.append(".")
  }

  func free(allocator: Allocator) {
    for slot in 0..<count { slots[slot]?.free(allocator) }
  }

  // MARK: initial values

  /// Normal embeddings, Xavier's uniform or normal projections, norms 1, biases 0 (include/moe_model.h); gradients 0.
  func initialise(_ c: ModelConfiguration, _ kernels: UnsafePointer<moei_kernels>) {
    zeroGrad()
    func random(_ seed: UInt64, _ stream: Int) -> Random {
      Random(kernels: kernels, seed: seed, stream: UInt8(stream), step: 0)
    }
    let embeddings = c.initDeviation ?? 0.02
    self[.embedding]?.fillNormal(embeddings, random(c.seed, Role.embedding.rawValue))
    self[.positions]?.fillNormal(embeddings, random(c.seed, Role.positions.rawValue))
    self[.normWeight]?.set(to: 1)
    self[.normBias]?.set(to: 0)
    if let output = self[.output] { project(output, c, random(c.seed, Role.output.rawValue)) }
    for n in 0..<c.layers {
      func ofLayer(_ role: LayerRole) -> Random { random(c.seed(ofLayer: n), role.rawValue) }
      self[n, .norm1Weight]?.set(to: 1)
      self[n, .norm1Bias]?.set(to: 0)
      project(self[n, .qkvWeight]!, c, ofLayer(.qkvWeight))
      self[n, .qkvBias]?.set(to: 0)
      self[n, .queryNorm]?.set(to: 1)
      self[n, .keyNorm]?.set(to: 1)
      project(self[n, .outputWeight]!, c, ofLayer(.outputWeight))
      self[n, .outputBias]?.set(to: 0)
      self[n, .norm2Weight]?.set(to: 1)
      self[n, .norm2Bias]?.set(to: 0)
    }
  }

  private func project(_ weight: Parameter, _ c: ModelConfiguration, _ random: Random) {
    if let deviation = c.initDeviation { return weight.fillNormal(deviation, random) }
    weight.fillUniform((6 / Double(weight.shape.0 + weight.shape.1)).squareRoot(), random)
  }
}
