import CMoE
import Foundation
import Testing

/// Random numbers to the bit, for every instruction set, against Philox written down once more.
@Suite("Random numbers")
struct RandomTests {
  private static let seed: UInt64 = 0xFEDC_BA98_7654_3210
  private static let widths = [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 47, 64, 65, 99, 161]

  @Test func philoxGivesItsAuthorsExamples() {
    // Random123's known answers.
    let ones = UInt32.max
    for (counter, key, expected): ([UInt32], [UInt32], [UInt32]) in [
      ([0, 0, 0, 0], [0, 0], [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]),
      ([ones, ones, ones, ones], [ones, ones], [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]),
      (
        [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344], [0xA409_3822, 0x299F_31D0],
        [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x24126EA1]
      ),
    ] {
      #expect(philox(counter: counter, key: key) == expected)
    }
  }

  @Test(arguments: everyInstructionSet, [MOE_MATMUL_AUTO, MOE_MATMUL_REFERENCE])
  func dropoutIsAFunctionOfSeedStepAndPlace(instructions: moe_instructions, matmul: moe_matmul) throws {
    let (rate, step) = (Float(0.3), UInt64(0xAB_CDEF_0123_4567))
    let owner = try Layer(in: contextConfig(matmul: matmul, instructions: instructions))
    for width in Self.widths {
      // Inner activations are 1, and each goes to a y of its own: the first choice's to y[0 ..< I], the other's behind.
      let layer = try Layer(
        hidden: Int64(2 * width), intermediate: Int64(width), experts: 2, topK: 2, sharingContextOf: owner
      ) {
        $0.activation = MOE_ACTIVATION_RELU.int32
        $0.dropout = rate
        $0.seed = Self.seed
      }
      for tensor in try layer.tensors() { tensor.values.update(repeating: 0) }
      try layer.parameter("experts.up.bias").values.update(repeating: 1)
      let down = try layer.parameter("experts.down.weight").values  // [E,H,I]
      for pair in 0..<2 * width { down[(pair / width * 2 * width + pair) * width + pair % width] = 1 }

      let x = [Float](repeating: 0, count: 5 * layer.hidden)
      let output = try layer.forward(x, options: forwardOptions(training: true, step: step))
      #expect(output.indices == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
      let kept = 0.5 * (1 / (1 - Double(rate)))  // both weights are 1/2
      let expected = output.y.indices.map { i -> Float in
        let (pair, inner) = (i / width, i % width)
        let place = 4 * pair * ((width + 3) / 4) + inner
        let word = randomWord(place, seed: Self.seed, stream: 16, step: step)
        return Double(word) < (Double(rate) * 0x1p32).rounded(.down) ? 0 : Float(kept)
      }
      #expect(output.y == expected, "I = \(width)")

      // And the same mask in backward, where the gradient of each activation reaches the bias before it.
      _ = try layer.backward(x, dy: [Float](repeating: 1, count: x.count))
      let gradient = try layer.parameter("experts.up.bias").gradient  // [E,I]
      let sums = (0..<2 * width).map { i in (0..<5).reduce(0.0) { $0 + Double(expected[$1 * 2 * width + i]) } }
      // The slope of ReLU at 1 is 1.
      expectClose(gradient, sums, within: 1e-6, "I = \(width)")
    }
  }

  @Test(arguments: everyInstructionSet)
  func initialValuesAreAFunctionOfSeedAndPlace(instructions: moe_instructions) throws {
    let owner = try Layer(in: contextConfig(instructions: instructions))
    for width in Self.widths {
      let (hidden, experts) = (7, 3)
      let layer = try Layer(
        hidden: Int64(hidden), intermediate: Int64(width), experts: Int64(experts), sharingContextOf: owner
      ) {
        $0.seed = Self.seed
        $0.expert_kind = MOE_EXPERT_GATED.int32
        $0.expert_bias = MOE_BIAS_ON.int32
      }
      let fromHidden = 1 / Double(hidden).squareRoot()
      let xavier = (6 / Double(hidden + width)).squareRoot()
      let fromInner = 1 / Double(width).squareRoot()
      let bounds = [fromHidden, fromHidden, xavier, fromHidden, xavier, fromHidden, xavier, fromInner]  // by stream
      for (stream, tensor) in try layer.tensors().enumerated() where stream > 0 {
        let expected = (0..<tensor.count).map { i -> Float in
          let word = randomWord(i, seed: Self.seed, stream: UInt32(stream))
          // The middles of 2^23 steps from -1 to 1
          return Float((Double(word >> 9) + 0.5) * 0x1p-22 - 1) * Float(bounds[stream])
        }
        #expect(bits(Array(tensor.values)) == bits(expected), "\(String(cString: tensor.name)), I = \(width)")
      }
    }
  }

  @Test(arguments: everyInstructionSet)
  func theRoutersWeightsAreMarsagliasPolarMethod(instructions: moe_instructions) throws {
    let layer = try Layer(hidden: 33, experts: 17, in: contextConfig(instructions: instructions)) {
      $0.seed = Self.seed
    }
    let expected = (0..<17 * 33).map { i -> Double in
      for attempt in 0... {
        let point = (0..<2).map { word in
          (Double(randomWord(4 * i + word, seed: Self.seed, stream: 0, step: UInt64(attempt))) + 0.5) * 0x1p-31 - 1
        }
        let square = point[0] * point[0] + point[1] * point[1]
        if square < 1 { return point[0] * (-2 * log(square) / square).squareRoot() / 33.0.squareRoot() }
      }
      return .nan
    }
    expectClose(try layer.parameter("router.weight").values, expected, within: 1e-7)
  }
}
