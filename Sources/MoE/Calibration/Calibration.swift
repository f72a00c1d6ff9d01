import CShims

/// What a model's matrices read over some text: of all that are packed, how large their inputs are, since errors of weights
/// matter by that. It outlives the model, for another one of the same parameters that is packed while it is read.
public struct Calibration {
  fileprivate let context: ContextPointer
  fileprivate let parts: CalibrationParts
  /// Of names and shapes of the model's parameters.
  private let fingerprint: UInt64
  public let parameterCount: Int

  fileprivate init(_ model: Model, _ parts: CalibrationParts) {
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
      sums: UnsafePointer(squares.sums + expert * squares.inputs), hasFew: squares.hasFew(expert))
  }

  // MARK: gathering

  /// Forgets everything.
  func clear() { parts.forEach { $0.clear() } }
}

/// Of one ffn: for each group of experts what gate and up read, then what down reads.
struct LayerSquares {
  let first: UnsafePointer<InputSquares>

  func group(_ index: Int) -> GroupSquares {
    let inner = first[2 * index]
    return GroupSquares(inner: inner.experts == 0 ? nil : inner, down: first[2 * index + 1])
  }
}

extension Model {
  /// Runs tokens through the model and adds what its matrices read. After an error the calibration is empty.
  public func calibrate(_ calibration: CalibrationPointer, _ given: ModelInput) throws(Fault) {
    try calibration.pointee.requireFit(self)
    try requireWeightsAsTheyAre()
    var input = given
    (input.calibration, input.targets) = (calibration, nil)
    let turn = calibration.pointee.parts.turn
    try turn.acquire(for: "calibration")
    defer { turn.release() }
    do throws(Fault) {
      _ = try forward(input, ModelOutputs(), tape: nil, asked: { _ in Layer.Details() }, note: { _, _ in })
    } catch {
      calibration.pointee.clear()
      throw error
    }
    calibration.pointee.parts.forEach { $0.addUp() }
  }

  /// Few bits are what is to be chosen: a model that has them already would be calibrated by their errors.
  private func requireWeightsAsTheyAre() throws(Fault) {
    if preparation?.code != nil { throw .calibratesFewBits }
    for n in 0..<configuration.layers where feedForwards[n]?.pointee.prepared.isOfBlocks ?? false {
      throw Fault.calibratesFewBits.inLayer(n)
    }
  }

  /// Of all names and shapes [Fowler, Noll, Vo: FNV-1a, 64 bits].
  fileprivate var fingerprint: UInt64 {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325
    func add(_ byte: UInt8) { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
    func add(_ number: Int) { for i in 0..<8 { add(UInt8(truncatingIfNeeded: number >> (8 * i))) } }
    for index in 0..<parameterCount {
      let parameter = parameter(index)
      var c = parameter.name
      while c.pointee != 0 {
        add(UInt8(bitPattern: c.pointee))
        c += 1
      }
      add(parameter.shape.0)
      add(parameter.shape.1)
      add(parameter.shape.2)
    }
    return hash
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
  public static func create(for model: Model) throws(Fault) -> CalibrationPointer {
    var size = CalibrationSize()
    model.forEachSite { _, inputs, experts in size.add(inputs, experts) }
    if size.isTooLarge { throw .outOfMemory(bytes: .max) }
    let parts = try model.context.pointee.allocator.make { CalibrationParts(&$0, model, size) }
    parts.fill(model)
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

private struct CalibrationSize {
  var rows = 0  // of experts, and one more of each site
  var elements = 0
  var isTooLarge = false

  mutating func add(_ inputs: Int, _ experts: Int) {
    let (own, tooMany) = (experts + 1).multipliedReportingOverflow(by: inputs)
    let (sum, tooLarge) = elements.addingReportingOverflow(own)
    isTooLarge = isTooLarge || tooMany || tooLarge
    if !isTooLarge { (rows, elements) = (rows + experts + 1, sum) }
  }
}

/// One block of memory: the handle, then what it points at.
private struct CalibrationParts {
  let place: CalibrationPointer
  let turn: Lock  // calls take turns
  let table: UnsafeMutablePointer<InputSquares>  // [sites] slots of the model's own, then two for each group of each ffn
  let siteCount: Int
  let firsts: UnsafeMutablePointer<Int>  // [layers] the first of an ffn's
  let sites: UnsafeMutablePointer<Int32>  // [parameters] of each the site; -1 = none
  let names: UnsafeMutablePointer<CChar>  // [parameters, nameSize]
  private let tokens: UnsafeMutablePointer<Int64>
  private let sums: UnsafeMutablePointer<Double>

  init(_ arena: inout Arena, _ model: Model, _ size: CalibrationSize) {
    place = arena.take(Calibration.self, 1)
    turn = Lock(&arena)
    siteCount = model.siteCount
    table = arena.take(InputSquares.self, siteCount)
    firsts = arena.take(Int.self, model.configuration.layers)
    sites = arena.take(Int32.self, model.parameterCount)
    names = arena.take(CChar.self, model.parameterCount, ModelParameters.nameSize)
    tokens = arena.take(Int64.self, size.rows)
    sums = arena.take(Double.self, size.elements)
  }

  func fill(_ model: Model) {
    turn.initialise()
    table.initialize(repeating: InputSquares(inputs: 0, experts: 0, sums: sums, tokens: tokens), count: siteCount)
    var (rows, elements) = (0, 0)
    model.forEachSite { site, inputs, experts in
      let own = InputSquares(inputs: inputs, experts: experts, sums: sums + elements, tokens: tokens + rows)
      (rows, elements) = (rows + experts + 1, elements + own.elements)
      table[site] = own
      own.clear()
    }
    for n in 0..<model.configuration.layers { firsts[n] = model.firstSite(ofLayer: n) }
    for index in 0..<model.parameterCount {
      var name = TextBuffer(names + index * ModelParameters.nameSize, capacity: ModelParameters.nameSize)
      name.append(model.parameter(index).name)
      let site = model.site(ofParameter: index)
      sites[index] = site.map { table[$0].experts > 0 ? Int32($0) : -1 } ?? -1
    }
  }

  /// Each site that there is.
  func forEach(_ body: (InputSquares) -> Void) {
    for site in 0..<siteCount where table[site].experts > 0 { body(table[site]) }
  }
}

// MARK: sites

extension Model {
  fileprivate var siteCount: Int { firstSite(ofLayer: configuration.layers) }

  fileprivate func firstSite(ofLayer layer: Int) -> Int {
    var site = parameters.slotCount
    for n in 0..<layer { site += 2 * (feedForwards[n]?.pointee.configuration.groupCount ?? 0) }
    return site
  }

  /// Every site's number, inputs and experts.
  fileprivate func forEachSite(_ body: (_ site: Int, _ inputs: Int, _ experts: Int) -> Void) {
    for slot in 0..<parameters.slotCount {
      if let inputs = parameters.packedInputs(slot, configuration) { body(slot, inputs, 1) }
    }
    for n in 0..<configuration.layers {
      guard let c = feedForwards[n]?.pointee.configuration else { continue }
      for index in 0..<c.groupCount where c.groups[index].multiplies {
        let (group, first) = (c.groups[index], firstSite(ofLayer: n) + 2 * index)
        if !group.linear { body(first, group.hidden, group.experts) }
        body(first + 1, group.intermediate, group.experts)
      }
    }
  }

  /// Where a parameter's inputs are noted, if they are.
  fileprivate func site(ofParameter index: Int) -> Int? {
    switch list[index] {
    case .own(let own): return parameters.slot(listed: own)
    case .feedForward(let n, let own):
      let (role, group) = feedForwards[n]!.pointee.parameters.place(own)
      let first = firstSite(ofLayer: n) + 2 * group
      switch role {
      case .gateWeight, .upWeight: return first
      case .downWeight: return first + 1
      default: return nil
      }
    }
  }
}
