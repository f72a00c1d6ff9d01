import CMoE
import Testing

/// Every option of forward and backward wrong once: refused by name, and the tape is empty afterwards.
@Suite("Bad options of a call")
final class BadOptionsTests {
  private let tokens = 3
  private let bytes = Memory<UInt8>(3, 1)
  private let ids = Memory<Int64>(4, 0)  // one more, here and below: room for misaligned pointers
  private let indices = Memory<Int32>(7, 1)
  private let weights = Memory<Float>(7, 0.5)
  private let counts = Memory<Int64>(5, 2)

  /// Memory of the caller's.
  private final class Memory<Element> {
    let start: UnsafeMutablePointer<Element>

    init(_ count: Int, _ value: Element) {
      start = .allocate(capacity: count)
      start.initialize(repeating: value, count: count)
    }

    deinit { start.deallocate() }

    subscript(i: Int) -> Element {
      get { start[i] }
      set { start[i] = newValue }
    }
  }

  private func hashLayer() throws -> Layer {
    try Layer { ($0.router, $0.vocabulary_size) = (MOE_ROUTER_HASH.int32, 3) }
  }

  private typealias Change = (inout moe_forward_options) -> Void

  /// Of a call that fills the layer's tape when it goes well.
  private func forward(_ layer: Layer, _ change: Change) -> moe_status {
    var options = forwardOptions()
    change(&options)
    var y = noise(tokens * layer.hidden)
    return moe_layer_forward(layer.layer, noise(tokens * layer.hidden), Int64(tokens), &options, &y, layer.tape, nil)
  }

  /// `good` fills the tape, `bad` is refused and empties it.
  private func refuse(
    _ words: String..., of layer: Layer, with status: moe_status = MOE_ERROR_INVALID_ARGUMENT,
    after good: Change = { _ in },
    sourceLocation: SourceLocation = #_sourceLocation, _ bad: Change
  ) throws {
    for word in words {
      try check(forward(layer, good), sourceLocation: sourceLocation)
      refused(word, forward(layer, bad), status, sourceLocation: sourceLocation)
      let x = noise(tokens * layer.hidden)
      refused(
        "tape", moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil), MOE_ERROR_BAD_STATE,
        sourceLocation: sourceLocation)
    }
  }

  @Test func masks() throws {
    let layer = try Layer()
    for value: UInt8 in [2, 0x80, .max] {
      bytes[2] = value
      try refuse("valid_mask", of: layer) { $0.valid_mask = UnsafePointer(bytes.start) }
    }
  }

  @Test func tokenIds() throws {
    let (layer, plain) = (try hashLayer(), try Layer())
    let good: Change = { $0.token_ids = UnsafePointer(self.ids.start) }
    try refuse("token_ids", "router", of: layer, after: good) { _ in }
    try refuse("token_ids", of: layer, after: good) { $0.token_ids = UnsafePointer(misaligned(ids.start)) }
    try refuse("token_ids", "router", of: plain, good)
    for id: Int64 in [-1, 3, .min, .max] {
      ids[2] = id
      refused("vocabulary_size", forward(layer, good))
      refused("token_ids", forward(layer, good))
      // Padding has no id.
      bytes[2] = 0
      try check(
        forward(layer) {
          good(&$0)
          $0.valid_mask = UnsafePointer(bytes.start)
        })
    }
  }

  @Test func givenIndices() throws {
    let layer = try Layer()
    let given: Change = { $0.expert_indices = UnsafePointer(self.indices.start) }
    for index: Int32 in [-2, 4, .min, .max] {
      indices[5] = index
      try refuse("expert_indices", "n_experts", of: layer, given)
    }
    indices[5] = -1
    try check(forward(layer, given))
    try refuse("expert_indices", of: layer) { $0.expert_indices = UnsafePointer(misaligned(indices.start)) }
    // [T,E] would be read of [T,K]: it is not even looked at.
    let experts = try Layer { $0.router = MOE_ROUTER_EXPERT_CHOICE.int32 }
    try refuse("expert_indices", "router", of: experts, given)
  }

  @Test func givenWeights() throws {
    let layer = try Layer()
    let given: Change = {
      $0.expert_indices = UnsafePointer(self.indices.start)
      $0.expert_weights = UnsafePointer(self.weights.start)
    }
    for weight: Float in [.nan, .infinity, -.infinity] {
      weights[5] = weight
      try refuse("expert_weights", of: layer, with: MOE_ERROR_NOT_FINITE, given)
    }
    weights[5] = -3
    try check(forward(layer, given))
    try refuse("expert_weights", of: layer) {
      given(&$0)
      $0.expert_weights = UnsafePointer(misaligned(weights.start))
    }
    try refuse("expert_weights", "expert_indices", of: layer) { $0.expert_weights = UnsafePointer(weights.start) }
  }

  @Test func anExternalRouterNeedsBoth() throws {
    let layer = try Layer { $0.router = MOE_ROUTER_EXTERNAL.int32 }
    let good: Change = {
      $0.expert_indices = UnsafePointer(self.indices.start)
      $0.expert_weights = UnsafePointer(self.weights.start)
    }
    try refuse("expert_weights", "router", of: layer, after: good) {
      $0.expert_indices = UnsafePointer(indices.start)
    }
    try refuse("expert_indices", of: layer, after: good) { $0.expert_weights = UnsafePointer(weights.start) }
    try refuse("expert_weights", "router", of: layer, after: good) { _ in }
  }

  @Test func sequences() throws {
    let layer = try Layer()
    for length: Int64 in [-1, 2, 4, .min, .max] {
      try refuse("sequence_length", of: layer) { $0.sequence_length = length }
    }
    try refuse("n_tokens", of: layer) { $0.sequence_length = 2 }
  }

  @Test func globalCounts() throws {
    let layer = try Layer()
    try refuse("global_counts", of: layer) { $0.global_counts = UnsafePointer(misaligned(counts.start)) }
    counts[3] = -1
    try refuse("global_counts", of: layer) { $0.global_counts = UnsafePointer(counts.start) }
  }

  // MARK: records

  @Test func replays() throws {
    let layer = try Layer()
    var created: OpaquePointer?
    try check(moe_routing_create(layer.context, &created))
    let record = try #require(created)
    defer { moe_routing_free(record) }
    let replay: Change = { $0.replay = record }
    try refuse("replay", of: layer, replay)  // empty

    // Other numbers of choices, of experts and of tokens.
    for other in [try Layer(topK: 1), try Layer(experts: 5)] {
      try check(forward(other) { $0.record = record })
      try refuse("replay", of: layer, replay)
    }
    let (x, count) = (noise(2 * layer.hidden), Int64(2))
    var (y, options) = (x, forwardOptions())
    options.record = record
    try check(moe_layer_forward(layer.layer, x, count, &options, &y, nil, nil))
    try refuse("replay", of: layer, replay)

    try check(forward(layer) { $0.record = record })
    try check(forward(layer, replay))
    try refuse("replay", "expert_indices", of: layer) {
      replay(&$0)
      $0.expert_indices = UnsafePointer(indices.start)
    }
    let odd = OpaquePointer(misaligned(UnsafeMutablePointer<Int64>(record)))
    try refuse("replay", of: layer) { $0.replay = odd }
    try refuse("record", of: layer) { $0.record = odd }
  }

  /// An expert's choice is [T,E], weights would be [T,K].
  @Test func noWeightsWhereExpertsChoose() throws {
    let layer = try Layer { $0.router = MOE_ROUTER_EXPERT_CHOICE.int32 }
    var record: OpaquePointer?
    try check(moe_routing_create(layer.context, &record))
    defer { moe_routing_free(record) }
    try refuse("expert_weights", "router", of: layer, after: { $0.record = record }) {
      ($0.replay, $0.expert_weights) = (record, UnsafePointer(weights.start))
    }
  }

  /// A record that was refused into stays as it was.
  @Test func aRefusedCallRecordsNothing() throws {
    let layer = try Layer()
    var record: OpaquePointer?
    try check(moe_routing_create(layer.context, &record))
    defer { moe_routing_free(record) }
    try layer.parameter("router.bias").values[1] = .nan
    refused("bias", forward(layer) { $0.record = record }, MOE_ERROR_NOT_FINITE)
    var size = 0
    try check(moe_routing_saved_size(record, &size))
    #expect(size == 32)
  }

  // MARK: backward

  @Test func backwardOptions() throws {
    let layer = try Layer()
    let x = noise(tokens * layer.hidden)
    func backward(_ change: (inout moe_backward_options) -> Void) -> moe_status {
      var options = moe_backward_options()
      moe_backward_options_init(&options, MemoryLayout<moe_backward_options>.size)
      change(&options)
      return moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, &options)
    }
    try check(forward(layer) { _ in })
    for size in wrongStructSizes { refused("struct_size", backward { $0.struct_size = size }) }
    refused("d_mean_probability", backward { $0.d_mean_probability = UnsafePointer(misaligned(weights.start)) })
    refused("d_expert_weights", backward { $0.d_expert_weights = weights.start })
    refused("expert_weights", backward { $0.d_expert_weights = weights.start })
    // Indices alone are not enough: the router's own weights have another gradient.
    try check(forward(layer) { $0.expert_indices = UnsafePointer(indices.start) })
    refused("d_expert_weights", backward { $0.d_expert_weights = weights.start })
    try check(
      forward(layer) {
        $0.expert_indices = UnsafePointer(indices.start)
        $0.expert_weights = UnsafePointer(weights.start)
      })
    refused("d_expert_weights", backward { $0.d_expert_weights = misaligned(weights.start) })
    refused("frozen_experts", backward { $0.frozen_experts = 2 })
    refused("clip_factor", backward { $0.clip_factor = 0.5 })
    for factor: Float in [-1, .nan, .infinity] { refused("clip_factor", backward { $0.clip_factor = factor }) }
    refused("optimizer", backward { $0.optimizer = OpaquePointer(misaligned(weights.start)) })
    #expect(try layer.gradients().allSatisfy { $0 == 0 }, "nothing was added")
    // A refused backward leaves the tape as it was.
    try check(backward { $0.d_expert_weights = weights.start })
  }
}
