import CShims

// x, y and their gradients as the caller has them. The engine computes with float32; others become float32 in
// scratch on the way in, and are rounded on the way out.

/// [T,H] that is read.
struct TokensIn: Job {
  let floats: UnsafePointer<Float>
  private let kernels: UnsafePointer<moei_kernels>
  private let type: ElementType
  private let source: UnsafeRawPointer
  private let target: UnsafeMutablePointer<Float>?  // nil where the floats are the caller's own
  private let tokens: Int
  private let hidden: Int

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, _ memory: UnsafeRawPointer, tokens: Int
  ) {
    kernels = context.kernels
    (self.tokens, hidden) = (tokens, c.hidden)
    (type, source) = (c.tokens, memory)
    target = type == .f32 ? nil : arena.take(Float.self, tokens, c.hidden)
    floats = target.map { UnsafePointer($0) } ?? memory.assumingMemoryBound(to: Float.self)
  }

  func run(in context: ContextPointer) throws(Fault) {
    if target != nil { try context.run(blocks(of: tokens), self) }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let rows = rows(ofBlock: block, in: tokens)
    let first = rows.lowerBound * hidden
    type.toFloats(source, first, rows.count * hidden, target! + first, kernels)
  }
}

/// [T,H] that is written.
struct TokensOut: Job {
  let floats: UnsafeMutablePointer<Float>
  private let kernels: UnsafePointer<moei_kernels>
  private let type: ElementType
  private let target: UnsafeMutableRawPointer
  private let tokens: Int
  private let hidden: Int

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, _ memory: UnsafeMutableRawPointer, tokens: Int
  ) {
    kernels = context.kernels
    (self.tokens, hidden) = (tokens, c.hidden)
    (type, target) = (c.tokens, memory)
    floats = type == .f32 ? memory.assumingMemoryBound(to: Float.self) : arena.take(Float.self, tokens, c.hidden)
  }

  func run(in context: ContextPointer) throws(Fault) {
    if type != .f32 { try context.run(blocks(of: tokens), self) }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let rows = rows(ofBlock: block, in: tokens)
    let first = rows.lowerBound * hidden
    type.fromFloats(floats + first, rows.count * hidden, target, first, kernels)
  }
}
