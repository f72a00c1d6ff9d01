import CMoE
import MoE

@implementation @_cdecl("moe_training_save")
public func moe_training_save(
  _ context: OpaquePointer?, _ training: UnsafePointer<moe_training>?, _ path: UnsafePointer<CChar>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let training = try read(training, "training")
    let path = try required(path, "path")
    try withState(training, in: context) { (state, _) throws(Fault) in try state.save(to: path, step: training.step) }
  }
}

@implementation @_cdecl("moe_training_load")
public func moe_training_load(
  _ context: OpaquePointer?, _ training: UnsafeMutablePointer<moe_training>?, _ path: UnsafePointer<CChar>?
) -> moe_status {
  attempt { () throws(Fault) in
    try load(training, from: path, in: try handle(context, "context", as: Context.self), over: nil)
  }
}

@implementation @_cdecl("moe_training_save_distributed")
public func moe_training_save_distributed(
  _ context: OpaquePointer?, _ training: UnsafePointer<moe_training>?,
  _ communicator: UnsafePointer<moe_communicator>?, _ spread: UnsafePointer<UInt8>?, _ path: UnsafePointer<CChar>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try overRanks(communicator, in: context) { (ranks) throws(Fault) in
      let training = try read(training, "training")
      let path = try required(path, "path")
      try withState(training, in: context, over: TrainingState.Spread(ranks, spread)) { (state, _) throws(Fault) in
        try state.save(to: path, step: training.step)
      }
    }
  }
}

@implementation @_cdecl("moe_training_load_distributed")
public func moe_training_load_distributed(
  _ context: OpaquePointer?, _ training: UnsafeMutablePointer<moe_training>?,
  _ communicator: UnsafePointer<moe_communicator>?, _ spread: UnsafePointer<UInt8>?, _ path: UnsafePointer<CChar>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try overRanks(communicator, in: context) { (ranks) throws(Fault) in
      try load(training, from: path, in: context, over: TrainingState.Spread(ranks, spread))
    }
  }
}

/// A call that ranks make together: what one of them finds wrong is the others' error, too.
func overRanks(
  _ communicator: UnsafePointer<moe_communicator>?, in context: ContextPointer,
  _ body: (RanksPointer) throws(Fault) -> Void
) throws(Fault) {
  let ranks = try RanksPointer.create(try Communicator(try read(communicator, "communicator")), in: context)
  defer { ranks.free(in: context) }
  try ranks.pointee.beginCall()
  do throws(Fault) {
    try body(ranks)
  } catch {
    throw ranks.pointee.told(error)
  }
}

private func load(
  _ training: UnsafeMutablePointer<moe_training>?, from path: UnsafePointer<CChar>?, in context: ContextPointer,
  over spread: TrainingState.Spread?
) throws(Fault) {
  var operands = Operands()
  let (training, parts) = try operands.updates(training, "training")
  let path = try required(path, "path")
  try withState(parts, in: context, over: spread) { (state, lists) throws(Fault) in
    try operands.requireApart(lists, in: context)
    training.pointee.step = try state.load(from: path)
  }
}

private func withState(
  _ training: moe_training, in context: ContextPointer, over spread: TrainingState.Spread? = nil,
  _ body: (TrainingState, TrainingOperands) throws(Fault) -> Void
) throws(Fault) {
  let partial = training.without_unallocated == 1
  let counts = TrainingState.Counts(
    layers: Int(training.n_layers), optimizers: Int(training.n_optimizers), statistics: Int(training.n_statistics),
    tensors: Int(training.n_tensors), withoutUnallocated: partial)
  let layers = try array(training.layers, count: counts.layers, "training.layers")
  let optimizers = try array(training.optimizers, count: counts.optimizers, "training.optimizers")
  let statistics = try array(training.statistics, count: counts.statistics, "training.statistics")
  let tensors = try TensorList(training.tensors, count: training.n_tensors)
  try TrainingState.with(
    counts, in: context, over: spread,
    layer: { (n) throws(Fault) in
      let layer = try handle(layers[n], "training.layers", as: Layer.self)
      if spread == nil { try layer.pointee.requireWhole() }
      try layer.pointee.requireWholeExperts()
      if !partial { try layer.pointee.requireMemory() }
      return layer
    },
    optimizer: { (n) throws(Fault) in
      let optimizer = try handle(optimizers[n], "training.optimizers", as: Optimizer.self)
      if !partial { try optimizer.pointee.requireState() }
      return optimizer
    },
    statistics: { (n) throws(Fault) in try handle(statistics[n], "training.statistics", as: Statistics.self) },
    tensor: { (n) throws(Fault) in
      try tensors.requireData(n)
      return CallerTensor(data: tensors.data(n), type: tensors.type(n), shape: tensors.shape(n))
    },
    { (state) throws(Fault) in
      try body(
        state,
        TrainingOperands(
          counts: counts, layers: layers, optimizers: optimizers, statistics: statistics, tensors: tensors))
    })
}

/// What loading overwrites. A handle that is listed twice would be loaded twice.
private struct TrainingOperands: OperandList {
  let counts: TrainingState.Counts
  let layers: UnsafePointer<OpaquePointer?>
  let optimizers: UnsafePointer<OpaquePointer?>
  let statistics: UnsafePointer<OpaquePointer?>
  let tensors: TensorList

  func visit(_ body: (Operand) -> Void) {
    func handle(_ pointer: OpaquePointer?, _ name: StaticString, _ n: Int) {
      body(Operand(UnsafeRawPointer(pointer), bytes: 1, cText(name), writes: true, part: .ofTraining, index: n))
    }
    for n in 0..<counts.layers {
      handle(layers[n], "layers", n)
      let layer = LayerPointer(layers[n]!).pointee
      for index in 0..<layer.parameterCount { body(Operand(data: layer.parameter(index), writes: true)) }
    }
    for n in 0..<counts.optimizers {
      handle(optimizers[n], "optimizers", n)
      let optimizer = OptimizerPointer(optimizers[n]!).pointee
      body(
        Operand(
          optimizer.stateMemory, bytes: UInt(optimizer.stateBytes), cText("optimizers' states"), writes: true,
          part: .ofTraining, index: n))
    }
    for n in 0..<counts.statistics { handle(statistics[n], "statistics", n) }
    for n in 0..<tensors.count { body(tensors.dataOperand(n, writes: true)) }
  }
}
