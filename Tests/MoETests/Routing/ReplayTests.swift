import CMoE
import Testing

/// What a record is for: the same call once more, with the choices of the first one.
@Suite("Record and replay")
final class ReplayTests {
  private let context: OpaquePointer
  private let recorded: OpaquePointer
  private let loaded: OpaquePointer

  init() throws {
    var created: OpaquePointer?
    try check(moe_context_create(nil, &created))
    context = try #require(created)
    try check(moe_routing_create(context, &created))
    recorded = try #require(created)
    try check(moe_routing_create(context, &created))
    loaded = try #require(created)
  }

  deinit {
    moe_routing_free(recorded)
    moe_routing_free(loaded)
    moe_context_free(context)
  }

  /// Into `loaded`, through bytes.
  private func saveAndLoad() throws {
    var size = 0
    try check(moe_routing_saved_size(recorded, &size))
    var bytes = [UInt8](repeating: 0, count: size)
    try check(moe_routing_save(recorded, &bytes, size))
    try check(moe_routing_load(loaded, bytes, size))
  }

  /// The same options, the choices those of the record.
  private func replaying(_ record: OpaquePointer, _ options: moe_forward_options) -> moe_forward_options {
    var options = options
    (options.replay, options.expert_indices, options.token_ids) = (record, nil, nil)
    return options
  }

  /// Each pass is over a layer of its own, since training moves running statistics. A choice that went to the next best
  /// expert is recorded as that one: y and all gradients are the same without the loss that counts what was wanted.
  @Test(arguments: Scheme.all)
  func theSameBits(scheme: Scheme) throws {
    var moves = false
    func layer(_ context: moe_context_config) throws -> Layer {
      try scheme.layer(in: context) {
        moves = $0.overflow == MOE_OVERFLOW_NEXT_BEST.int32
        if moves { $0.balance_coef = 0 }
      }
    }
    for (tokens, masked, training) in [(63, true, false), (303, false, true)] {
      let inputs = scheme.inputs(tokens: tokens, training: training, masked: masked)
      var options = inputs.options
      options.record = recorded
      let first = try Record(ofOnePassOver: try layer(contextConfig()), tokens: tokens, options)
      try saveAndLoad()
      for record in [recorded, loaded] {
        let again = try Record(
          ofOnePassOver: try layer(contextConfig(threads: 2)), tokens: tokens, replaying(record, inputs.options))
        for (name, values) in first.parts where again.parts[name] != values {
          if name == "losses and entropy" && moves { continue }
          Issue.record("\(tokens) tokens: \(name) differs \(record == loaded ? "after loading" : "")")
        }
      }
    }
  }

  /// A record may be replayed and filled by the same call.
  @Test(arguments: Scheme.all, [0, 63])
  func aRecordOfItself(scheme: Scheme, tokens: Int) throws {
    let inputs = scheme.inputs(tokens: tokens, training: false, masked: true)
    let (layer, x) = (try scheme.layer(), noise(tokens * 13))
    var options = inputs.options
    options.record = recorded
    let first = try layer.forward(x, options: options)
    options = replaying(recorded, options)
    for _ in 0..<2 { #expect(bits(try layer.forward(x, options: options).y) == bits(first.y)) }
  }

  /// A router that has learned since would choose otherwise; its weights are its own, the experts those of the record.
  @Test(arguments: Scheme.all)
  func theChoicesOfAnotherRouter(scheme: Scheme) throws {
    let tokens = 63
    let inputs = scheme.inputs(tokens: tokens)
    var options = inputs.options
    options.record = recorded
    let x = noise(tokens * 13)
    let first = try scheme.layer().forward(x, options: options)
    let other = try scheme.layer { $0.seed = 5 }
    #expect(try other.forward(x, options: replaying(recorded, inputs.options)).indices == first.indices)
  }
}
