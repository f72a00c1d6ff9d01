import CMoE
import Foundation
import Testing

/// What on_token is told, and what it answers.
private final class Listener {
  var tokens: [[Int32]] = [[], []]
  var largest: [[Int32]] = [[], []]
  var endsAfter: (sequence: Int64, number: Int64, answer: moe_next)?

  static let told: @convention(c) (UnsafeMutableRawPointer?, Int64, Int64, Int32, UnsafePointer<Float>?) -> Int32 = {
    user, sequence, number, token, logits in
    let own = Unmanaged<Listener>.fromOpaque(user!).takeUnretainedValue()
    #expect(Int64(own.tokens[Int(sequence)].count) == number)
    own.tokens[Int(sequence)].append(token)
    let row = UnsafeBufferPointer(start: logits, count: 11)
    own.largest[Int(sequence)].append(Int32(row.firstIndex(of: row.max()!)!))
    guard let end = own.endsAfter, (end.sequence, end.number) == (sequence, number) else {
      return MOE_NEXT_GO_ON.int32
    }
    return end.answer.int32
  }
}

/// Two prompts, of one token and of four.
private struct Writing {
  let life = ModelLife()
  var options = moe_generation()
  var tokens = [Int32](repeating: 77, count: 12)
  var counts: [Int64] = [77, 77]

  init() throws {
    for call in life.calls.prefix(2) { try check(call(life)) }
    moe_generation_init(&options, MemoryLayout<moe_generation>.size)
    options.max_new_tokens = 6
  }

  mutating func run(_ offsets: [Int64] = [0, 1, 5], n: Int64 = 2) -> moe_status {
    moe_generate(life.model, &options, [9, 1, 2, 3, 4], offsets, n, &tokens, &counts)
  }

  /// Of sequence b.
  func found(_ b: Int) -> [Int32] { Array(tokens[b * 6..<b * 6 + Int(counts[b])]) }

  /// The best token after all there is, again and again, by forward calls over the whole.
  func expected(_ prompt: [Int32]) throws -> [Int32] {
    var all = prompt
    for _ in 0..<6 {
      var logits = [Float](repeating: .nan, count: all.count * 11)
      try all.withUnsafeBufferPointer { tokens in
        var input = moe_model_input()
        moe_model_input_init(&input, MemoryLayout<moe_model_input>.size)
        (input.n_sequences, input.sequence_length, input.tokens) = (1, Int64(all.count), tokens.baseAddress)
        try check(moe_model_forward(life.model, &input, nil, &logits, nil, nil))
      }
      let last = Array(logits.suffix(11))
      all.append(Int32(last.firstIndex(of: last.max()!)!))
    }
    return Array(all[prompt.count...])
  }
}

@Suite("Generation")
struct GenerateTests {
  @Test("each prompt goes on as it does alone; memory is given back")
  func goesOn() throws {
    var writing = try Writing()
    let listener = Listener()
    (writing.options.on_token, writing.options.user) =
      (Listener.told, Unmanaged.passUnretained(listener).toOpaque())
    try check(writing.run())
    let expected = [try writing.expected([9]), try writing.expected([1, 2, 3, 4])]
    #expect([writing.found(0), writing.found(1)] == expected)
    #expect(listener.tokens == expected && listener.largest == expected)
    writing.life.free()
    #expect(writing.life.allocator.live == 0 && writing.life.allocator.complaints.isEmpty)
  }

  @Test("ends: tokens that end a sequence, and the callback's answers")
  func ends() throws {
    var writing = try Writing()
    try check(writing.run())
    let whole = [writing.found(0), writing.found(1)]
    let eos = [whole[1][2]]
    try eos.withUnsafeBufferPointer { eos in
      (writing.options.eos, writing.options.n_eos) = (eos.baseAddress, 1)
      try check(writing.run())
    }
    for b in 0..<2 {
      let end = whole[b].firstIndex(of: eos[0]).map { $0 + 1 } ?? 6
      #expect(writing.found(b) == Array(whole[b].prefix(end)))
      #expect(writing.tokens[b * 6 + end..<b * 6 + 6].allSatisfy { $0 == -1 })
    }
    writing.options.n_eos = 0
    for (answer, counts) in [(MOE_NEXT_END_SEQUENCE, [6, 2]), (MOE_NEXT_END_ALL, [2, 2])] as [(moe_next, [Int64])] {
      let listener = Listener()
      listener.endsAfter = (1, 1, answer)
      (writing.options.on_token, writing.options.user) =
        (Listener.told, Unmanaged.passUnretained(listener).toOpaque())
      try check(writing.run())
      #expect(writing.counts == counts)
    }
  }

  @Test("whichever allocation fails, the call says so, and nothing is lost")
  func outOfMemory() throws {
    var k = 1
    while true {
      var writing = try Writing()
      writing.options.chunk_tokens = 2
      let live = writing.life.allocator.live
      writing.life.allocator.fail(at: k)
      let status = writing.run()
      let failed = writing.life.allocator.hasFailed
      writing.life.allocator.fail(at: nil)
      if !failed {
        try check(status)
        break
      }
      #expect(status == MOE_ERROR_OUT_OF_MEMORY)
      // The context may keep scratch for the next call.
      #expect(writing.life.allocator.live <= live + 1)
      writing.life.free()
      #expect(writing.life.allocator.live == 0 && writing.life.allocator.complaints.isEmpty)
      k += 1
    }
    #expect(k > 2)
  }

  @Test("NULL, sizes and states are refused by name")
  func refusals() throws {
    var writing = try Writing()
    refused("offsets", writing.run([1, 2, 5]))
    refused("offsets", writing.run([0, 0, 5]))
    refused("n_sequences", writing.run(n: 0))
    refused("model", moe_generate(nil, &writing.options, [1], [0, 1], 1, &writing.tokens, &writing.counts))
    refused("options", moe_generate(writing.life.model, nil, [1], [0, 1], 1, &writing.tokens, &writing.counts))
    refused("tokens", moe_generate(writing.life.model, &writing.options, [1], [0, 1], 1, nil, &writing.counts))
    refused("counts", moe_generate(writing.life.model, &writing.options, [1], [0, 1], 1, &writing.tokens, nil))
    refused(
      "prompts", moe_generate(writing.life.model, &writing.options, [11], [0, 1], 1, &writing.tokens, &writing.counts))
    writing.options.max_new_tokens = 0
    refused("max_new_tokens", writing.run())
    moe_generation_init(nil, MemoryLayout<moe_generation>.size)
  }

  @Test("a cache is saved, loaded with more room, and goes on with the same bits")
  func caches() throws {
    let life = ModelLife()
    for call in life.calls { if life.cache == nil { try check(call(life)) } }
    try check(life.read())
    let path = NSTemporaryDirectory() + "moe-cache-\(ProcessInfo.processInfo.processIdentifier).safetensors"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try check(moe_cache_save(life.cache, path))
    var loaded: OpaquePointer?
    try check(moe_cache_load(life.model, path, 9, &loaded))
    defer { moe_cache_free(loaded) }
    var sizes: [Int64] = [0, 0, 0]
    try check(moe_cache_size(loaded, &sizes[0], nil, nil))
    try check(moe_cache_size(loaded, nil, &sizes[1], nil))
    try check(moe_cache_size(loaded, nil, nil, &sizes[2]))
    #expect(sizes == [2, 9, 5])
    try check(moe_cache_truncate(life.cache, 4))
    try check(moe_cache_truncate(loaded, 4))
    var (one, other) = ([Float](repeating: 0, count: 22), [Float](repeating: 1, count: 22))
    try check(moe_model_read(life.model, life.cache, [3, 7], 1, &one))
    try check(moe_model_read(life.model, loaded, [3, 7], 1, &other))
    #expect(one == other)
    var out = untouched
    refused("max_length", moe_cache_load(life.model, path, 4, &out))
    refused("path", moe_cache_load(life.model, nil, 0, &out))
    refused("model", moe_cache_load(nil, path, 0, &out))
    refused("cache", moe_cache_save(nil, path))
    refused("path", moe_cache_save(life.cache, nil))
    refused("cache", moe_cache_size(nil, nil, nil, nil))
    #expect(out == untouched)
    #expect(moe_cache_load(life.model, path + ".none", 0, &out) == MOE_ERROR_IO)
  }
}
