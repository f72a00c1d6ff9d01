import CMoE
import MoE

// Layers whose experts are spread over ranks: moe_ranks.h.

@implementation @_cdecl("moe_layer_create_distributed")
public func moe_layer_create_distributed(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_layer_config>?,
  _ communicator: UnsafePointer<moe_communicator>?, _ placement: UnsafePointer<moe_placement>?,
  _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let config = try read(config, "config")
    let communicator = try Communicator(try read(communicator, "communicator"))
    var placed = moe_placement()
    if placement != nil { placed = try read(placement, "placement") }
    let out = try required(out, "out")
    let counts = try placed.counts(communicator, of: config.n_experts)
    var groups = GroupList()
    try groups.fill(config)
    try groups.withPointer { (groups, count) throws(Fault) in
      let configuration = try Configuration.Values(config, groups, count: count)
      let wanted = try Ranks.Wanted(config, configuration, communicator, counts, placed)
      out.pointee = OpaquePointer(try LayerPointer.create(configuration, over: wanted, in: context))
    }
  }
}

@implementation @_cdecl("moe_model_create_distributed")
public func moe_model_create_distributed(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_model_config>?,
  _ communicator: UnsafePointer<moe_communicator>?, _ placement: UnsafePointer<moe_placement>?,
  _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let config = try read(config, "config")
    let communicator = try Communicator(try read(communicator, "communicator"))
    var placed = moe_placement()
    if placement != nil { placed = try read(placement, "placement") }
    let out = try required(out, "out")
    try createModel(context, config, over: Spreading(communicator: communicator, placement: placed)) {
      out.pointee = OpaquePointer($0)
    }
  }
}

@implementation @_cdecl("moe_model_clip_grad_norm")
public func moe_model_clip_grad_norm(
  _ model: OpaquePointer?, _ max_norm: Double, _ norm: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    try model.pointee.beginCall()
    do throws(Fault) {
      try requireTrainable(model)
      try requireGradients(model)
      try requireMaxNorm(max_norm)
      var operands = Operands()
      let norm = try operands.writes(optional: norm, 1, "norm")
      try operands.requireApart(fromParametersOf: model, gradients: true)
      let found = try model.pointee.clipGradNorm(maxNorm: max_norm)
      norm?.pointee = found
    } catch {
      throw model.pointee.told(error)
    }
  }
}

@implementation @_cdecl("moe_layer_clip_grad_norm")
public func moe_layer_clip_grad_norm(
  _ layer: OpaquePointer?, _ max_norm: Double, _ norm: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    try layer.pointee.beginCall()
    do throws(Fault) {
      try requireTrainable(layer)
      try requireGradients(layer, frozenExperts: false)
      try requireMaxNorm(max_norm)
      var operands = Operands()
      let norm = try operands.writes(optional: norm, 1, "norm")
      try operands.requireApart(fromParametersOf: layer, gradients: true)
      let found = try layer.pointee.clipGradNorm(maxNorm: max_norm)
      norm?.pointee = found
    } catch {
      throw layer.pointee.told(error)
    }
  }
}

extension Communicator {
  init(_ given: moe_communicator) throws(Fault) {
    func missing(_ name: StaticString) -> Fault { .invalid("communicator.\(name) is NULL") }
    guard let allToAll = given.all_to_all else { throw missing("all_to_all") }
    guard let send = given.send else { throw missing("send") }
    guard let receive = given.receive else { throw missing("receive") }
    guard let test = given.test else { throw missing("test") }
    guard let wait = given.wait else { throw missing("wait") }
    guard let words = given.error else { throw missing("error") }
    guard let abandon = given.abandon else { throw missing("abandon") }
    try require(Int(given.size), "communicator.size", from: 1, to: 65_536)
    try require(Int(given.rank), "communicator.rank", from: 0, to: Int(given.size) - 1)
    self.init(
      user: given.user, rank: Int(given.rank), size: Int(given.size), allToAll: allToAll, send: send, receive: receive,
      test: test, wait: wait, abandon: abandon, words: words)
  }
}

/// How many of `experts` each rank owns; nil: as even as they can be.
func expertsPerRank(
  _ given: UnsafePointer<Int64>?, _ name: StaticString, _ communicator: Communicator, of experts: Int
) throws(Fault) -> UnsafePointer<Int64>? {
  guard let counts = try optional(UnsafeMutablePointer(mutating: given), name) else { return nil }
  var left = experts
  for rank in 0..<communicator.size {
    if counts[rank] < 0 || Int(counts[rank]) > left {
      throw .invalid("\(name)[\(rank)] = \(Int(counts[rank])), but \(left) of n_experts = \(experts) are left")
    }
    left -= Int(counts[rank])
  }
  if left > 0 { throw .invalid("\(name) adds up to \(left) less than n_experts = \(experts)") }
  return UnsafePointer(counts)
}

extension moe_placement {
  fileprivate func counts(_ communicator: Communicator, of experts: Int64) throws(Fault) -> UnsafePointer<Int64>? {
    try expertsPerRank(experts_per_rank, "placement.experts_per_rank", communicator, of: Int(experts))
  }
}

/// Which experts may be hot.
private func hotExperts(
  _ placement: moe_placement, _ strategy: Placement.Strategy, _ configuration: Configuration.Values
) throws(Fault) -> HotExperts.Wanted {
  let count = Int(placement.hot_experts)
  let given = try optional(UnsafeMutablePointer(mutating: placement.hot_indices), "hot_indices")
  try require(count, "placement.hot_experts", from: 0, to: configuration.experts)
  if count == 0 { return HotExperts.Wanted() }
  try configuration.requireForHotExperts(strategy)
  if let given {
    for i in 0..<count {
      if given[i] < 0 || Int(given[i]) >= configuration.experts {
        throw .invalid("placement.hot_indices[\(i)] = \(Int(given[i])): expected 0 to \(configuration.experts - 1)")
      }
      for before in 0..<i where given[before] == given[i] {
        throw .invalid("placement.hot_indices[\(i)] = \(Int(given[i])), which is named twice")
      }
    }
  }
  return HotExperts.Wanted(most: count, numbers: given.map { UnsafePointer($0) })
}

/// How a model's experts are to be spread over ranks.
struct Spreading {
  let communicator: Communicator
  let placement: moe_placement

  /// Of its MoE layers, which `experts` are.
  func wanted(_ config: moe_model_config, _ experts: Configuration.Values) throws(Fault) -> Ranks.Wanted {
    if !experts.keepsExpertGradients || !experts.keepsExpertWeights {
      throw .invalid(
        "moe.unallocated is set, but the experts are spread over ranks, each of which has memory for its own")
    }
    let moe = try moe_layer_config(moeOf: config)
    let counts = try placement.counts(communicator, of: moe.n_experts)
    var wanted = try Ranks.Wanted(moe, experts, communicator, counts, placement)
    wanted.configurationHash = hash(config, wanted.configurationHash)
    return wanted
  }
}

extension Ranks.Wanted {
  /// What a layer's experts are spread over; refuses what ranks cannot choose together.
  fileprivate init(
    _ config: moe_layer_config, _ configuration: Configuration.Values, _ communicator: Communicator,
    _ counts: UnsafePointer<Int64>?, _ placement: moe_placement
  ) throws(Fault) {
    let isLocal = placement.choice_scope == Int32(MOE_CHOICE_LOCAL.rawValue)
    let strategy = Placement.Strategy(rawValue: placement.strategy)!
    if counts != nil && strategy != .exclusive {
      throw .invalid("placement.experts_per_rank is given, but strategy is not MOE_STRATEGY_EXCLUSIVE")
    }
    try configuration.requireForRanks(choosesLocally: isLocal, strategy, ranks: communicator.size)
    let hot = try hotExperts(placement, strategy, configuration)
    self.init(
      communicator, expertsPerRank: counts, choosesLocally: isLocal, strategy,
      configurationHash: hash(config, configuration, communicator, counts, placement))
    self.hot = hot
  }
}

/// Of a model whose MoE layers have the hash `moe`.
private func hash(_ config: moe_model_config, _ moe: UInt64) -> UInt64 {
  var hash = Hash()
  hash.add(moe)
  var plain = config
  (plain.moe, plain.layers, plain.rotary_tables) = (nil, nil, nil)
  withUnsafeBytes(of: plain) { hash.add($0) }
  if let layers = config.layers {
    hash.add(UnsafeRawBufferPointer(UnsafeBufferPointer(start: layers, count: Int(config.n_layers))))
  }
  let head = config.head_size == 0 ? config.hidden_size / config.n_heads : config.head_size
  for number in 0..<Int(config.n_rotary_tables) {
    var table = config.rotary_tables[number]
    let pairs = Int(table.rotary_size == 0 ? head : table.rotary_size) / 2
    func add(_ frequencies: UnsafePointer<Double>?) {
      hash.add(UnsafeRawBufferPointer(UnsafeBufferPointer(start: frequencies, count: frequencies == nil ? 0 : pairs)))
    }
    add(table.frequencies)
    add(table.long_frequencies)
    (table.frequencies, table.long_frequencies) = (nil, nil)
    withUnsafeBytes(of: table) { hash.add($0) }
  }
  return hash.value
}

/// Of everything that has to be the same on all ranks.
private func hash(
  _ config: moe_layer_config, _ configuration: Configuration.Values, _ communicator: Communicator,
  _ counts: UnsafePointer<Int64>?, _ placement: moe_placement
) -> UInt64 {
  var hash = Hash()
  var plain = config
  (plain.expert_groups, plain.hash_table, plain.losses) = (nil, nil, nil)
  // The last field by itself: it is followed by what fills the struct up, which may be anything.
  let others = MemoryLayout<moe_layer_config>.size - MemoryLayout<Int>.size
  withUnsafeBytes(of: plain) { hash.add(UnsafeRawBufferPointer(rebasing: $0[0..<others])) }
  hash.add(UInt64(UInt32(bitPattern: plain.shared_bias)))
  if let groups = config.expert_groups {
    hash.add(UnsafeRawBufferPointer(UnsafeBufferPointer(start: groups, count: Int(config.n_expert_groups))))
  }
  if let table = configuration.hashTable {
    hash.add(
      UnsafeRawBufferPointer(UnsafeBufferPointer(start: table, count: configuration.vocabulary * configuration.topK)))
  }
  if let losses = config.losses {
    hash.add(UnsafeRawBufferPointer(UnsafeBufferPointer(start: losses, count: Int(config.n_losses))))
  }
  hash.add(UInt64(communicator.size))
  hash.add(UInt64(placement.choice_scope) << 32 | UInt64(placement.strategy))
  hash.add(UInt64(UInt32(bitPattern: placement.hot_experts)))
  if let named = placement.hot_indices {
    hash.add(UnsafeRawBufferPointer(UnsafeBufferPointer(start: named, count: Int(max(placement.hot_experts, 0)))))
  }
  for rank in 0..<communicator.size { hash.add(counts.map { UInt64($0[rank]) } ?? .max) }
  return hash.value
}
