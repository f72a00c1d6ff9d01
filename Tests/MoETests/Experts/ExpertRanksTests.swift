import CMoE
import Foundation
import Testing

/// Calls of experts over a group of one rank: the bits of a call alone, memory, and what is refused. Several ranks are tested in Python.
@Suite("Experts by call over ranks")
struct ExpertRanksTests {
  /// A group of one: what it sends it receives.
  private static func alone() -> moe_communicator {
    var made = moe_communicator()
    moe_communicator_init(&made, MemoryLayout<moe_communicator>.size)
    made.size = 1
    made.all_to_all = { _, send, sent, from, receive, _, to, request in
      if sent![0] > 0, receive! + Int(to![0]) != send! + Int(from![0]) {
        memcpy(receive! + Int(to![0]), send! + Int(from![0]), Int(sent![0]))
      }
      request!.pointee = nil
      return 0
    }
    made.send = { _, _, _, _, _, _ in 1 }
    made.receive = { _, _, _, _, _, _ in 1 }
    made.test = { _, _, done in
      done!.pointee = 1
      return 0
    }
    made.wait = { _, _ in 0 }
    made.error = { _, _ in
      UnsafeRawPointer(("no such call" as StaticString).utf8Start).assumingMemoryBound(to: CChar.self)
    }
    made.abandon = { _, _ in }
    return made
  }

  private func create(
    in context: OpaquePointer?, experts: Int64 = 4, counts: [Int64]? = nil, _ out: inout OpaquePointer?,
    change: (inout moe_communicator) -> Void = { _ in }
  ) -> moe_status {
    var communicator = Self.alone()
    change(&communicator)
    return moe_experts_ranks_create(context, &communicator, experts, counts, &out)
  }

  @Test(arguments: [MOE_EXPERT_GATED, MOE_EXPERT_MLP, MOE_EXPERT_LINEAR])
  func theBitsAreThoseOfACallAlone(kind: moe_expert_kind) throws {
    for layout in ExpertLayout.all {
      for type in Way.types {
        let experts = try CalledExperts(kind, layout, type, in: contextConfig(threads: 2))
        let expected = try experts.everything()
        try check(create(in: experts.context, &experts.ranks))
        #expect(try experts.everything() == expected, "\(kind.rawValue), \(layout), \(type.rawValue)")
      }
    }
  }

  @Test func bytesThatAreSavedAreTheSameOnEveryRun() throws {
    let experts = try CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_BF16, in: contextConfig(threads: 2))
    try check(create(in: experts.context, &experts.ranks))
    let size = try experts.plan().tape_bytes
    var (one, other) = ([UInt8](repeating: 1, count: size), [UInt8](repeating: 2, count: size))
    _ = try experts.forward(saved: &one)
    _ = try experts.forward(saved: &other)
    #expect(one == other)
    #expect(bits(try experts.backward(saved: one).dx) == bits(try experts.backward(saved: nil).dx))
  }

  @Test func aPlanHasWhatAForwardTakes() throws {
    let allocator = CountingAllocator()
    var config = allocator.contextConfig
    config.n_threads = 2
    do {
      let experts = try CalledExperts(MOE_EXPERT_GATED, .gaps, MOE_DTYPE_F32, in: config)
      try check(create(in: experts.context, &experts.ranks))
      let plan = try experts.plan()
      func inUse() throws -> Int {
        var (now, peak) = (0, 0)
        try check(moe_context_memory(experts.context, &now, &peak))
        return now
      }
      let before = try inUse()
      var saved = [UInt8](repeating: 0, count: plan.tape_bytes)
      _ = try experts.forward(saved: &saved)
      #expect(try inUse() == before + plan.forward_bytes)
    }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty)
  }

  @Test func everyAllocationMayFail() throws {
    let allocator = CountingAllocator()
    for k in 1... {
      let experts = try CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_F32, in: allocator.contextConfig)
      let expected = bits(try experts.tryForward())
      allocator.fail(at: k)
      var failed = false
      if create(in: experts.context, &experts.ranks) == MOE_OK {
        do {
          #expect(bits(try experts.tryForward()) == expected)
          _ = try experts.tryBackward()
        } catch let error as CalledExperts.Refusal {
          #expect(error.status == MOE_ERROR_OUT_OF_MEMORY)
          failed = true
        }
      } else {
        failed = true
      }
      allocator.fail(at: nil)
      if !failed { break }
      if experts.ranks == nil { try check(create(in: experts.context, &experts.ranks)) }
      #expect(bits(try experts.tryForward()) == expected)
    }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty)
  }

  @Test func whatMakesNoGroupIsRefused() throws {
    let experts = try CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_F32)
    var out: OpaquePointer?
    refused("context", create(in: nil, &out))
    refused("struct_size", create(in: experts.context, &out) { $0.struct_size = 8 })
    refused("size", create(in: experts.context, &out) { $0.size = 0 })
    refused("rank", create(in: experts.context, &out) { $0.rank = 1 })
    refused("wait", create(in: experts.context, &out) { $0.wait = nil })
    for count in [0, -1, Int64.max] { refused("n_experts", create(in: experts.context, experts: count, &out)) }
    for count in [3, 5, -1, Int64.max] {
      refused("experts_per_rank", create(in: experts.context, counts: [count], &out))
    }
    #expect(out == nil)
    var communicator = Self.alone()
    refused("out", moe_experts_ranks_create(experts.context, &communicator, 4, nil, nil))
    moe_experts_ranks_free(nil)
  }

  @Test func callsThatDoNotFitAreRefused() throws {
    let experts = try CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_F32)
    try check(create(in: experts.context, experts: 5, &experts.ranks))
    #expect(throws: CalledExperts.Refusal(status: MOE_ERROR_INVALID_ARGUMENT)) { try experts.tryForward() }
    #expect(lastError().contains("rank 0: n_experts = 4, but of the 5 experts"))
    moe_experts_ranks_free(experts.ranks)
    try check(create(in: experts.context, &experts.ranks))
    var plan = moe_plan()
    moe_plan_init(&plan, MemoryLayout<moe_plan>.size)
    refused(
      "expert_indices",
      experts.withCall { call in
        var call = call
        call.expert_indices = nil
        return experts.withConfig { moe_experts_plan(experts.context, &$0, &call, nil, 1, &plan) }
      })
    var saved = [UInt8](repeating: 0, count: 8)
    refused(
      "saved_size",
      experts.withCall { call in
        var (call, y) = (call, experts.x)
        return saved.withUnsafeMutableBytes { saved in
          experts.withConfig {
            moe_experts_forward(experts.context, &$0, &call, experts.x, &y, saved.baseAddress, 8, nil)
          }
        }
      })
    #expect(try experts.tryForward() == CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_F32).forward())
  }
}
