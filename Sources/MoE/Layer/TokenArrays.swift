import CShims

// x, y and their gradients as the caller has them. The engine computes with float32; bfloat16 arrays become float32 ones in
// scratch on the way in, and are rounded on the way out.

/// [T,H] that is read.
struct TokensIn: Job {
  let floats: UnsafePointer<Float>
  private let kernels: UnsafePointer<moei_kernels>
  private let source: UnsafePointer<UInt16>?  // nil where the floats are the caller's own
  private let target: UnsafeMutablePointer<Float>?
  private let tokens: Int
  private let hidden: Int

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, _ memory: UnsafeRawPointer, tokens: Int
  ) {
    kernels = context.kernels
    (self.tokens, hidden) = (tokens, c.hidden)
    source = c.tokens == .bf16 ? memory.assumingMemoryBound(to: UInt16.self) : nil
    target = c.tokens == .bf16 ? arena.take(Float.self, tokens, c.hidden) : nil
    floats = target.map { UnsafePointer($0) } ?? memory.assumingMemoryBound(to: Float.self)
  }

  func run(in context: ContextPointer) throws(Fault) {
    if source != nil { try context.run(blocks(of: tokens), self) }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let rows = rows(ofBlock: block, in: tokens)
    let first = rows.lowerBound * hidden
    kernels.pointee.from_bf16(Int64(rows.count * hidden), source! + first, target! + first)
  }
}

/// [T,H] that is written.
struct TokensOut: Job {
  let floats: UnsafeMutablePointer<Float>
  private let kernels: UnsafePointer<moei_kernels>
  private let target: UnsafeMutablePointer<UInt16>?  // nil where the floats are the caller's own
  private let tokens: Int
  private let hidden: Int

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, _ memory: UnsafeMutableRawPointer, tokens: Int
  ) {
    kernels = context.kernels
    (self.tokens, hidden) = (tokens, c.hidden)
    target = c.tokens == .bf16 ? memory.assumingMemoryBound(to: UInt16.self) : nil
    floats =
      target == nil ? memory.assumingMemoryBound(to: Float.self) : arena.take(Float.self, tokens, c.hidden)
  }

  func run(in context: ContextPointer) throws(Fault) {
    if target != nil { try context.run(blocks(of: tokens), self) }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let rows = rows(ofBlock: block, in: tokens)
    let first = rows.lowerBound * hidden
    kernels.pointee.to_bf16(Int64(rows.count * hidden), floats + first, target! + first)
  }
}
