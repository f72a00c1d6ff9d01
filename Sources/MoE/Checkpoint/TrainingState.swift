// Everything that a training run goes on from, in one file; moe.h lists the tensors. One list of them serves both ways: each
// is memory that is written to the file or filled from it.

/// A tensor of the caller's own.
public struct CallerTensor {
  let data: UnsafeMutableRawPointer
  let type: ElementType
  let shape: StoredShape

  public init(data: UnsafeMutableRawPointer, type: ElementType, shape: StoredShape) {
    self.data = data
    self.type = type
    self.shape = shape
  }
}

/// What a run consists of.
public struct TrainingState {
  public struct Counts {
    public let layers: Int
    public let optimizers: Int
    public let statistics: Int
    let tensors: Int
    /// What is in memory that the caller bound is not part of the file.
    public let withoutUnallocated: Bool

    public init(layers: Int, optimizers: Int, statistics: Int, tensors: Int, withoutUnallocated: Bool) {
      self.layers = layers
      self.optimizers = optimizers
      self.statistics = statistics
      self.tensors = tensors
      self.withoutUnallocated = withoutUnallocated
    }
  }

  private let count: Counts
  private let context: ContextPointer
  /// Where it is that of several ranks.
  private let spread: SpreadState?
  private let memory: UnsafeMutablePointer<UInt64>  // where all of it begins
  private let layers: UnsafeMutablePointer<LayerPointer>
  private let optimizers: UnsafeMutablePointer<OptimizerPointer>
  private let statistics: UnsafeMutablePointer<StatisticsPointer>
  private let tensors: UnsafeMutablePointer<CallerTensor>
  // Numbers on their way between file and handles.
  private let step: UnsafeMutablePointer<UInt64>  // [1]
  private let seeds: UnsafeMutablePointer<UInt64>  // [layers]
  private let rules: UnsafeMutablePointer<Double>  // [optimizers, Optimizer.mostNumbers]
  private let chances: UnsafeMutablePointer<UInt64>  // [optimizers, Optimizer.chances]
  private let wholeSums: UnsafeMutablePointer<Int64>  // [statistics, Statistics.wholeSums]
  private let realSums: UnsafeMutablePointer<Double>  // [statistics, Statistics.realSums]

  private init(
    _ arena: inout Arena, _ count: Counts, _ context: ContextPointer, _ spread: Spread?, tensors spreadTensors: Int
  ) {
    memory = arena.take(UInt64.self, 1)
    self.spread = spread.map { SpreadState(&arena, $0.ranks, $0.flags, tensors: spreadTensors) }
    self.count = count
    self.context = context
    layers = arena.take(LayerPointer.self, count.layers)
    optimizers = arena.take(OptimizerPointer.self, count.optimizers)
    statistics = arena.take(StatisticsPointer.self, count.statistics)
    tensors = arena.take(CallerTensor.self, count.tensors)
    step = arena.take(UInt64.self, 1)
    seeds = arena.take(UInt64.self, count.layers)
    rules = arena.take(Double.self, count.optimizers, Optimizer.mostNumbers)
    chances = arena.take(UInt64.self, count.optimizers, Optimizer.chances)
    wholeSums = arena.take(Int64.self, count.statistics, Statistics.wholeSums)
    realSums = arena.take(Double.self, count.statistics, Statistics.realSums)
  }

  private func rules(_ n: Int) -> UnsafeMutablePointer<Double> { rules + n * Optimizer.mostNumbers }

  /// Over which ranks, and which tensors of the optimisers are parts of whole ones: [of all optimisers] 0 or 1.
  public struct Spread {
    let ranks: RanksPointer
    let flags: UnsafePointer<UInt8>?

    public init(_ ranks: RanksPointer, _ flags: UnsafePointer<UInt8>?) { (self.ranks, self.flags) = (ranks, flags) }
  }

  /// Runs `body` with the state that the four functions describe; handles and tensors are looked at once, here.
  public static func with(
    _ count: Counts, in context: ContextPointer, over spread: Spread? = nil, layer: (Int) throws(Fault) -> LayerPointer,
    optimizer: (Int) throws(Fault) -> OptimizerPointer, statistics: (Int) throws(Fault) -> StatisticsPointer,
    tensor: (Int) throws(Fault) -> CallerTensor, _ body: (TrainingState) throws(Fault) -> Void
  ) throws(Fault) {
    let allocator = context.pointee.allocator
    var tensors = 0
    if spread != nil { for n in 0..<count.optimizers { tensors += try optimizer(n).pointee.tensorCount } }
    let state = try allocator.make { TrainingState(&$0, count, context, spread, tensors: tensors) }
    defer { allocator.deallocate(state.memory) }
    for n in 0..<count.layers { (state.layers + n).initialize(to: try layer(n)) }
    for n in 0..<count.optimizers { (state.optimizers + n).initialize(to: try optimizer(n)) }
    for n in 0..<count.statistics { (state.statistics + n).initialize(to: try statistics(n)) }
    for n in 0..<count.tensors { (state.tensors + n).initialize(to: try tensor(n)) }
    try body(state)
  }

  public func save(to path: UnsafePointer<CChar>, step number: UInt64) throws(Fault) {
    step.pointee = number
    for n in 0..<count.layers { seeds[n] = layers[n].pointee.configuration.seed }
    for n in 0..<count.optimizers {
      optimizers[n].pointee.getNumbers(rules(n))
      optimizers[n].pointee.getChances(chances + n * Optimizer.chances)
    }
    for n in 0..<count.statistics {
      statistics[n].pointee.getSums(wholeSums + n * Statistics.wholeSums, realSums + n * Statistics.realSums)
    }
    guard let spread else { return try writeSafetensors(self, to: path, in: context) }
    try open(spread, step: number)
    if spread.ranks.pointee.rank == 0 {
      try writeSafetensors(self, to: path, in: context)
    } else {
      try sendTensors(self, in: context)
    }
    try spread.ranks.pointee.agree(SpreadTensor.words, nil, next: nil)
  }

  /// All ranks save, or load, states that are alike.
  private func open(_ spread: SpreadState, step: UInt64?) throws(Fault) {
    var kind = Hash()
    kind.add(step == nil ? 21 : 20)
    kind.add(step ?? 0)
    for n in 0..<count.layers { kind.add(UInt64(layers[n].pointee.parameterCount)) }
    var tensors = 0
    for n in 0..<count.optimizers {
      kind.add(UInt64(optimizers[n].pointee.tensorCount))
      tensors += optimizers[n].pointee.tensorCount
    }
    kind.add(UInt64(count.statistics))
    kind.add(UInt64(count.tensors))
    // Each tensor that is spread is an exchange of its own: ranks that disagree which are would wait for each other for ever.
    spread.add(to: &kind, tensors: tensors)
    kind.add(count.withoutUnallocated ? 1 : 0)
    try spread.ranks.pointee.open(Ranks.AllTokens(), kind: kind)
    spread.ranks.pointee.expect(SpreadTensor.words)
    try spread.share({ elements(ofTensor: $0) }, tensors: tensors)
  }

  /// Of a tensor among those of all optimisers.
  private func elements(ofTensor number: Int) -> Int {
    var left = number
    for n in 0..<count.optimizers {
      if left < optimizers[n].pointee.tensorCount { return optimizers[n].pointee.count(ofTensor: left) }
      left -= optimizers[n].pointee.tensorCount
    }
    return 0
  }

  /// Returns the step. On an error nothing has changed, but where a disk fails on the way.
  public func load(from path: UnsafePointer<CChar>) throws(Fault) -> UInt64 {
    let checkpoint = try CheckpointPointer.open(path, in: context, isMapped: false)
    defer { checkpoint.free() }
    let stored = checkpoint.pointee
    if let spread { try open(spread, step: nil) }
    var expected = 0
    try visit { (tensor) throws(Fault) in
      try stored.require(tensor, path)
      expected += 1
    }
    if stored.count != expected { throw extra(stored, path) }
    // The numbers first, to look at them before anything changes that is not this state's own.
    try visitNumbers { (tensor) throws(Fault) in try stored.copy(tensor) }
    try checkNumbers(path)
    try visitGroups { (tensor) throws(Fault) in try stored.requireAmounts(tensor, path) }
    try visitStatistics { (tensor) throws(Fault) in try stored.requireNotNegative(tensor, path) }
    try spread?.ranks.pointee.agree(SpreadTensor.words, nil, next: SpreadTensor.words)
    do throws(Fault) {
      try visitHandles { (tensor) throws(Fault) in try stored.copy(tensor) }
    } catch {
      throw error.whileOverwriting("the training state is")
    }
    for n in 0..<count.optimizers {
      optimizers[n].pointee.setNumbers(rules(n))
      optimizers[n].pointee.setChances(chances + n * Optimizer.chances)
    }
    for n in 0..<count.statistics {
      statistics[n].pointee.setSums(wholeSums + n * Statistics.wholeSums, realSums + n * Statistics.realSums)
    }
    try spread?.ranks.pointee.agree(SpreadTensor.words, nil, next: nil)
    return step.pointee
  }

  /// Names the first tensor that nothing here would take up.
  private func extra(_ stored: Checkpoint, _ path: UnsafePointer<CChar>) -> Fault {
    for tensor in stored.all {
      var isOurs = false
      // Nothing is thrown.
      try? visit { (own) throws(Fault) in if compareText(own.name, tensor.name) == 0 { isOurs = true } }
      if !isOurs {
        return .invalid(
          """
          \(tensor.name): the file has it, the training state does not: load with the layers, optimisers, statistics and \
          tensors that were saved: \(path)
          """)
      }
    }
    return .invalid("\(path): a tensor is there twice")
  }

  private func checkNumbers(_ path: UnsafePointer<CChar>) throws(Fault) {
    for n in 0..<count.layers where seeds[n] != layers[n].pointee.configuration.seed {
      throw .invalid(
        "layers[\(n)]: seed \(seeds[n]) in the file, \(layers[n].pointee.configuration.seed) here: \(path)")
    }
    for n in 0..<count.optimizers {
      let own = optimizers[n]
      for i in 0..<own.pointee.ruleFacts.numbers where !own.pointee.mayBe(rules(n)[i], number: i) {
        throw .invalid("optimizers[\(n)]: \(rules(n)[i]) is none of its numbers: \(path)")
      }
    }
    // Random numbers count steps in 56 bits.
    for n in 0..<count.optimizers where chances[n * Optimizer.chances + 1] >> 56 != 0 {
      throw .invalid("optimizers[\(n)]: \(chances[n * Optimizer.chances + 1]) steps are too many: \(path)")
    }
    // Counts that are negative could not be added to.
    for i in 0..<count.statistics * Statistics.wholeSums where wholeSums[i] < 0 {
      throw .invalid("statistics[\(i / Statistics.wholeSums)]: \(Int(wholeSums[i])) is negative: \(path)")
    }
  }
}

// MARK: the list

extension TrainingState: OutgoingTensors {
  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    try visitNumbers(body)
    try visitHandles(body)
  }

  private func visitNumbers(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    try one(StateName(kind: "step"), .u64, StoredShape(1), step, body)
    for n in 0..<count.layers {
      try one(StateName(kind: "layers.", n: n, part: ".seed"), .u64, StoredShape(1), seeds + n, body)
    }
    for n in 0..<count.optimizers {
      let facts = optimizers[n].pointee.ruleFacts
      try one(
        StateName(kind: "optimizers.", n: n, part: facts.name), .f64, StoredShape(facts.numbers), rules(n), body)
      try one(
        StateName(kind: "optimizers.", n: n, part: ".random"), .u64, StoredShape(Optimizer.chances),
        chances + n * Optimizer.chances, body)
    }
    for n in 0..<count.statistics {
      try one(
        StateName(kind: "statistics.", n: n, part: ".tokens"), .i64, StoredShape(Statistics.wholeSums),
        wholeSums + n * Statistics.wholeSums, body
      )
      try one(
        StateName(kind: "statistics.", n: n, part: ".sums"), .f64, StoredShape(Statistics.realSums),
        realSums + n * Statistics.realSums, body)
    }
  }

  private func visitHandles(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    for n in 0..<count.layers {
      let layer = layers[n].pointee
      for index in 0..<layer.parameterCount {
        let parameter = layer.parameter(index)
        if count.withoutUnallocated && parameter.isUnallocated { continue }
        try one(
          StateName(kind: "layers.", n: n, part: ".", parameter: parameter.name), StoredType(parameter.type),
          parameter.storedShape, parameter.data!, whole: spread == nil ? nil : layer.spreadExperts(of: parameter), body)
      }
    }
    try visitGroups(body)
    var listed = 0  // tensors of the optimisers so far
    for n in 0..<count.optimizers {
      let optimizer = optimizers[n].pointee
      let before = listed
      listed += optimizer.tensorCount
      if count.withoutUnallocated && optimizer.hasUnallocatedState { continue }
      for index in 0..<optimizer.tensorCount {
        let count = optimizer.count(ofTensor: index)
        let (master, moments) = optimizer.state(ofTensor: index)
        let whole = spread.flatMap { $0[before + index] }
        if let master {
          try one(
            StateName(kind: "optimizers.", n: n, part: ".", tensor: index, end: ".master"), .f32, StoredShape(count),
            master, whole: whole, body)
        }
        try one(
          StateName(kind: "optimizers.", n: n, part: ".", tensor: index, end: ".moments"),
          StoredType(optimizer.momentType), StoredShape(optimizer.momentCount(ofTensor: index), count), moments,
          whole: whole, inRows: true, body)
      }
    }
    try visitStatistics(body)
    for n in 0..<count.tensors {
      let tensor = tensors[n]
      try one(StateName(kind: "tensors.", n: n), StoredType(tensor.type), tensor.shape, tensor.data, body)
    }
  }

  private func visitGroups(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    for n in 0..<count.optimizers {
      let optimizer = optimizers[n].pointee
      try one(
        StateName(kind: "optimizers.", n: n, part: ".groups"), .f64, StoredShape(optimizer.tensorCount, 2),
        optimizer.groups, body)
    }
  }

  private func visitStatistics(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    for n in 0..<count.statistics {
      let own = statistics[n].pointee
      try one(StateName(kind: "statistics.", n: n, part: ".counts"), .i64, StoredShape(own.experts), own.counts, body)
      try one(StateName(kind: "statistics.", n: n, part: ".dropped"), .i64, StoredShape(own.experts), own.dropped, body)
      try one(
        StateName(kind: "statistics.", n: n, part: ".probability"), .f64, StoredShape(own.experts), own.probability,
        body)
    }
  }

  /// `whole`: of the first extent, or `inRows` of the second, how many all ranks have, and the number of the first that is here.
  private func one(
    _ name: StateName, _ type: StoredType, _ shape: StoredShape, _ memory: UnsafeMutableRawPointer,
    whole: (all: Int, first: Int)? = nil, inRows: Bool = false, _ body: (OutgoingTensor) throws(Fault) -> Void
  ) throws(Fault) {
    var contents = OutgoingTensor.Contents.memory(memory)
    var shape = shape
    if let spread, let whole {
      let rows = inRows ? shape[0] : 1
      let own = shape.bytes(type)! / max(rows, 1)
      let bytesOfOne = inRows ? type.alignment : own / max(shape[0], 1)
      contents = .spread(
        SpreadTensor(
          ranks: spread.ranks, context: context, memory: memory, rows: rows, own: own,
          first: whole.first * bytesOfOne, all: whole.all * bytesOfOne))
      shape = shape.with(extent: whole.all, in: inRows ? 1 : 0)
    }
    try withText { (text: inout TextBuffer) in
      name.append(to: &text)
    } body: { (name) throws(Fault) in
      try body(OutgoingTensor(name: name, type: type, shape: shape, contents: contents))
    }
  }
}

/// "layers.", 3, ".", "router.weight" in one, or "optimizers.", 0, ".", 7, ".moments".
private struct StateName {
  let kind: StaticString
  var n: Int?
  var part: StaticString = ""
  var parameter: UnsafePointer<CChar>?
  var tensor: Int?
  var end: StaticString = ""

  func append(to text: inout TextBuffer) {
    text.append(kind)
    if let n { text.append(n) }
    text.append(part)
    if let parameter { text.append(parameter) }
    if let tensor { text.append(tensor) }
    text.append(end)
  }
}

extension Parameter {
  var storedShape: StoredShape {
    var stored = StoredShape(shape.0)
    if rank > 1 { stored.append(shape.1) }
    if rank > 2 { stored.append(shape.2) }
    return stored
  }
}

extension Checkpoint {
  fileprivate func require(_ wanted: OutgoingTensor, _ path: UnsafePointer<CChar>) throws(Fault) {
    guard let found = tensor(wanted.name) else {
      throw .invalid("\(wanted.name): the training state has it, the file does not: \(path)")
    }
    if found.type != wanted.type {
      throw .invalid("\(wanted.name): \(found.typeName) in the file, \(wanted.typeName) here: \(path)")
    }
    if found.shape != wanted.shape {
      throw .invalid("\(wanted.name): \(found.shape) in the file, \(wanted.shape) here: \(path)")
    }
  }

  /// `wanted` has passed `require`.
  fileprivate func copy(_ wanted: OutgoingTensor) throws(Fault) {
    let stored = tensor(wanted.name)!
    switch wanted.contents {
    case .memory(let memory): try read(stored, as: wanted.type, to: UnsafeMutableRawPointer(mutating: memory))
    case .spread(let parts): try parts.read(stored, from: self)
    default: return
    }
  }

  /// Numbers that are finite and not negative.
  fileprivate func requireAmounts(_ wanted: OutgoingTensor, _ path: UnsafePointer<CChar>) throws(Fault) {
    try forEachElement(tensor(wanted.name)!) { (_, element) throws(Fault) in
      let value = element.load(as: Double.self)
      if !(value >= 0 && value.isFinite) {
        throw .invalid("\(wanted.name): \(value) is not a number of at least 0: \(path)")
      }
    }
  }

  fileprivate func requireNotNegative(_ wanted: OutgoingTensor, _ path: UnsafePointer<CChar>) throws(Fault) {
    guard wanted.type == .i64 else { return }
    try forEachElement(tensor(wanted.name)!) { (_, element) throws(Fault) in
      let value = Int(element.load(as: Int64.self))
      if value < 0 { throw .invalid("\(wanted.name): \(value) is negative: \(path)") }
    }
  }
}
