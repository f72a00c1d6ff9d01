// Of which matrices a calibration knows, and the memory for it.

/// Whose inputs are noted, and where.
struct CalibrationSite {
  let number: Int
  let inputs: Int
  let experts: Int
  /// What gate and up of a layer's experts read: products are those of what comes into the layer.
  var sharesProducts = false

  /// Numbers of their products; nil: more than any memory has.
  var products: Int? {
    if sharesProducts { return 0 }
    let (square, tooLarge) = inputs.multipliedReportingOverflow(by: inputs)
    let (all, tooMany) = square.multipliedReportingOverflow(by: experts)
    return tooLarge || tooMany || all > 1 << 60 ? nil : all
  }
}

struct CalibrationSize {
  private(set) var rows = 0  // of experts, and one more of each site
  private(set) var elements = 0
  private(set) var products = 0
  private var most = 0  // products of a site, beyond which it has none
  private(set) var isTooLarge = false

  mutating func add(_ site: CalibrationSite) {
    let (own, tooMany) = (site.experts + 1).multipliedReportingOverflow(by: site.inputs)
    let (sum, tooLarge) = elements.addingReportingOverflow(own)
    isTooLarge = isTooLarge || tooMany || tooLarge
    if !isTooLarge { (rows, elements) = (rows + site.experts + 1, sum) }
  }

  /// Finds how many a site may have, so that all that have so many fit.
  mutating func allow(_ bytes: Int, _ model: Model) {
    let limit = min(max(0, bytes), 1 << 60) / MemoryLayout<Float>.stride
    var (fits, tooMany) = (0, limit + 1)
    while tooMany - fits > 1 {
      let middle = fits + (tooMany - fits) / 2
      if Self.sum(model, atMost: middle) <= limit { fits = middle } else { tooMany = middle }
    }
    (most, products) = (fits, Self.sum(model, atMost: fits))
  }

  private static func sum(_ model: Model, atMost most: Int) -> Int {
    var sum = 0
    model.forEachSite { if let own = $0.products, own <= most { sum = min(sum + own, 1 << 61) } }
    return sum
  }

  func hasProducts(_ site: CalibrationSite) -> Bool { site.products.map { $0 > 0 && $0 <= most } ?? false }
}

/// One block of memory: the handle, then what it points at.
struct CalibrationParts {
  let place: CalibrationPointer
  let turn: Lock  // calls take turns
  /// [sites] Slots of the model's own, then of each ffn what comes in and two for each group.
  let table: UnsafeMutablePointer<InputSquares>
  let siteCount: Int
  let firsts: UnsafeMutablePointer<Int>  // [layers] the first of an ffn's
  let sites: UnsafeMutablePointer<Int32>  // [parameters] of each the site; -1 = none
  let names: UnsafeMutablePointer<CChar>  // [parameters, nameSize]
  private let tokens: UnsafeMutablePointer<Int64>
  private let sums: UnsafeMutablePointer<Double>
  private let products: UnsafeMutablePointer<Float>

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
    products = arena.take(Float.self, size.products)
  }

  func fill(_ model: Model, _ size: CalibrationSize) {
    turn.initialise()
    table.initialize(repeating: InputSquares(inputs: 0, experts: 0, sums: sums, tokens: tokens), count: siteCount)
    var (rows, elements, products) = (tokens, sums, products)
    var incoming: InputSquares?  // of the ffn
    model.forEachSite { site in
      var own = InputSquares(inputs: site.inputs, experts: site.experts, sums: elements, tokens: rows)
      (rows, elements) = (rows + site.experts + 1, elements + own.elements)
      if size.hasProducts(site) {
        own.products = products
        products += site.products!
      }
      if site.sharesProducts { (own.products, own.sharedTokens) = (incoming?.products, incoming?.tokens) }
      if !site.sharesProducts { incoming = own }
      table[site.number] = own
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
    for n in 0..<layer {
      if let c = feedForwards[n]?.pointee.configuration { site += 1 + 2 * c.groupCount }
    }
    return site
  }

  /// In order; what comes into a layer before its groups.
  func forEachSite(_ body: (CalibrationSite) -> Void) {
    for slot in 0..<parameters.slotCount {
      if let inputs = parameters.packedInputs(slot, configuration) {
        body(CalibrationSite(number: slot, inputs: inputs, experts: 1))
      }
    }
    for n in 0..<configuration.layers {
      guard let c = feedForwards[n]?.pointee.configuration else { continue }
      forEachSite(c, from: firstSite(ofLayer: n), body)
    }
  }

  private func forEachSite(_ c: Configuration, from first: Int, _ body: (CalibrationSite) -> Void) {
    var hasInner = false
    for index in 0..<c.groupCount where c.groups[index].multiplies && !c.groups[index].linear { hasInner = true }
    if hasInner { body(CalibrationSite(number: first, inputs: c.hidden, experts: 1)) }
    for index in 0..<c.groupCount where !c.groups[index].linear && c.groups[index].multiplies {
      body(
        CalibrationSite(
          number: first + 1 + 2 * index, inputs: c.hidden, experts: c.groups[index].experts, sharesProducts: true))
    }
    for index in 0..<c.groupCount where c.groups[index].multiplies {
      let group = c.groups[index]
      body(CalibrationSite(number: first + 2 + 2 * index, inputs: group.intermediate, experts: group.experts))
    }
  }

  /// Where a parameter's inputs are noted, if they are.
  fileprivate func site(ofParameter index: Int) -> Int? {
    switch list[index] {
    case .own(let own): return parameters.slot(listed: own)
    case .feedForward(let n, let own):
      let (role, group) = feedForwards[n]!.pointee.parameters.place(own)
      let first = firstSite(ofLayer: n) + 1 + 2 * group
      switch role {
      case .gateWeight, .upWeight: return first
      case .downWeight: return first + 1
      default: return nil
      }
    }
  }
}
