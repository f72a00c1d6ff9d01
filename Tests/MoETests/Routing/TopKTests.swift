import CMoE
import Testing

/// The choice of experts against a plain sort, for every instruction set: no kernel's tail may be wrong.
@Suite("Top-k")
struct TopKTests {
  private let x: [Float] = [1, 0, 0, 0, 1, 0, 0, 0, 1]  // [T,H]: token t has the logits in column t of the router

  private func layer(experts: Int, topK: Int, sharing owner: Layer) throws -> Layer {
    try Layer(
      hidden: 3, intermediate: 1, experts: Int64(experts), topK: Int64(topK), sharingContextOf: owner
    ) { $0.inference_only = 1 }
  }

  @Test(arguments: everyInstructionSet)
  func chooseAsASortDoes(instructions: moe_instructions) throws {
    let owner = try Layer(in: contextConfig(instructions: instructions))
    for experts in 1...100 {
      // Numbers of which many are equal; all different ones; and sorted ones, the best last. Some experts are closed.
      let random = noise(2 * experts, seed: UInt64(experts))
      let columns = [
        random.prefix(experts).map { ($0 * 3).rounded() }, Array(random.suffix(experts)),
        (0..<experts).map(Float.init),
      ]
      let closed = Set((0..<experts).filter { $0 % 7 == 3 && experts % 2 == 0 })
      let orders = columns.map { logits in
        (0..<experts).filter { !closed.contains($0) }.sorted { (-logits[$0], $0) < (-logits[$1], $1) }
      }
      for topK in 1...experts {
        let layer = try layer(experts: experts, topK: topK, sharing: owner)
        let (weight, bias) = (try layer.parameter("router.weight").values, try layer.parameter("router.bias").values)
        for e in 0..<experts {
          for t in 0..<3 { weight[e * 3 + t] = columns[t][e] }
          bias[e] = closed.contains(e) ? -.infinity : 0
        }
        if topK > experts - closed.count {
          var y = x
          #expect(moe_layer_forward(layer.layer, x, 3, nil, &y, nil, nil) == MOE_ERROR_NOT_FINITE)
        } else {
          let expected = orders.flatMap { $0.prefix(topK).map(Int32.init) }
          #expect(try layer.forward(x).indices == expected, "\(topK) of \(experts)")
        }
      }
    }
  }

  @Test(arguments: everyInstructionSet)
  func whatIsNotANumberIsFoundInEveryPlace(instructions: moe_instructions) throws {
    let owner = try Layer(in: contextConfig(instructions: instructions))
    for experts in [1, 15, 16, 17, 32, 50] {
      let layer = try layer(experts: experts, topK: 1, sharing: owner)
      let bias = try layer.parameter("router.bias").values
      for e in 0..<experts {
        for poison in [Float.nan, .infinity] {
          bias[e] = poison
          var y = x
          #expect(moe_layer_forward(layer.layer, x, 3, nil, &y, nil, nil) == MOE_ERROR_NOT_FINITE)
          #expect(lastError().hasPrefix("router.bias[\(e)] is"), "\(lastError())")
        }
        bias[e] = 0
      }
    }
  }
}
