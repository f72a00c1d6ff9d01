import CMoE
import Foundation
import Testing

@Suite("Context")
struct ContextTests {
  @Test func theDefaultsAreOneThreadMallocAndSilence() throws {
    let config = defaultContextConfig()
    #expect(config.struct_size == MemoryLayout<moe_context_config>.size)
    #expect(config.n_threads == 0 && config.matmul == MOE_MATMUL_AUTO.int32)
    #expect(config.alloc == nil && config.dealloc == nil && config.log == nil && config.cancel == nil)

    var context: OpaquePointer?
    try check(moe_context_create(nil, &context))
    moe_context_free(context)
    moe_context_free(nil)
  }

  @Test func initialisingNothingIsIgnored() {
    moe_context_config_init(nil, MemoryLayout<moe_context_config>.size)
    moe_tensor_init(nil, MemoryLayout<moe_tensor>.size)
    moe_layer_config_init(nil, MemoryLayout<moe_layer_config>.size)
    moe_forward_options_init(nil, MemoryLayout<moe_forward_options>.size)
    moe_report_init(nil, MemoryLayout<moe_report>.size)
    moe_backward_options_init(nil, MemoryLayout<moe_backward_options>.size)
    moe_adamw_config_init(nil, MemoryLayout<moe_adamw_config>.size)
    moe_sgd_config_init(nil, MemoryLayout<moe_sgd_config>.size)
  }

  @Test func backwardsOptionsAreNone() {
    let floats = UnsafeMutablePointer<Float>(bitPattern: 64)
    var options = moe_backward_options(
      struct_size: 1, d_mean_probability: floats, d_expert_weights: floats, scratch: floats, scratch_size: 1,
      optimizer: untouched, clip_factor: 1, frozen_experts: 1, d_sequence_probability: floats)
    moe_backward_options_init(&options, MemoryLayout<moe_backward_options>.size)
    #expect(options.struct_size == MemoryLayout<moe_backward_options>.size)
    #expect(options.d_mean_probability == nil && options.d_expert_weights == nil)
    #expect(options.d_sequence_probability == nil)
    #expect(options.scratch == nil && options.scratch_size == 0)
    #expect(options.optimizer == nil && options.clip_factor == 0 && options.frozen_experts == 0)
  }

  @Test func initialisingStaysWithinTheCallersStruct() throws {
    // A host with a later header has 16 bytes more; the library clears them and writes nothing behind.
    let known = MemoryLayout<moe_context_config>.size
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: known + 32, alignment: 16)
    defer { memory.deallocate() }
    memory.initializeMemory(as: UInt8.self, repeating: 0xAA)
    let config = memory.baseAddress!.assumingMemoryBound(to: moe_context_config.self)
    moe_context_config_init(config, known + 16)
    #expect(config.pointee.struct_size == known + 16)
    #expect(memory[known..<known + 16].allSatisfy { $0 == 0 })
    #expect(memory[(known + 16)...].allSatisfy { $0 == 0xAA })

    var context: OpaquePointer?
    try check(moe_context_create(config, &context))
    moe_context_free(context)
  }

  @Test func buildInfoTellsVersionAndThreads() throws {
    let layer = try Layer(in: contextConfig(threads: 3, matmul: MOE_MATMUL_REFERENCE))
    let alone = String(cString: moe_build_info(nil))
    let inContext = String(cString: moe_build_info(layer.context))
    for line in [alone, inContext] {
      #expect(line.contains(MOE_VERSION_STRING))
      #expect(!line.contains("\n"))
    }
    #expect(inContext.contains("3"))
    #expect(inContext.lowercased().contains("reference"))
  }

  @Test func threadsAreBoundedByTheProcessors() throws {
    let processors = moe_processors()
    #expect(processors >= 1 && processors <= Int32(ProcessInfo.processInfo.processorCount))
    for (asked, threads): (Int32, Int32) in [
      (0, 1), (1, 1), (processors, processors), (MOE_THREADS_ALL, processors), (1024, min(1024, 4 * processors)),
    ] {
      let layer = try Layer(in: contextConfig(threads: asked))
      #expect(moe_context_threads(layer.context) == threads)
      let info = String(cString: moe_build_info(layer.context))
      #expect(info.contains("threads: \(threads)"))
      #expect(info.contains("\(asked) asked for, on \(processors) processors") == (asked > processors))
    }
    #expect(moe_context_threads(nil) == 0)
  }

  @Test(arguments: [0, 1, 2, MOE_THREADS_ALL, 1024])
  func everyNumberOfThreadsWorks(threads: Int32) throws {
    let layer = try Layer(in: contextConfig(threads: threads))
    let x = noise(6 * layer.hidden)
    #expect(bits(try layer.forward(x).y) == bits(try Layer().forward(x).y))
  }

  @Test func theLogTakesLinesWithoutNewlines() throws {
    final class Lines { var all: [(level: Int32, text: String)] = [] }
    let lines = Lines()
    var config = contextConfig(threads: 2)
    config.log_user = Unmanaged.passUnretained(lines).toOpaque()
    config.log = { user, level, message in
      Unmanaged<Lines>.fromOpaque(user!).takeUnretainedValue().all.append((level, String(cString: message!)))
    }
    _ = try Layer(in: config)
    #expect(!lines.all.isEmpty)
    for line in lines.all {
      #expect(line.level == MOE_LOG_INFO.int32)
      #expect(!line.text.isEmpty && !line.text.contains("\n"))
    }
  }

  @Test func cancelEndsALongCallInTheCallersThread() throws {
    final class Canceller {
      var verdict: Int32 = 0
      var calls = 0
      var otherThread = false
      let home = pthread_self()
    }
    let canceller = Canceller()
    var config = contextConfig(threads: 2)
    config.cancel_user = Unmanaged.passUnretained(canceller).toOpaque()
    config.cancel = { user in
      let canceller = Unmanaged<Canceller>.fromOpaque(user!).takeUnretainedValue()
      canceller.calls += 1
      canceller.otherThread = canceller.otherThread || pthread_equal(canceller.home, pthread_self()) == 0
      return canceller.verdict
    }
    // Nine billion floating-point operations: tens of milliseconds even on the fastest of machines.
    let tokens = 4096
    let layer = try Layer(hidden: 256, intermediate: 1024, experts: 4, in: config)
    let x = noise(tokens * layer.hidden)
    let dy = noise(x.count, seed: 2)
    var y = [Float](repeating: 0, count: x.count)
    func forward() -> moe_status { moe_layer_forward(layer.layer, x, Int64(tokens), nil, &y, layer.tape, nil) }

    canceller.verdict = 1
    #expect(forward() == MOE_ERROR_CANCELLED)
    canceller.verdict = 0
    #expect(moe_layer_backward(layer.layer, layer.tape, x, dy, 0, nil, nil) == MOE_ERROR_BAD_STATE, "the tape is empty")

    let before = canceller.calls
    try check(forward())
    #expect(canceller.calls > before)
    canceller.verdict = 1
    #expect(moe_layer_backward(layer.layer, layer.tape, x, dy, 0, nil, nil) == MOE_ERROR_CANCELLED)

    // The layer is as good as before.
    canceller.verdict = 0
    try check(moe_layer_zero_grad(layer.layer))
    try check(moe_layer_backward(layer.layer, layer.tape, x, dy, 0, nil, nil))
    let calm = try Layer(hidden: 256, intermediate: 1024, experts: 4)
    #expect(bits(y) == bits(try calm.forward(x).y))
    _ = try calm.backward(x, dy: dy)
    #expect(bits(try layer.gradients()) == bits(try calm.gradients()))
    #expect(!canceller.otherThread)
  }
}
