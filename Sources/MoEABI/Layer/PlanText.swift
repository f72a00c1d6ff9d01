import CMoE
import MoE

// A plan as a line for people.

/// Bytes of the longest line, and its end.
private let longestLine = 256

@implementation @_cdecl("moe_plan_describe")
public func moe_plan_describe(
  _ plan: UnsafePointer<moe_plan>?, _ text: UnsafeMutablePointer<CChar>?, _ size: Int,
  _ length: UnsafeMutablePointer<Int>?
) -> moe_status {
  attempt { () throws(Fault) in
    var operands = Operands()
    let plan = try operands.copies(plan, "plan")
    try require(Int(plan.n_tokens), "plan.n_tokens", from: 0, to: .max)
    try require(Int(plan.chunk_tokens), "plan.chunk_tokens", from: plan.n_tokens == 0 ? 0 : 1, to: .max)
    guard let policy = Plan.TapePolicy(rawValue: plan.tape_policy) else {
      throw .invalid("plan.tape_policy = \(Int(plan.tape_policy)): moe_layer_plan has not filled this plan")
    }
    // Sizes from 2^63 on are negative here, and large enough.
    let text = size == 0 ? nil : try operands.writes(text, min(size < 0 ? .max : size, longestLine), "text")
    let wanted = try operands.writes(optional: length, 1, "length")
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: longestLine) { memory in
      var line = TextBuffer(memory.baseAddress!, capacity: memory.count)
      line.append(plan, policy)
      var count = 0
      while memory[count] != 0 { count += 1 }
      wanted?.pointee = count
      guard let text else { return }
      let room = size < 0 ? count : min(count, size - 1)
      text.update(from: memory.baseAddress!, count: room)
      text[room] = 0
    }
  }
}

extension TextBuffer {
  fileprivate mutating func append(_ plan: moe_plan, _ policy: Plan.TapePolicy) {
    append(Int(plan.n_tokens))
    append(" tokens ")
    if plan.n_tokens <= plan.chunk_tokens {
      append("at once")
    } else {
      append("in ")
      append(Int(plan.n_tokens / plan.chunk_tokens) + (plan.n_tokens % plan.chunk_tokens == 0 ? 0 : 1))
      append(" chunks of ")
      append(Int(plan.chunk_tokens))
    }
    let isTaped = plan.tape_bytes != 0
    let tape: StaticString = !isTaped ? ", no tape" : policy == .full ? ", full tape" : ", lean tape"
    append(tape)
    append("; scratch ")
    append(mebibytes: plan.forward_bytes)
    append(" forward")
    if isTaped {
      append(", ")
      append(mebibytes: plan.backward_bytes)
      append(" backward; tape ")
      append(mebibytes: plan.tape_bytes)
    }
    append("; ")
    append(mebibytes: plan.total_bytes)
    append(" in all")
  }

  /// To a tenth, rounded.
  private mutating func append(mebibytes bytes: Int) {
    let tenths = Int((Double(UInt(bitPattern: bytes)) / 0x1p20 * 10).rounded())
    append(tenths / 10)
    append(".")
    append(tenths % 10)
    append(" MiB")
  }
}
