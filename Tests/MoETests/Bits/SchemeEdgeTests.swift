import CMoE
import Testing

/// Every scheme of routing where there is hardly anything to route.
@Suite("Edges of every scheme")
struct SchemeEdgeTests {
  /// One pass in training; y, dx, and the gradients of all parameters.
  private func pass(
    _ layer: Layer, _ x: [Float], _ options: moe_forward_options
  ) throws -> (output: Layer.Output, dx: [Float], gradients: [Float]) {
    let output = try layer.forward(x, options: options)
    let dx = try layer.backward(x, dy: noise(x.count, seed: 2), dAuxLoss: 1)
    return (output, dx, try layer.gradients())
  }

  private func expectNothing(_ pass: (output: Layer.Output, dx: [Float], gradients: [Float])) {
    let (output, dx, gradients) = pass
    #expect((output.y + dx + gradients + output.weights + output.meanProbability).allSatisfy { $0 == 0 })
    #expect((output.tokensPerExpert + output.droppedPerExpert).allSatisfy { $0 == 0 })
    #expect(output.indices.allSatisfy { $0 == -1 })
    let report = output.report
    #expect([report.balance_loss, report.z_loss, report.aux_loss, report.entropy] == [0, 0, 0, 0])
    #expect(report.n_valid == 0 && report.n_dropped == 0)
  }

  @Test(arguments: Scheme.all)
  func noTokens(scheme: Scheme) throws {
    let inputs = scheme.inputs(tokens: 0)
    expectNothing(try pass(try scheme.layer(), [], inputs.options))
  }

  @Test(arguments: Scheme.all)
  func nothingButPadding(scheme: Scheme) throws {
    let inputs = scheme.inputs(tokens: 9)
    try [UInt8](repeating: 0, count: 9).withUnsafeBufferPointer { mask in
      var options = inputs.options
      options.valid_mask = mask.baseAddress
      expectNothing(try pass(try scheme.layer(), noise(9 * 13), options))
    }
  }

  /// One real token among padding is as good as alone, but for random numbers, which go by a token's place.
  @Test(arguments: Scheme.all)
  func oneRealToken(scheme: Scheme) throws {
    let inputs = scheme.inputs(tokens: 9, training: false)
    let (layer, x) = (try scheme.layer(), noise(9 * 13))
    var mask = [UInt8](repeating: 0, count: 9)
    mask[0] = 1
    let y = try mask.withUnsafeBufferPointer { mask in
      var options = inputs.options
      (options.valid_mask, options.sequence_length) = (mask.baseAddress, 0)
      let (output, dx, _) = try pass(layer, x, options)
      #expect(output.report.n_valid == 1)
      #expect((output.y[13...] + dx[13...]).allSatisfy { $0 == 0 })
      return output.y[..<13]
    }
    var options = inputs.options
    options.sequence_length = 0
    #expect(bits(try layer.forward(Array(x[..<13]), options: options).y) == bits(Array(y)))
  }
}
