import CShims

/// What a model's matrices read over some text: of all that are packed, how large their inputs are, since errors of weights
/// matter by that, and how inputs go together, since weights can make up for errors of others. It outlives the model, for another one of the same parameters that is packed while it is read.
public struct Calibration {
  fileprivate let context: ContextPointer
  private let parts: CalibrationParts
  /// Of names and shapes of the model's parameters.
  private let fingerprint: UInt64
  public let parameterCount: Int

  init(_ model: Model, _ parts: CalibrationParts) {
    context = model.context
    self.parts = parts
    fingerprint = model.fingerprint
    parameterCount = model.parameterCount
  }

  /// Refuses a model with other parameters.
  public func requireFit(_ model: Model) throws(Fault) {
    if parameterCount == model.parameterCount && fingerprint == model.fingerprint { return }
    throw .invalid(
      "calibration: it was gathered from a model whose parameters have other names or shapes: gather one from this model"
    )
  }

  // MARK: what packing reads

  /// Of a matrix of the model's own.
  func own(_ slot: Int) -> InputSquares? {
    let found = parts.table[slot]
    return found.experts == 0 ? nil : found
  }

  func own(_ n: Int, _ role: ModelParameters.LayerRole, _ model: Model) -> InputSquares? {
    own(model.parameters.slot(n, role))
  }

  /// Of the ffn of layer n.
  func layer(_ n: Int) -> LayerSquares { LayerSquares(first: parts.table + parts.firsts[n]) }

  // MARK: what is told

  /// What is known of one parameter, for one expert.
  public struct Entry {
    public let name: UnsafePointer<CChar>
    public let experts: Int  // 0 of a parameter that nothing is known of
    public let inputs: Int
    public var tokens: Int64 = 0
    public var sums: UnsafePointer<Double>?  // [inputs]
    public var products: UnsafePointer<Float>?  // [inputs, inputs]
    public var productTokens: Int64 = 0
    public var hasFew = false
  }

  public func experts(_ parameter: Int) -> Int {
    let site = parts.sites[parameter]
    return site < 0 ? 0 : parts.table[Int(site)].experts
  }

  public func entry(_ parameter: Int, expert: Int) -> Entry {
    let (site, name) = (parts.sites[parameter], UnsafePointer(parts.names + parameter * ModelParameters.nameSize))
    if site < 0 { return Entry(name: name, experts: 0, inputs: 0) }
    let squares = parts.table[Int(site)]
    return Entry(
      name: name, experts: squares.experts, inputs: squares.inputs, tokens: squares.tokens[expert],
      sums: UnsafePointer(squares.sums + expert * squares.inputs),
      products: squares.product(expert).map { UnsafePointer($0) },
      productTokens: squares.products == nil ? 0 : squares.productTokens(expert), hasFew: squares.hasFew(expert))
  }

  // MARK: gathering

  /// Forgets everything.
  private func clear() { parts.forEach { $0.clear() } }

  /// Adds what `run` notes; after an error nothing is left.
  fileprivate func gather(_ run: () throws(Fault) -> Void) throws(Fault) {
    try parts.turn.acquire(for: "calibration")
    defer { parts.turn.release() }
    do throws(Fault) {
      try run()
    } catch {
      clear()
      throw error
    }
    parts.forEach { $0.addUp() }
  }
}

/// Of one ffn: what comes in; for each group of experts what gate and up read, then what down reads.
struct LayerSquares {
  let first: UnsafePointer<InputSquares>

  func group(_ index: Int) -> GroupSquares {
    let inner = first[1 + 2 * index]
    return GroupSquares(inner: inner.experts == 0 ? nil : inner, down: first[2 + 2 * index])
  }

  /// Some tokens of a call, x [T,H].
  func add(
    _ x: UnsafePointer<Float>, _ chunk: Range<Int>, _ call: Call, hidden: Int, in context: ContextPointer
  ) throws(Fault) {
    if first[0].experts == 0 { return }
    try first[0].add(
      StridedRows(x + chunk.lowerBound * hidden, stride: hidden), chunk.count,
      valid: call.validMask.map { $0 + chunk.lowerBound }, in: context)
  }
}

extension Model {
  /// Runs tokens through the model and adds what its matrices read. After an error the calibration is empty.
  public func calibrate(_ calibration: CalibrationPointer, _ given: ModelInput) throws(Fault) {
    try calibration.pointee.requireFit(self)
    try requireWeightsAsTheyAre()
    var input = given
    (input.calibration, input.targets) = (calibration, nil)
    try calibration.pointee.gather { () throws(Fault) in
      _ = try forward(input, ModelOutputs(), tape: nil, asked: { _ in Layer.Details() }, note: { _, _ in })
    }
  }

  /// Few bits are what is to be chosen: a model that has them already would be calibrated by their errors.
  private func requireWeightsAsTheyAre() throws(Fault) {
    for index in 0..<parameters.count {
      var isOfBlocks = false
      parameters.parameter(index).panels?.pointee.forms.forEachPart { form, _ in
        isOfBlocks = isOfBlocks || form.code != nil
      }
      if isOfBlocks { throw .calibratesFewBits }
    }
    for n in 0..<configuration.layers where feedForwards[n]?.pointee.prepared.areOfBlocks ?? false {
      throw Fault.calibratesFewBits.inLayer(n)
    }
  }

  /// Of all names and shapes.
  fileprivate var fingerprint: UInt64 {
    var hash = Hash()
    for index in 0..<parameterCount {
      let parameter = parameter(index)
      hash.add(UnsafeRawBufferPointer(start: parameter.name, count: textLength(parameter.name)))
      hash.add(UInt64(parameter.shape.0))
      hash.add(UInt64(parameter.shape.1))
      hash.add(UInt64(parameter.shape.2))
    }
    return hash.value
  }
}

extension Fault {
  static var calibratesOffloaded: Fault {
    .badState(
      "experts that stay in files are packed anew each time they are read, and not by a calibration: load the model with all its weights in memory"
    )
  }
  fileprivate static var calibratesFewBits: Fault {
    .badState(
      "the weights are packed in few bits, whose errors would be calibrated with: load or prepare the model without them"
    )
  }
}

// MARK: life

public typealias CalibrationPointer = UnsafeMutablePointer<Calibration>

extension UnsafeMutablePointer where Pointee == Calibration {
  /// `productBytes`: for products of inputs at most; of those with the fewest bytes first, all layers alike.
  public static func create(for model: Model, productBytes: Int) throws(Fault) -> CalibrationPointer {
    var size = CalibrationSize()
    model.forEachSite { size.add($0) }
    if size.isTooLarge { throw .outOfMemory(bytes: .max) }
    size.allow(productBytes, model)
    let parts = try model.context.pointee.allocator.make { CalibrationParts(&$0, model, size) }
    parts.fill(model, size)
    parts.place.initialize(to: Calibration(model, parts))
    model.context.retain()
    return parts.place
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
