import CMoE
import MoE

@implementation @_cdecl("moe_adamw_create")
public func moe_adamw_create(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_adamw_config>?, _ tensors: UnsafePointer<moe_tensor>?,
  _ count: Int64, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let config = config == nil ? .standard : try read(config, "config")
    let rule = AdamW(
      learningRate: config.learning_rate, beta1: config.beta1, beta2: config.beta2, epsilon: config.epsilon,
      weightDecay: config.weight_decay)
    let state = try OptimizerState(
      config.state_dtype, config.unallocated_state, config.stochastic_rounding, seed: config.seed)
    try create(.adamw(rule), context, state, try TensorList(tensors, count: count), out)
  }
}

@implementation @_cdecl("moe_sgd_create")
public func moe_sgd_create(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_sgd_config>?, _ tensors: UnsafePointer<moe_tensor>?,
  _ count: Int64, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let config = config == nil ? .standard : try read(config, "config")
    let rule = SGD(
      learningRate: config.learning_rate, momentum: config.momentum, weightDecay: config.weight_decay)
    let state = try OptimizerState(
      config.state_dtype, config.unallocated_state, config.stochastic_rounding, seed: config.seed)
    try create(.sgd(rule), context, state, try TensorList(tensors, count: count), out)
  }
}

/// What the configs of all rules have in common.
struct OptimizerState {
  let momentType: ElementType
  let allocates: Bool
  let byChance: Bool
  let seed: UInt64

  init(
    _ state_dtype: Int32, _ unallocated_state: Int32, _ stochastic_rounding: Int32, seed: UInt64
  ) throws(Fault) {
    momentType = try elementType(state_dtype, "state_dtype", forTokens: true)
    allocates = unallocated_state == 0
    byChance = stochastic_rounding == 1
    self.seed = seed
  }
}

/// `matrix`: what a tensor consists of, where the rule steps it matrix by matrix.
func create(
  _ rule: Optimizer.Rule, _ context: ContextPointer, _ state: OptimizerState, _ list: TensorList,
  _ out: UnsafeMutablePointer<OpaquePointer?>?, beside reads: Operands = Operands(),
  matrix: (Int) -> Optimizer.Matrix? = { _ in nil }
) throws(Fault) {
  var operands = reads
  let out = try operands.writes(out, 1, "out")
  for index in 0..<list.count { try list.requireNotFrozen(index) }
  try operands.requireApart(fromTrained: list, in: context)
  out.pointee = OpaquePointer(
    try OptimizerPointer.create(
      rule, momentType: state.momentType, seed: state.seed, allocates: state.allocates, tensorCount: list.count,
      in: context
    ) {
      Optimizer.Shape(
        count: list.elements($0), type: list.type($0), matrix: matrix($0), byChance: state.byChance)
    })
}

@implementation @_cdecl("moe_optimizer_free")
public func moe_optimizer_free(_ optimizer: OpaquePointer?) {
  guard let optimizer else { return }
  OptimizerPointer(optimizer).free()
}

@implementation @_cdecl("moe_optimizer_state_size")
public func moe_optimizer_state_size(_ optimizer: OpaquePointer?, _ size: UnsafeMutablePointer<Int>?) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    try required(size, "size").pointee = optimizer.pointee.stateBytes
  }
}

@implementation @_cdecl("moe_optimizer_bind_state")
public func moe_optimizer_bind_state(
  _ optimizer: OpaquePointer?, _ memory: UnsafeMutableRawPointer?, _ size: Int
) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    let memory = try array(
      memory?.assumingMemoryBound(to: Float.self), count: optimizer.pointee.stateBytes, "memory")
    if !optimizer.pointee.hasUnallocatedState {
      throw .badState("the optimizer was created without unallocated_state: it has memory of its own")
    }
    if UInt(bitPattern: size) < UInt(optimizer.pointee.stateBytes) {
      throw .invalid(
        "size = \(UInt64(bitPattern: Int64(size))), but the state has \(optimizer.pointee.stateBytes) bytes")
    }
    optimizer.pointee.bindState(memory)
  }
}

@implementation @_cdecl("moe_optimizer_step")
public func moe_optimizer_step(
  _ optimizer: OpaquePointer?, _ tensors: UnsafePointer<moe_tensor>?, _ count: Int64
) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    var operands = Operands()
    let list = try trained(tensors, count: count, by: optimizer, beside: &operands)
    optimizer.pointee.step { list.trained($0) }
  }
}

@implementation @_cdecl("moe_optimizer_step_clipped")
public func moe_optimizer_step_clipped(
  _ optimizer: OpaquePointer?, _ tensors: UnsafePointer<moe_tensor>?, _ count: Int64, _ max_norm: Double,
  _ norm: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    try requireMaxNorm(max_norm)
    var operands = Operands()
    let norm = try operands.writes(optional: norm, 1, "norm")
    let list = try trained(tensors, count: count, by: optimizer, beside: &operands)
    let found = try optimizer.pointee.step(maxNorm: { _ in max_norm }, { list.trained($0) }, notFinite: list.notFinite)
    norm?.pointee = found
  }
}

/// The list of a step, checked whole: the same tensors as at creation, with values and gradients, none of them twice.
func trained(
  _ tensors: UnsafePointer<moe_tensor>?, count: Int64, by optimizer: OptimizerPointer, beside operands: inout Operands
) throws(Fault) -> TensorList {
  try optimizer.pointee.requireState()
  // Before the list is read: with a count too large, reading would go beyond it.
  let expected = optimizer.pointee.tensorCount
  if Int(count) != expected {
    throw .invalid("count = \(Int(count)), but the optimizer was created for \(expected) tensors")
  }
  let list = try TensorList(tensors, count: count)
  for index in 0..<list.count {
    let (now, then) = (list.elements(index), optimizer.pointee.count(ofTensor: index))
    if now != then {
      throw .invalid("\(list.place(index)): shape has \(now) elements, but \(then) when the optimizer was created")
    }
    try list.requireData(index)
    try list.requireGrad(index)
    let type = list.type(index)
    if type != optimizer.pointee.type(ofTensor: index) {
      throw .invalid(
        "\(list.place(index)): dtype = \(Int(type.rawValue)) differs from that when the optimizer was created")
    }
  }
  try operands.add(stateOf: optimizer)
  try operands.requireApart(fromTrained: list, in: optimizer.pointee.context)
  return list
}

extension Operands {
  mutating func add(stateOf optimizer: OptimizerPointer) throws(Fault) {
    try add(
      Operand(
        optimizer.pointee.stateMemory, bytes: UInt(optimizer.pointee.stateBytes), cText("the optimizer's state"),
        writes: true))
  }

  /// Refuses a tensor that is listed twice, or shares memory with another: it would be stepped or counted twice.
  mutating func requireApart(fromTrained list: TensorList, in context: ContextPointer) throws(Fault) {
    try list.addStructs(to: &self)
    try requireApart(TrainedOperands(tensors: list), in: context)
  }
}

/// Every tensor's data and gradient, each by itself whether they are written or not.
private struct TrainedOperands: OperandList {
  let tensors: TensorList

  func visit(_ body: (Operand) -> Void) {
    for index in 0..<tensors.count {
      body(tensors.dataOperand(index, writes: true))
      body(tensors.gradOperand(index, writes: true))
    }
  }
}

extension TensorList {
  func trained(_ index: Int) -> TrainedTensor {
    TrainedTensor(data: data(index), grad: grad(index), count: elements(index))
  }

  func notFinite(_ index: Int) -> Fault {
    Fault(.notFinite, "\(place(index)): the gradient is not finite")
  }
}

func requireMaxNorm(_ maxNorm: Double) throws(Fault) {
  guard maxNorm > 0 else { throw .invalid("max_norm = \(maxNorm) is not above 0") }
}

@implementation @_cdecl("moe_optimizer_set_learning_rate")
public func moe_optimizer_set_learning_rate(_ optimizer: OpaquePointer?, _ learning_rate: Double) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    try require(learning_rate, "learning_rate", atLeast: 0)
    optimizer.pointee.setLearningRate(learning_rate)
  }
}

@implementation @_cdecl("moe_optimizer_set_momentum")
public func moe_optimizer_set_momentum(_ optimizer: OpaquePointer?, _ momentum: Double) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    try requireShare(momentum, "momentum")
    if !optimizer.pointee.takesMomentum && momentum > 0 {
      throw .badState(
        "momentum = \(momentum), but the optimizer was created with momentum 0, and so without a velocity")
    }
    optimizer.pointee.setMomentum(momentum)
  }
}

@implementation @_cdecl("moe_optimizer_set_group")
public func moe_optimizer_set_group(
  _ optimizer: OpaquePointer?, _ indices: UnsafePointer<Int64>?, _ count: Int64, _ learning_rate_scale: Double,
  _ weight_decay: Double
) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    try require(Int(count), "count", from: 0, to: Int(Int32.max))
    let indices = try array(indices, count: Int(count), "indices")
    try require(learning_rate_scale, "learning_rate_scale", atLeast: 0)
    try require(weight_decay, "weight_decay", atLeast: 0)
    let tensors = optimizer.pointee.tensorCount
    for i in 0..<Int(count) where indices[i] < 0 || indices[i] >= Int64(tensors) {
      throw .invalid("indices[\(i)] = \(Int(indices[i])) is none of the optimizer's \(tensors) tensors")
    }
    let group = Optimizer.Group(learningRateScale: learning_rate_scale, weightDecay: weight_decay)
    for i in 0..<Int(count) { optimizer.pointee.setGroup(ofTensor: Int(indices[i]), group) }
  }
}

@implementation @_cdecl("moe_clip_grad_norm")
public func moe_clip_grad_norm(
  _ context: OpaquePointer?, _ tensors: UnsafePointer<moe_tensor>?, _ count: Int64, _ max_norm: Double,
  _ norm: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let list = try TensorList(tensors, count: count)
    for index in 0..<list.count { try list.requireGrad(index) }
    try requireMaxNorm(max_norm)
    var operands = Operands()
    let norm = try operands.writes(optional: norm, 1, "norm")
    try operands.requireApart(fromTrained: list, in: context)
    let found = try clipGradNorm(
      list.count, { (grad: list.grad($0), count: list.elements($0)) }, maxNorm: max_norm, in: context,
      notFinite: list.notFinite)
    norm?.pointee = found
  }
}
