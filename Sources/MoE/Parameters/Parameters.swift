import CShims

/// The layer's parameters, in the order of the list in moe.h.
struct Parameters {
  enum Role: Int {
    case routerWeight  // [E,H]
    case routerBias  // [E]
    // Of each group of experts, E and I the group's:
    case gateWeight  // [E,I,H]
    case gateBias  // [E,I]
    case upWeight  // [E,I,H]
    case upBias  // [E,I]
    case downWeight  // [E,H,I]
    case downBias  // [E,H]
    case constant  // [E,H]
    // Of the layer:
    case selectionBias  // [E], a buffer
    case expertScale  // [E]
    case coarseWeight  // [G,H]
    case coarseBias  // [G]
    case noiseWeight  // [E,H]
    case normWeight  // [H]
    case normBias  // [H]
    case runningMean  // [H], a buffer
    case runningVariance  // [H], a buffer
    case activeExperts  // [1], a buffer
    case sharedRouterWeight  // [S,H], residual: [2,H]
    case sharedRouterBias  // [2]
    case outputBias  // [H]

    static var count: Int { 22 }
    private static var firstOfGroup: Int { Role.gateWeight.rawValue }
    private static var perGroup: Int { Role.selectionBias.rawValue - firstOfGroup }
    /// Those of an expert with matrices stand one after another.
    static var ofMatrices: ClosedRange<Int> { Role.gateWeight.rawValue...Role.downBias.rawValue }
    private var ofGroup: Bool { rawValue >= Self.firstOfGroup && rawValue < Self.firstOfGroup + Self.perGroup }

    static func slots(groups: Int) -> Int { count + (groups - 1) * perGroup }

    fileprivate func slot(_ group: Int, _ groups: Int) -> Int {
      rawValue < Self.firstOfGroup ? rawValue : rawValue + (ofGroup ? group : groups - 1) * Self.perGroup
    }

    /// Of the random numbers for initial values. Other streams are in Random.swift.
    fileprivate func stream(_ group: Int) -> UInt8 {
      if group > 0 && ofGroup { return UInt8(32 + group * Self.perGroup + rawValue - Self.firstOfGroup) }
      return UInt8(rawValue < Role.constant.rawValue ? rawValue : 200 + rawValue)
    }
  }

  private let slots: UnsafeMutablePointer<Parameter?>
  private let names: UnsafeMutablePointer<CChar>  // [slots, nameSize]
  private let groups: Int
  private var group = 0  // whose experts' parameters are meant
  /// Where matrices lie that come from a file.
  var offloaded: ExpertSlots?

  private static var nameSize: Int { 32 }

  init(_ arena: inout Arena, groups: Int) {
    self.groups = groups
    slots = arena.take(Parameter?.self, Role.slots(groups: groups))
    names = arena.take(CChar.self, Role.slots(groups: groups), Self.nameSize)
  }

  /// Once, before anything else.
  func clear() { slots.initialize(repeating: nil, count: capacity) }

  private var capacity: Int { Role.slots(groups: groups) }

  /// The same, with the experts' parameters those of one group.
  func of(_ group: ExpertGroup) -> Parameters {
    var own = self
    own.group = group.index
    return own
  }

  private func slot(_ role: Role) -> Int { role.slot(group, groups) }

  subscript(role: Role) -> Parameter? { slots[slot(role)] }

  /// A float32 tensor's values.
  func data(_ role: Role) -> UnsafeMutablePointer<Float>? { memory(role)?.assumingMemoryBound(to: Float.self) }
  /// Those of a tensor of any type.
  func memory(_ role: Role) -> UnsafeMutableRawPointer? { ownSlots?.matrices(role) ?? self[role]?.data }
  /// Where an expert's matrices lie among those of the group in `memory`.
  func place(ofExpert expert: Int) -> Int { ownSlots.map { Int($0.slotOf[expert]) } ?? expert }
  /// Whether the group's matrices come from a file.
  var areOffloaded: Bool { ownSlots != nil }
  private var ownSlots: ExpertSlots? { offloaded?.group == group ? offloaded : nil }

  /// Of the group's experts' matrices, that which the parameter is.
  func role(of parameter: Parameter) -> Role {
    if self[.gateWeight]?.name == parameter.name { return .gateWeight }
    return self[.upWeight]?.name == parameter.name ? .upWeight : .downWeight
  }

  func grad(_ role: Role) -> UnsafeMutablePointer<Float>? { self[role]?.grad }

  // MARK: the public list, which skips what the configuration does not have

  var count: Int {
    var count = 0
    for slot in 0..<capacity where slots[slot] != nil { count += 1 }
    return count
  }

  subscript(index: Int) -> Parameter { slots[slot(index)]! }

  private func slot(_ index: Int) -> Int {
    var left = index
    for slot in 0..<capacity where slots[slot] != nil {
      if left == 0 { return slot }
      left -= 1
    }
    return 0
  }

  // MARK: those that optimisers step, which are all but buffers, in the same order

  var trainedCount: Int {
    var count = 0
    for slot in 0..<capacity where slots[slot]?.hasGradient == true { count += 1 }
    return count
  }

  func trained(_ index: Int) -> Parameter {
    var left = index
    var slot = 0
    while true {
      if let parameter = slots[slot], parameter.hasGradient {
        if left == 0 { return parameter }
        left -= 1
      }
      slot += 1
    }
  }

  /// Number among them.
  func trainedIndex(_ role: Role) -> Int {
    var index = 0
    for slot in 0..<slot(role) where slots[slot]?.hasGradient == true { index += 1 }
    return index
  }

  func bind(
    _ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?, allocator: Allocator
  ) {
    slots[slot(index)]!.bind(data: data, grad: grad, allocator: allocator)
  }

  /// The first without memory; nil where all have some.
  var withoutMemory: Parameter? {
    for slot in 0..<capacity { if let parameter = slots[slot], parameter.data == nil { return parameter } }
    return nil
  }

  func zeroGrad() {
    for slot in 0..<capacity { slots[slot]?.zeroGrad() }
  }

  // MARK: life

  func allocate(_ c: Configuration, allocator: Allocator) throws(Fault) {
    let (e, h) = (c.experts, c.hidden)
    func add(_ role: Role, _ name: StaticString, _ rows: Int, _ columns: Int? = nil, buffer: Bool = false) throws(Fault)
    {
      try self.add(
        role, "", nil, name, (rows, columns ?? 1, 1), rank: columns == nil ? 1 : 2, .f32,
        hasGradient: c.trainable && !buffer, isUnallocated: false, c, allocator)
    }
    if c.hasGate {
      try add(.routerWeight, "router.weight", e, h)
      if c.routerBias { try add(.routerBias, "router.bias", e) }
    }
    for index in 0..<c.groupCount { try of(c.groups[index]).allocateExperts(c, c.groups[index], allocator) }
    if c.choice.selectionBias { try add(.selectionBias, "router.selection_bias", e, buffer: true) }
    if c.choice.expertScale { try add(.expertScale, "router.expert_scale", e) }
    if c.router == .hierarchical, let groups = c.choice.groups {
      try add(.coarseWeight, "router.coarse.weight", groups.count, h)
      if c.routerBias { try add(.coarseBias, "router.coarse.bias", groups.count) }
    }
    if c.exploration.noise == .learned { try add(.noiseWeight, "router.noise.weight", e, h) }
    if c.exploration.batchNorm != nil {
      try add(.normWeight, "router.norm.weight", h)
      try add(.normBias, "router.norm.bias", h)
      try add(.runningMean, "router.norm.running_mean", h, buffer: true)
      try add(.runningVariance, "router.norm.running_var", h, buffer: true)
    }
    if c.routerNorm?.hasWeight == true { try add(.normWeight, "router.norm.weight", h) }
    if c.warmup != nil { try add(.activeExperts, "router.active_experts", 1, buffer: true) }
    if c.sharedGates > 0 { try add(.sharedRouterWeight, "shared.router.weight", c.sharedGates, h) }
    if c.sharedGate == .residual { try add(.sharedRouterBias, "shared.router.bias", 2) }
    if c.outputBias { try add(.outputBias, "output.bias", h) }
  }

  private func allocateExperts(_ c: Configuration, _ group: ExpertGroup, _ allocator: Allocator) throws(Fault) {
    let (e, h, i) = (group.experts, group.hidden, group.intermediate)
    func add(_ role: Role, _ name: StaticString, _ shape: (Int, Int, Int), rank: Int) throws(Fault) {
      let prefix: StaticString = group.isShared ? "shared." : "experts."
      // One group needs no number.
      let number = group.isShared || !c.groupsAreListed ? nil : group.index
      try self.add(
        role, prefix, number, name, shape, rank: rank, rank == 3 ? group.weights : .f32, hasGradient: c.trainable,
        isUnallocated: !c.keepsExpertWeights && rank == 3 && !group.isShared, c, allocator)
    }
    if group.kind == .constant { try add(.constant, "constant", (e, h, 1), rank: 2) }
    if !group.multiplies { return }
    if group.gated {
      try add(.gateWeight, "gate.weight", (e, i, h), rank: 3)
      if group.hasBias { try add(.gateBias, "gate.bias", (e, i, 1), rank: 2) }
    }
    if !group.linear {
      try add(.upWeight, "up.weight", (e, i, h), rank: 3)
      if group.hasBias { try add(.upBias, "up.bias", (e, i, 1), rank: 2) }
    }
    try add(.downWeight, group.linear ? "weight" : "down.weight", (e, h, i), rank: 3)
    if group.hasBias { try add(.downBias, group.linear ? "bias" : "down.bias", (e, h, 1), rank: 2) }
  }

  private func add(
    _ role: Role, _ prefix: StaticString, _ number: Int?, _ name: StaticString, _ shape: (Int, Int, Int), rank: Int,
    _ type: ElementType, hasGradient: Bool, isUnallocated: Bool, _ c: Configuration, _ allocator: Allocator
  ) throws(Fault) {
    let slot = slot(role)
    var text = TextBuffer(names + slot * Self.nameSize, capacity: Self.nameSize)
    text.append(prefix)
    if let number {
      text.append(number)
      text.append(".")
    }
    text.append(name)
    let isOfMatrices = Role.ofMatrices.contains(role.rawValue)
    slots[slot] = Parameter(
      name: names + slot * Self.nameSize, rank: rank, shape: shape, type: type, hasGradient: hasGradient,
      isOfMatrices: isOfMatrices, isUnallocated: isUnallocated)
    if isUnallocated { return }
    try slots[slot]!.allocate(allocator, gradient: !isOfMatrices || c.keepsExpertGradients)
  }

  func free(allocator: Allocator) {
    for slot in 0..<capacity { slots[slot]?.free(allocator) }
  }

  // MARK: initial values

  /// Kaiming for gates, Xavier for the experts' weights, PyTorch's default for biases (include/moe.h); gradients 0.
  /// Comes after all allocations, so that a layer that does not fit is refused before any memory is touched.
  func initialise(_ c: Configuration, _ kernels: UnsafePointer<moei_kernels>) {
    zeroGrad()
    let fromHidden = 1 / Double(c.hidden).squareRoot()
    let random = Random(kernels: kernels, seed: c.seed, stream: 0, step: 0)
    fillNormal(.routerWeight, fromHidden, random)
    fill(.routerBias, fromHidden, random)
    for index in 0..<c.groupCount { of(c.groups[index]).initialiseExperts(c.groups[index], random) }
    set(.selectionBias, to: 0)
    set(.expertScale, to: 1)
    fillNormal(.coarseWeight, fromHidden, random)
    fill(.coarseBias, fromHidden, random)
    set(.noiseWeight, to: 0)
    set(.normWeight, to: 1)
    set(.normBias, to: 0)
    set(.runningMean, to: 0)
    set(.runningVariance, to: 1)
    if let warmup = c.warmup { set(.activeExperts, to: Float(warmup.start)) }
    fillNormal(.sharedRouterWeight, fromHidden, random)
    fill(.sharedRouterBias, fromHidden, random)
    set(.outputBias, to: 0)
  }

  private func initialiseExperts(_ group: ExpertGroup, _ random: Random) {
    let fromHidden = 1 / Double(group.hidden).squareRoot()
    let xavier = (6 / Double(group.hidden + group.intermediate)).squareRoot()
    fill(.gateWeight, xavier, random)
    fill(.gateBias, fromHidden, random)
    fill(.upWeight, xavier, random)
    fill(.upBias, fromHidden, random)
    fill(.downWeight, xavier, random)
    fill(.downBias, 1 / Double(max(group.intermediate, 1)).squareRoot(), random)
    set(.constant, to: 0)
  }

  private func set(_ role: Role, to value: Float) { self[role]?.set(to: value) }

  private func fillNormal(_ role: Role, _ deviation: Double, _ random: Random) {
    self[role]?.fillNormal(deviation, stream(role, random))
  }

  private func fill(_ role: Role, _ bound: Double, _ random: Random) {
    if let p = self[role], p.data != nil { p.fillUniform(bound, stream(role, random)) }
  }

  /// Each parameter has a stream of its own.
  private func stream(_ role: Role, _ random: Random) -> Random {
    Random(kernels: random.kernels, seed: random.seed, stream: role.stream(group), step: 0)
  }
}
