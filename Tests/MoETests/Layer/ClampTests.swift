import CMoE
import Foundation
import Testing

/// Gated experts whose projections are clamped: what happens at the limits, to the bit. That values and gradients are
/// right elsewhere: ForwardTests and BackwardTests.
@Suite("Clamped experts")
struct ClampTests {
  /// Experts of one inner feature, so that g and u are what the biases say.
  private func layer(
    _ activation: moe_activation = MOE_ACTIVATION_SILU, alpha: Float = 0, offset: Float = 0, g: Float, u: Float,
    in context: moe_context_config
  ) throws -> Layer {
    let layer = try Layer(hidden: 1, intermediate: 1, experts: 1, topK: 1, in: context) {
      $0.expert_kind = MOE_EXPERT_GATED.int32
      $0.expert_bias = MOE_BIAS_ON.int32
      $0.activation = activation.int32
      $0.glu_limit = 7
      $0.glu_alpha = alpha
      $0.glu_offset = offset
    }
    for tensor in try layer.tensors() { tensor.values.update(repeating: 0) }
    try layer.parameter("experts.gate.bias").values[0] = g
    try layer.parameter("experts.up.bias").values[0] = u
    try layer.parameter("experts.down.weight").values[0] = 1
    return layer
  }

  /// y, dy/dg and dy/du.
  private func slopes(_ layer: Layer) throws -> (y: Float, g: Float, u: Float) {
    let y = try layer.forward([1]).y[0]
    _ = try layer.backward([1], dy: [1])
    return (
      y, try layer.parameter("experts.gate.bias").gradient[0], try layer.parameter("experts.up.bias").gradient[0]
    )
  }

  /// ReLU makes the expected numbers exact: y = min(g, 7) * (clamp(u) + 1).
  @Test(arguments: everyInstructionSet, [MOE_MATMUL_AUTO, MOE_MATMUL_OPENBLAS])
  func gradientsPassAtTheLimitAndStopBeyond(instructions: moe_instructions, matmul: moe_matmul) throws {
    let context = contextConfig(matmul: matmul, instructions: instructions)
    let beyond = Float(7).nextUp
    for (g, passes) in [(Float(3), true), (7, true), (beyond, false), (1e30, false), (.infinity, false)] {
      for (u, through) in [
        (Float(2), true), (7, true), (-7, true), (beyond, false), (-beyond, false), (-.infinity, false),
      ] {
        let found = try slopes(layer(MOE_ACTIVATION_RELU, offset: 1, g: g, u: u, in: context))
        let clamped = (g: min(g, 7), u: max(min(u, 7), -7) + 1)
        #expect(found.y == clamped.g * clamped.u, "g \(g) u \(u)")
        #expect(found.g == (passes ? clamped.u : 0), "g \(g) u \(u)")
        #expect(found.u == (through ? clamped.g : 0), "g \(g) u \(u)")
      }
    }
  }

  /// The gate has no lower limit.
  @Test func farNegativeGates() throws {
    let found = try slopes(layer(g: -20, u: 2, in: defaultContextConfig()))
    expectClose([found.y], [2 * -20 / (1 + exp(20.0))], within: 1e-5, "y")
    #expect(found.g < 0 && found.u < 0)
  }

  @Test func nanIsNotHidden() throws {
    #expect(try slopes(layer(g: .nan, u: 2, in: defaultContextConfig())).y.isNaN)
    let found = try slopes(layer(g: 1, u: .nan, in: defaultContextConfig()))
    #expect(found.y.isNaN && found.g.isNaN)
  }

  /// alpha is what QUICK_GELU has built in.
  @Test(arguments: everyInstructionSet)
  func siluWithThisAlphaIsQuickGELU(instructions: moe_instructions) throws {
    let context = contextConfig(instructions: instructions)
    for g in noise(50).map({ $0 * 12 }) {
      let silu = try slopes(layer(alpha: 1.702, offset: 1, g: g, u: 0.5, in: context))
      let quick = try slopes(layer(MOE_ACTIVATION_QUICK_GELU, offset: 1, g: g, u: 0.5, in: context))
      #expect(bits([silu.y, silu.g, silu.u]) == bits([quick.y, quick.g, quick.u]))
    }
  }

  /// Products beyond float32's range must not make NaN of slopes that are 0 or 1.
  @Test func largeAlpha() throws {
    for (g, slope) in [(Float(-5), Float(0)), (5, 2)] {
      let found = try slopes(layer(alpha: .greatestFiniteMagnitude, g: g, u: 2, in: defaultContextConfig()))
      #expect(found.g == slope)
      #expect(found.u == max(g, 0))
    }
  }

  /// Limits that nothing reaches, and an offset of 0, are no limits.
  @Test func idleLimitsChangeNoBit() throws {
    let size = Size(tokens: 37, hidden: 35, intermediate: 45, experts: 3, topK: 2)
    func record(limit: Float) throws -> Record {
      let layer = try size.layer {
        $0.expert_kind = MOE_EXPERT_GATED.int32
        $0.activation = MOE_ACTIVATION_SILU.int32
        $0.glu_limit = limit
      }
      return try Record(ofOnePassOver: layer, tokens: size.tokens)
    }
    #expect(try record(limit: 1e9).parts == record(limit: 0).parts)
  }
}
