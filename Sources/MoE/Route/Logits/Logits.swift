import CShims

/// The logits of a block of tokens: what the gates say, with noise and dropout, joined where there are two gates, minus
/// infinity for experts that are not in use yet. Forward and backward compute the same.
struct Logits {
  let c: Configuration
  let matmul: Matmul
  let gate: Gate?
  let coarseGate: Gate?
  let noiseGate: Gate?
  let noise: Noise?
  let dropout: RouterDropout?
  let hierarchy: Hierarchy?
  let active: Int  // experts that may be chosen
  private let coarse: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, G]
  private let learned: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E]
  private let joined: UnsafeMutablePointer<Float>  // [lanes, E]
  private let products: UnsafeMutablePointer<Float>  // scratch of the matrix products
  private let floatsPerLane: Int

  /// `input`: what the gates read, [T,H].
  init(_ arena: inout Arena, _ work: RouteWork, input: UnsafePointer<Float>) {
    c = work.c
    active = work.activeExperts
    matmul = work.matmul
    let (parameters, draws) = (work.parameters, work.draws)
    gate = Gate(parameters, .routerWeight, .routerBias, input: input)
    coarseGate = Gate(parameters, .coarseWeight, .coarseBias, input: input)
    noise = Noise(c, draws)
    noiseGate = noise == nil ? nil : Gate(parameters, .noiseWeight, nil, input: input)
    dropout = RouterDropout(c, draws, onLogits: true)
    hierarchy = coarseGate == nil ? nil : Hierarchy(c, c.choice.groups!, work.kernels)
    let rows = work.lanes * rowsPerBlock
    coarse = arena.take(Float.self, rows, coarseGate?.outputs ?? 0)
    learned = arena.take(Float.self, rows, noiseGate?.outputs ?? 0)
    joined = arena.take(Float.self, work.lanes, hierarchy == nil ? 0 : c.experts)
    floatsPerLane = matmul.scratch(tokens: work.tokens, width: max(c.hidden, c.experts, GateGradient.width))
    products = arena.take(Float.self, work.lanes, floatsPerLane)
  }

  func scratch(_ lane: Int) -> UnsafeMutablePointer<Float> { products + lane * floatsPerLane }
  /// Logits of a block's groups.
  func coarse(_ lane: Int) -> UnsafeMutablePointer<Float>? {
    coarseGate.map { coarse + lane * rowsPerBlock * $0.outputs }
  }
  /// The deviations of a block's learned noise, once `fill` has made them.
  func learned(_ lane: Int) -> UnsafeMutablePointer<Float>? {
    noiseGate.map { learned + lane * rowsPerBlock * $0.outputs }
  }

  /// Whether the gate's outputs for the only block of tokens are worth sharing out among threads. Other products than our own have other bits
  /// for other shapes.
  func areSharedOut(_ tokens: Int, threads: Int) -> Bool {
    guard let gate, threads > 1, matmul.backend == .native else { return false }
    return gate.outputs > chunkWidth && tokens * gate.outputs * gate.hidden >= 1 << 17
  }

  /// z [tokens, E]; and, for those who look behind the noise, what they were without it. `isGated`: z has the gate's outputs.
  func fill(
    _ z: UnsafeMutablePointer<Float>, _ tokens: Range<Int>, _ routing: Routing, _ lane: Int,
    clean: UnsafeMutablePointer<Float>? = nil, isGated: Bool = false
  ) {
    guard let gate else { return }
    let e = c.experts
    if !isGated { gate.forward(tokens, into: z, matmul, scratch(lane)) }
    clean?.update(from: z, count: tokens.count * e)
    if let coarseGate { coarseGate.forward(tokens, into: coarse(lane)!, matmul, scratch(lane)) }
    if let noiseGate { noiseGate.forward(tokens, into: learned(lane)!, matmul, scratch(lane)) }
    if let noise {
      for t in tokens where routing.isRouted(t) {
        let row = t - tokens.lowerBound
        noise.add(t, to: z + row * e, learned: learned(lane).map { $0 + row * e })
      }
    }
    dropout?.apply(z, first: tokens.lowerBound * e, count: tokens.count * e)
    if let hierarchy {
      for row in 0..<tokens.count {
        hierarchy.join(z + row * e, coarse: coarse(lane)! + row * hierarchy.groups, joined + lane * e)
      }
    }
    if active < e {
      for row in 0..<tokens.count { (z + row * e + active).update(repeating: -.infinity, count: e - active) }
    }
  }

  // MARK: backward

  /// What the learned noise is made from, [tokens, E].
  func learnedAgain(_ tokens: Range<Int>, _ lane: Int) -> UnsafePointer<Float>? {
    guard let noiseGate, let learned = learned(lane) else { return nil }
    noiseGate.forward(tokens, into: learned, matmul, scratch(lane))
    return UnsafePointer(learned)
  }
}
