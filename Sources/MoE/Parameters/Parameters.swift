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
    var isBias: Bool { self == .gateBias || self == .upBias || self == .downBias }
    var isOfMatrices: Bool { Self.ofMatrices.contains(rawValue) }
    /// Which of an expert's it is.
    var matrix: PreparedWeights.Matrix? {
      switch self {
      case .gateWeight: .gate
      case .upWeight: .up
      case .downWeight: .down
      default: nil
      }
    }
    var isOfGroup: Bool { rawValue >= Self.firstOfGroup && rawValue < Self.firstOfGroup + Self.perGroup }

    static func slots(groups: Int) -> Int { count + (groups - 1) * perGroup }

    fileprivate func slot(_ group: Int, _ groups: Int) -> Int {
      rawValue < Self.firstOfGroup ? rawValue : rawValue + (isOfGroup ? group : groups - 1) * Self.perGroup
    }

    /// What stands in a slot, and of which group; 0 for what belongs to none.
    fileprivate static func place(_ slot: Int, _ groups: Int) -> (role: Role, group: Int) {
      let place = slot - firstOfGroup
      if place < 0 { return (Role(rawValue: slot)!, 0) }
      if place >= groups * perGroup { return (Role(rawValue: slot - (groups - 1) * perGroup)!, 0) }
      return (Role(rawValue: firstOfGroup + place % perGroup)!, place / perGroup)
    }

    /// Of the random numbers for initial values. Other streams are in Random.swift.
    fileprivate func stream(_ group: Int) -> UInt8 {
      if group > 0 && isOfGroup { return UInt8(32 + group * Self.perGroup + rawValue - Self.firstOfGroup) }
      return UInt8(rawValue < Role.constant.rawValue ? rawValue : 200 + rawValue)
    }
  }

  private let slots: ParameterSlots
  private let groups: Int
  private var group = 0  // whose experts' parameters are meant
  /// Where matrices lie that come from a file.
  var offloaded: ExpertSlots?

  init(_ arena: inout Arena, groups: Int) {
    self.groups = groups
    slots = ParameterSlots(&arena, count: Role.slots(groups: groups), nameSize: 32)
  }

  /// Once, before anything else.
  func clear() { slots.clear() }

  /// These parameters, where the roles of experts mean those of one group.
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
  func memory(_ role: Role) -> UnsafeMutableRawPointer? { ownSlots?.matrices(role) ?? self[role]?.place }
  /// Where an expert's matrices lie among those of the group in `memory`.
  func place(ofExpert expert: Int) -> Int { ownSlots.map { Int($0.slotOf[expert]) } ?? expert }
  /// Whether the group's matrices come from a file.
  var areOffloaded: Bool { ownSlots != nil }
  private var ownSlots: ExpertSlots? { offloaded?.group == group ? offloaded : nil }

  /// What the parameter is, and of which group; 0 for what belongs to none.
  func place(of parameter: Parameter) -> (role: Role, group: Int) { Role.place(slots.slot(of: parameter), groups) }
  func role(of parameter: Parameter) -> Role { place(of: parameter).role }

  func grad(_ role: Role) -> UnsafeMutablePointer<Float>? { self[role]?.grad }

  /// A group's matrices and biases, as many as it has.
  func forEachOfMatrices(_ body: (Role, Parameter) -> Void) {
    for raw in Role.ofMatrices {
      guard let role = Role(rawValue: raw), let parameter = self[role] else { continue }
      body(role, parameter)
    }
  }

  /// Of one expert's matrices and biases.
  func forEachGradient(ofExpert expert: Int, _ body: (UnsafeMutablePointer<Float>, Int) -> Void) {
    forEachOfMatrices { _, parameter in
      guard let grad = parameter.grad else { return }
      let count = parameter.count / parameter.shape.0
      body(grad + expert * count, count)
    }
  }

  /// What a parameter of the list is, and of which group.
  func place(_ index: Int) -> (role: Role, group: Int) { Role.place(slots.slot(listed: index), groups) }

  // MARK: lists

  var count: Int { slots.listedCount }
  subscript(index: Int) -> Parameter { slots.parameter(index) }
  var trainedCount: Int { slots.trainedCount }
  func trained(_ index: Int) -> Parameter { slots.trained(index) }
  /// Number among the trained.
  func trainedIndex(_ role: Role) -> Int { slots.trainedNumber(slot(role)) }
  var withoutMemory: Parameter? { slots.withoutMemory }
  var withoutValues: Parameter? { slots.withoutValues }
  func zeroGrad(in context: ContextPointer) { slots.zeroGrad(in: context) }

  /// What a slot holds where it is trained, over all ranks: experts' tensors are spread, and some of them may not be here.
  func trained(
    slot: Int, _ c: Configuration, _ ranks: RanksPointer?
  ) -> (name: StaticString, isSpread: Bool, elements: Int, own: Parameter?)? {
    let (role, index) = Role.place(slot, groups)
    let group = c.groups[index]
    guard let spec = role.spec(c, ranks?.pointee.placement.whole(group) ?? group), !spec.isBuffer else { return nil }
    let elements = spec.shape.0 * spec.shape.1 * spec.shape.2
    let isSpread = ranks.map { $0.pointee.placement.strategy != .replicated } ?? false
    return (spec.name, isSpread && role.isOfGroup && !group.isShared, elements, slots[slot])
  }
  var slotCount: Int { slots.count }

  /// Whether any is trained, and whether any matrix or bias of a group's experts is.
  var trainsAny: Bool {
    for index in 0..<trainedCount where trained(index).isTrained { return true }
    return false
  }
  var trainsMatrices: Bool {
    var trains = false
    forEachOfMatrices { _, parameter in trains = trains || parameter.isTrained }
    return trains
  }

  func bind(
    _ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?, allocator: Allocator
  ) {
    slots.bind(slots.slot(listed: index), data: data, grad: grad, allocator: allocator)
  }

  func freeze(_ index: Int, allocator: Allocator) { slots.freeze(slots.slot(listed: index), allocator) }

  // MARK: life

  func allocate(_ c: Configuration, allocator: Allocator) throws(Fault) {
    for slot in 0..<slots.count {
      let (role, index) = Role.place(slot, groups)
      let group = c.groups[index]
      guard let spec = role.spec(c, group) else { continue }
      var use = ParameterSlots.Use(isTrained: c.trainable, isUnallocated: !c.allocates)
      if role.isOfMatrices {
        use.isOfMatrices = true
        use.keepsGradient = c.keepsExpertGradients
        if !c.keepsExpertWeights && spec.rank == 3 && !group.isShared { use.isUnallocated = true }
      }
      try slots.add(slot, spec, use, allocator) { text in
        if !role.isOfGroup { return }
        let prefix: StaticString = group.isShared ? "shared." : "experts."
        text.append(prefix)
        // One group needs no number.
        if group.isShared || !c.groupsAreListed { return }
        text.append(index)
        text.append(".")
      }
    }
  }

  /// Whether a parameter is an experts' matrix of a group that is packed.
  private func isPacked(_ index: Int, _ forms: LayerForms, _ c: Configuration) -> Bool {
    matrix(self[index]).map { forms[c.groups[$0.group]] != nil } ?? false
  }

  /// Gives memory to what has none and is not packed, nor a matrix of the group that comes from files.
  func allocate(
    withoutPacked forms: LayerForms, offloaded: ExpertGroup? = nil, _ c: Configuration, _ allocator: Allocator
  ) throws(Fault) {
    for index in 0..<count where !isPacked(index, forms, c) {
      if let offloaded, let own = matrix(self[index]), own.group == offloaded.index { continue }
      try slots.allocate(slots.slot(listed: index), allocator)
    }
  }

  /// Gives up the memory of what is packed.
  func release(packed forms: LayerForms, _ c: Configuration, _ allocator: Allocator) {
    for index in 0..<count where isPacked(index, forms, c) { slots.release(slots.slot(listed: index), allocator) }
  }

  /// Which matrix of which group's experts a parameter of these is; nil where it is none.
  func matrix(_ parameter: Parameter) -> (group: Int, matrix: PreparedWeights.Matrix)? {
    guard parameter.isOfMatrices && parameter.rank == 3 else { return nil }
    let place = place(of: parameter)
    return place.role.matrix.map { (place.group, $0) }
  }

  /// Whether the matrices of a group are in few bits.
  func notePacked(_ forms: LayerForms, _ c: Configuration) {
    for index in 0..<count {
      guard let place = matrix(self[index]) else { continue }
      slots.notePacked(slots.slot(listed: index), inBlocks: forms[c.groups[place.group]]?.isFrozen ?? false)
    }
  }

  func allocateGradients(in context: ContextPointer) throws(Fault) { try slots.allocateGradients(in: context) }

  func release(_ index: Int, _ allocator: Allocator) { slots.release(slots.slot(listed: index), allocator) }

  /// The first that is in its packed copy alone.
  var released: Parameter? {
    for index in 0..<count where self[index].isReleased { return self[index] }
    return nil
  }

  /// Whether any of a group's matrices is in its packed copy alone: the others may be bound again one by one.
  var areReleased: Bool {
    func isReleased(_ role: Role) -> Bool { self[role]?.isReleased ?? false }
    return isReleased(.gateWeight) || isReleased(.upWeight) || isReleased(.downWeight)
  }

  func free(allocator: Allocator) { slots.free(allocator) }

  /// Gradients are 0. Comes after all allocations, so that a layer that does not fit is refused before any memory is touched.
  func initialise(_ c: Configuration, _ ranks: RanksPointer?, in context: ContextPointer) {
    zeroGrad(in: context)
    for index in 0..<count {
      let parameter = self[index]
      let (role, group) = Role.place(slots.slot(of: parameter), groups)
      let (own, whole) = (c.groups[group], ranks?.pointee.placement.whole(c.groups[group]) ?? c.groups[group])
      guard let spec = role.spec(c, whole) else { continue }
      // Each has a stream of its own, in which experts on several ranks, and slices of them, have their places.
      let random = Random(kernels: context.kernels, seed: c.seed, stream: role.stream(group), step: 0)
      if role.isOfMatrices, role != .downBias, own.intermediate != whole.intermediate {
        // Of down.weight a part of each output's row is here, of all others a part of each expert's.
        let rows = parameter.shape.0 * (role == .downWeight ? parameter.shape.1 : 1)
        let each = parameter.count / rows / own.intermediate  // elements of an inner feature
        let first = ranks!.pointee.placement.slice(group, of: ranks!.pointee.rank).lowerBound
        parameter.fill(spec.initial, random, rows: rows, of: whole.intermediate * each, from: first * each)
        continue
      }
      let expert = role.isOfGroup && !own.isShared ? ranks?.pointee.owned(inGroup: group).lowerBound ?? 0 : 0
      parameter.fill(spec.initial, random, from: expert * (parameter.count / parameter.shape.0))
    }
  }
}

extension Parameters.Role {
  /// What a layer has of it, nil where its configuration asks for none: Kaiming for gates, Xavier for the experts' weights,
  /// PyTorch's default for biases (include/moe.h). `group` is whose experts' it is.
  func spec(_ c: Configuration, _ group: ExpertGroup) -> ParameterSpec? {
    let (e, h) = (c.experts, c.hidden)
    let fan = 1 / Double(h).squareRoot()
    switch self {
    case .routerWeight: return c.hasGate ? .matrix("router.weight", e, h, .normal(fan)) : nil
    case .routerBias: return c.hasGate && c.routerBias ? .vector("router.bias", e, .uniform(fan)) : nil
    case .gateWeight, .gateBias, .upWeight, .upBias, .downWeight, .downBias, .constant: return spec(group)
    case .selectionBias:
      return c.choice.selectionBias ? .vector("router.selection_bias", e, .value(0)).buffer() : nil
    case .expertScale: return c.choice.expertScale ? .vector("router.expert_scale", e, .value(1)) : nil
    case .coarseWeight: return c.coarseGroups.map { .matrix("router.coarse.weight", $0, h, .normal(fan)) }
    case .coarseBias:
      return c.routerBias ? c.coarseGroups.map { .vector("router.coarse.bias", $0, .uniform(fan)) } : nil
    case .noiseWeight: return c.exploration.noise == .learned ? .matrix("router.noise.weight", e, h, .value(0)) : nil
    case .normWeight:
      let hasWeight = c.exploration.batchNorm != nil || c.routerNorm?.hasWeight == true
      return hasWeight ? .vector("router.norm.weight", h, .value(1)) : nil
    case .normBias: return c.exploration.batchNorm == nil ? nil : .vector("router.norm.bias", h, .value(0))
    case .runningMean:
      return c.exploration.batchNorm == nil ? nil : .vector("router.norm.running_mean", h, .value(0)).buffer()
    case .runningVariance:
      return c.exploration.batchNorm == nil ? nil : .vector("router.norm.running_var", h, .value(1)).buffer()
    case .activeExperts: return c.warmup.map { .vector("router.active_experts", 1, .value(Float($0.start))).buffer() }
    case .sharedRouterWeight:
      return c.sharedGates > 0 ? .matrix("shared.router.weight", c.sharedGates, h, .normal(fan)) : nil
    case .sharedRouterBias:
      return c.sharedGate == .residual ? .vector("shared.router.bias", 2, .uniform(fan)) : nil
    case .outputBias: return c.outputBias ? .vector("output.bias", h, .value(0)) : nil
    }
  }

  private func spec(_ group: ExpertGroup) -> ParameterSpec? {
    let (e, h, i) = (group.experts, group.hidden, group.intermediate)
    let (fan, innerFan) = (1 / Double(h).squareRoot(), 1 / Double(max(i, 1)).squareRoot())
    let xavier = (6 / Double(h + i)).squareRoot()
    if e == 0 { return nil }
    if self == .constant { return group.kind == .constant ? .matrix("constant", e, h, .value(0)) : nil }
    if !group.multiplies { return nil }
    let (hasUp, weights) = (!group.linear, group.weights)
    switch self {
    case .gateWeight: return group.gated ? .matrices("gate.weight", e, i, h, .uniform(xavier)).stored(as: weights) : nil
    case .gateBias: return group.gated && group.hasBias ? .matrix("gate.bias", e, i, .uniform(fan)) : nil
    case .upWeight: return hasUp ? .matrices("up.weight", e, i, h, .uniform(xavier)).stored(as: weights) : nil
    case .upBias: return hasUp && group.hasBias ? .matrix("up.bias", e, i, .uniform(fan)) : nil
    case .downWeight:
      return .matrices(hasUp ? "down.weight" : "weight", e, h, i, .uniform(xavier)).stored(as: weights)
    case .downBias: return group.hasDownBias ? .matrix(hasUp ? "down.bias" : "bias", e, h, .uniform(innerFan)) : nil
    default: return nil
    }
  }
}

extension Configuration {
  /// Groups that a coarse gate chooses among.
  fileprivate var coarseGroups: Int? { router.hasCoarseGate ? choice.groups?.count : nil }
}
