import CMoE
import Testing

@Suite("Routing record")
final class RoutingRecordTests {
  private let context: OpaquePointer
  private let routing: OpaquePointer

  init() throws {
    var handle: OpaquePointer?
    try check(moe_context_create(nil, &handle))
    context = try #require(handle)
    try check(moe_routing_create(context, &handle))
    routing = try #require(handle)
  }

  deinit {
    moe_context_free(context)  // the record keeps it alive
    moe_routing_free(routing)
  }

  private func saved() throws -> [UInt8] {
    var size = -1
    try check(moe_routing_saved_size(routing, &size))
    // One byte more, which stays as it is, at an odd address.
    var memory = [UInt8](repeating: 0xEE, count: size + 2)
    try memory.withUnsafeMutableBytes { try check(moe_routing_save(routing, $0.baseAddress! + 1, size)) }
    #expect(memory.first == 0xEE && memory.last == 0xEE)
    return Array(memory.dropFirst().dropLast())
  }

  private func load(_ bytes: [UInt8]) -> moe_status {
    // At an odd address, and of exactly that many bytes: reading beyond them is seen by the address sanitizer.
    let memory = UnsafeMutableRawPointer.allocate(byteCount: bytes.count + 1, alignment: 16)
    defer { memory.deallocate() }
    for (i, byte) in bytes.enumerated() { memory.storeBytes(of: byte, toByteOffset: i + 1, as: UInt8.self) }
    return moe_routing_load(routing, memory + 1, bytes.count)
  }

  /// The format as functions.md has it, written by another hand.
  private func file(
    magic: String = "moeroute", version: UInt32 = 1, experts: UInt32, tokens: UInt32, choices: UInt32,
    indices: [Int32], checksum: UInt64? = nil
  ) -> [UInt8] {
    func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
      (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }
    let sizes = Array(magic.utf8) + little(version) + little(experts) + little(tokens) + little(choices)
    let body = indices.flatMap { little($0) }
    var hash: UInt64 = 14_695_981_039_346_656_037
    for byte in sizes + body { hash = (hash ^ UInt64(byte)).multipliedReportingOverflow(by: 1_099_511_628_211).0 }
    return sizes + little(checksum ?? hash) + body
  }

  private let example: [Int32] = [0, 2, -1, 1, 2, -1]
  private var good: [UInt8] { file(experts: 3, tokens: 2, choices: 3, indices: example) }

  @Test func anEmptyRecordHasOnlyItsHeader() throws {
    let bytes = try saved()
    #expect(bytes == file(experts: 0, tokens: 0, choices: 0, indices: []))
    try check(load(bytes))
  }

  @Test func whatIsLoadedIsSavedAgain() throws {
    try check(load(good))
    #expect(try saved() == good)
    // Smaller and larger ones follow.
    for tokens: UInt32 in [1, 500, 0, 7] {
      let indices = (0..<tokens * 2).map { Int32($0 % 9) - 1 }
      let bytes = file(experts: 8, tokens: tokens, choices: 2, indices: indices)
      try check(load(bytes))
      #expect(try saved() == bytes)
    }
  }

  @Test func memoryMayBeLargerThanTheRecord() throws {
    try check(load(good + [1, 2, 3]))
    #expect(try saved() == good)
    var memory = [UInt8](repeating: 7, count: good.count + 5)
    try check(moe_routing_save(routing, &memory, memory.count))
    #expect(memory == good + [7, 7, 7, 7, 7])
  }

  @Test func hostileBytesAreRefusedAndChangeNothing() throws {
    try check(load(good))
    for length in 0..<good.count { refused("size", load(Array(good.prefix(length)))) }

    // Any one bit: in the magic, the sizes, the checksum or an index.
    for bit in 0..<8 * good.count {
      var bytes = good
      bytes[bit / 8] ^= 1 << (bit % 8)
      #expect(load(bytes) == MOE_ERROR_INVALID_ARGUMENT, "bit \(bit)")
    }
    refused("begins", load(file(magic: "MOEROUTE", experts: 3, tokens: 2, choices: 3, indices: example)))
    refused("version", load(file(version: 2, experts: 3, tokens: 2, choices: 3, indices: example)))
    refused("checksum", load(file(experts: 3, tokens: 2, choices: 3, indices: example, checksum: 0)))
    // Sizes in another order have the same number of indices.
    var swapped = good
    (swapped[16], swapped[20]) = (swapped[20], swapped[16])
    refused("checksum", load(swapped))

    // With a checksum that is right for what is wrong.
    for index: Int32 in [-5, 3, .min, .max] {
      refused("expert", load(file(experts: 3, tokens: 2, choices: 3, indices: [0, 2, -1, 1, 2, index])))
    }
    refused("expert", load(file(experts: 0, tokens: 1, choices: 1, indices: [0])))
    refused("size", load(file(experts: 3, tokens: 3, choices: 3, indices: example)))
    let large: UInt32 = 1 << 31
    refused("tokens", load(file(experts: 3, tokens: large, choices: 1, indices: example)))
    refused("choices", load(file(experts: 3, tokens: 0, choices: .max, indices: [])))
    refused("experts", load(file(experts: large, tokens: 2, choices: 3, indices: example)))
    refused("tokens", load(file(experts: 3, tokens: 65_536, choices: 65_536, indices: example)))
    refused("size", load(file(experts: 3, tokens: 65_536, choices: 32_767, indices: example)))
    #expect(try saved() == good)
  }

  @Test func badCalls() throws {
    var out = untouched
    refused("context", moe_routing_create(nil, &out))
    refused("out", moe_routing_create(context, nil))
    #expect(out == untouched)
    moe_routing_free(nil)

    try check(load(good))
    var size = -7
    refused("routing", moe_routing_saved_size(nil, &size))
    refused("size", moe_routing_saved_size(routing, nil))
    #expect(size == -7)
    var memory = [UInt8](repeating: 7, count: good.count)
    refused("routing", moe_routing_save(nil, &memory, memory.count))
    refused("memory", moe_routing_save(routing, nil, memory.count))
    for size in [0, 31, good.count - 1, -1] { refused("size", moe_routing_save(routing, &memory, size)) }
    #expect(memory.allSatisfy { $0 == 7 })
    refused("routing", moe_routing_load(nil, good, good.count))
    refused("memory", moe_routing_load(routing, nil, good.count))
    refused("size", moe_routing_load(routing, good, -1))
    #expect(try saved() == good)
  }

  @Test func aRecordThatCannotGrowStaysAsItWas() throws {
    let allocator = CountingAllocator()
    var (context, record): (OpaquePointer?, OpaquePointer?)
    var config = allocator.contextConfig
    try check(moe_context_create(&config, &context))
    try check(moe_routing_create(context, &record))
    try check(moe_routing_load(record, good, good.count))
    let large = file(experts: 3, tokens: 1000, choices: 3, indices: [Int32](repeating: 1, count: 3000))
    allocator.fail(at: 1)
    #expect(moe_routing_load(record, large, large.count) == MOE_ERROR_OUT_OF_MEMORY)
    var memory = [UInt8](repeating: 0, count: good.count)
    try check(moe_routing_save(record, &memory, memory.count))  // takes none
    #expect(memory == good)
    allocator.fail(at: nil)
    try check(moe_routing_load(record, large, large.count))
    moe_context_free(context)
    moe_routing_free(record)
    #expect(allocator.live == 0 && allocator.complaints.isEmpty, "\(allocator.complaints)")
  }
}
