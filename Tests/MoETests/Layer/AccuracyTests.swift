import CMoE
import Foundation
import Testing

/// How far our own functions are from the exact ones; the bounds are those of docs/numerics.md.
///
/// An expert whose matrices are 1 on the diagonal gives y = act(x), and for dy = 1 dx = act'(x), to the bit: every sum
/// has one term that is not 0.
@Suite("Accuracy of our own functions")
struct AccuracyTests {
  private static let width = 64  // H = I

  private struct Bound {
    var absolute: Double  // times max(1, |v|)
    var ulp: Double  // for v >= 0
  }

  @Test(arguments: [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_BASE])
  func gelu(instructions: moe_instructions) throws {
    try expectAccurate(
      MOE_ACTIVATION_GELU, instructions, value: Bound(absolute: 1.1e-7, ulp: 1.7), slope: 1.4e-7,
      { v in v * erfc(-v / 2.0.squareRoot()) / 2 },
      { v in erfc(-v / 2.0.squareRoot()) / 2 + v * exp(-v * v / 2) / (2 * Double.pi).squareRoot() })
  }

  @Test(arguments: [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_BASE])
  func geluTanh(instructions: moe_instructions) throws {
    let scale = (2 / Double.pi).squareRoot()
    // (1 + tanh u) / 2 without cancellation in the far negative
    func sigmoid(_ u: Double) -> Double { 1 / (1 + exp(-2 * u)) }
    try expectAccurate(
      MOE_ACTIVATION_GELU_TANH, instructions, value: Bound(absolute: 1.2e-7, ulp: 1.8), slope: 1.4e-7,
      { v in v * sigmoid(scale * (v + 0.044715 * v * v * v)) },
      { v in
        let s = sigmoid(scale * (v + 0.044715 * v * v * v))
        return s == 0 || s == 1 ? s : s + v * 2 * s * (1 - s) * scale * (1 + 3 * 0.044715 * v * v)
      })
  }

  @Test(arguments: [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_BASE])
  func silu(instructions: moe_instructions) throws {
    try expectAccurate(
      MOE_ACTIVATION_SILU, instructions, value: Bound(absolute: 1.2e-7, ulp: 1.5), slope: 1.2e-7,
      { v in v / (1 + exp(-v)) },
      { v in
        let s = 1 / (1 + exp(-v))
        return s + v * s * (1 - s)
      })
  }

  @Test(arguments: [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_BASE])
  func quickGELU(instructions: moe_instructions) throws {
    try expectAccurate(
      MOE_ACTIVATION_QUICK_GELU, instructions, value: Bound(absolute: 1.2e-7, ulp: 1.8), slope: 1.6e-7,
      { v in v / (1 + exp(-1.702 * v)) },
      { v in
        let s = 1 / (1 + exp(-1.702 * v))
        return s + 1.702 * v * s * (1 - s)
      })
  }

  /// One product, rounded once.
  @Test(arguments: [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_BASE])
  func relu2(instructions: moe_instructions) throws {
    let layer = try Self.diagonalLayer(MOE_ACTIVATION_RELU2, instructions)
    let x = Self.floats(everyBits: 16411) { abs($0) <= 0x1p63 }
    #expect(try layer.forward(x).y == x.map { Float(max(Double($0), 0) * max(Double($0), 0)) })
    let near = Self.floats(everyBits: 911) { abs($0) <= 100 }
    _ = try layer.forward(near)
    let slopes = try layer.backward(near, dy: [Float](repeating: 1, count: near.count))
    #expect(slopes == near.map { 2 * max($0, 0) })
  }

  private func expectAccurate(
    _ activation: moe_activation, _ instructions: moe_instructions, value: Bound, slope: Double,
    _ exact: (Double) -> Double, _ exactSlope: (Double) -> Double
  ) throws {
    let layer = try Self.diagonalLayer(activation, instructions)

    // Every magnitude, denormal and huge ones too.
    let all = Self.floats(everyBits: 16411) { $0.isFinite }
    // Where something happens. Beyond, the slopes' sum, which the router's gradient is made of, would overflow.
    let near = Self.floats(everyBits: 911) { abs($0) >= 0x1p-7 && abs($0) <= 100 }

    var worst = (absolute: 0.0, ulp: 0.0, slope: 0.0)
    for x in [all, near] {
      for (v, y) in zip(x, try layer.forward(x).y) {
        let e = exact(Double(v))
        let error = abs(Double(y) - e)
        worst.absolute = maximum(worst.absolute, error / max(1, Double(abs(v))))
        if v >= 0 { worst.ulp = maximum(worst.ulp, error / Double(max(Float(e).ulp, Float.leastNonzeroMagnitude))) }
      }
    }
    let ones = [Float](repeating: 1, count: near.count)
    _ = try layer.forward(near)
    for (v, d) in zip(near, try layer.backward(near, dy: ones)) {
      worst.slope = maximum(worst.slope, abs(Double(d) - exactSlope(Double(v))) / max(1, Double(abs(v))))
    }
    #expect(worst.absolute <= value.absolute, "error / max(1, |v|)")
    #expect(worst.ulp <= value.ulp, "ulp for v >= 0")
    #expect(worst.slope <= slope, "slope: error / max(1, |v|)")
  }

  /// A weight is the softmax of a logit: beside a logit of 0, exp(-d) / (1 + exp(-d)), down to the denormal numbers.
  @Test(arguments: [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_BASE])
  func softmax(instructions: moe_instructions) throws {
    let layer = try Layer(
      hidden: 1, intermediate: 1, experts: 2, topK: 2, in: contextConfig(instructions: instructions)
    ) {
      $0.router_normalize = MOE_NORMALIZE_NONE.int32
      $0.router_bias = MOE_BIAS_OFF.int32
    }
    let router = try layer.parameter("router.weight").values  // [E,H]
    (router[0], router[1]) = (0, -1)
    let x = Self.floats(everyBits: 911) { $0 >= 0x1p-10 && $0 <= 110 }
    let output = try layer.forward(x)
    var worst = (large: 0.0, small: 0.0)
    for (t, d) in x.enumerated() {
      let large = 1 / (1 + exp(-Double(d)))
      let small = exp(-Double(d)) * large
      worst.large = maximum(worst.large, abs(Double(output.weights[2 * t]) - large) / Double(Float(large).ulp))
      worst.small = maximum(
        worst.small,
        abs(Double(output.weights[2 * t + 1]) - small) / Double(max(Float(small).ulp, .leastNonzeroMagnitude)))
    }
    #expect(worst.large <= 2)
    #expect(worst.small <= 3)
  }

  // MARK: help

  private static func diagonalLayer(_ activation: moe_activation, _ instructions: moe_instructions) throws -> Layer {
    let layer = try Layer(
      hidden: Int64(width), intermediate: Int64(width), experts: 1, topK: 1,
      in: contextConfig(threads: 2, instructions: instructions)
    ) {
      $0.activation = activation.int32
    }
    for tensor in try layer.tensors() {
      tensor.values.update(repeating: 0)
      guard String(cString: tensor.name).hasPrefix("experts."), tensor.rank == 3 else { continue }
      for i in 0..<width { tensor.values[i * width + i] = 1 }
    }
    return layer
  }

  /// Every so many floats, of both signs, that are wanted; filled up with 0 to whole tokens.
  private static func floats(everyBits step: Int, where wanted: (Float) -> Bool) -> [Float] {
    var found: [Float] = []
    for pattern in stride(from: 0, through: Int(Float.infinity.bitPattern), by: step) {
      let magnitude = Float(bitPattern: UInt32(pattern))
      for v in [magnitude, -magnitude] where wanted(v) { found.append(v) }
    }
    return found + [Float](repeating: 0, count: (width - found.count % width) % width)
  }

  /// A NaN stays, and then fails the comparison with the bound.
  private func maximum(_ a: Double, _ b: Double) -> Double { a.isNaN || a >= b ? a : b }
}
