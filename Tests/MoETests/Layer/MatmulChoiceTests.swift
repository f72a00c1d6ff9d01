import CMoE
import Foundation
import Testing

/// Who computes the matrix products, with which instructions: what is chosen, refused and told, and that all agree.
@Suite("Choice of matrix products and instructions")
struct MatmulChoiceTests {
  private static let size = Size(tokens: 130, hidden: 131, intermediate: 77, experts: 5, topK: 2)

  /// y, dx and every gradient of one call, by name.
  private static func everything(_ context: moe_context_config, kind: moe_expert_kind) throws -> [String: [Float]] {
    let layer = try size.layer(in: context) { $0.expert_kind = kind.int32 }
    let x = noise(size.tokens * layer.hidden)
    let output = try layer.forward(x)
    var parts = ["y": output.y, "weights": output.weights, "indices": output.indices.map(Float.init)]
    parts["dx"] = try layer.backward(x, dy: noise(x.count, seed: 2), dAuxLoss: 1)
    for tensor in try layer.tensors() { parts[String(cString: tensor.name)] = Array(tensor.gradient) }
    return parts
  }

  @Test(arguments: [MOE_EXPERT_MLP, MOE_EXPERT_GATED])
  func allAgree(kind: moe_expert_kind) throws {
    let expected = try Self.everything(contextConfig(), kind: kind)
    for context in [
      contextConfig(threads: 2, matmul: MOE_MATMUL_OPENBLAS),
      contextConfig(matmul: MOE_MATMUL_OPENBLAS, instructions: MOE_INSTRUCTIONS_AVX2),
      contextConfig(threads: 2, instructions: MOE_INSTRUCTIONS_BASE),
      contextConfig(matmul: MOE_MATMUL_REFERENCE, instructions: MOE_INSTRUCTIONS_BASE),
    ] {
      for (name, values) in try Self.everything(context, kind: kind) {
        expectClose(
          values, expected[name]!.map(Double.init), within: 1e-5,
          "\(name), matmul \(context.matmul) instructions \(context.instructions): ")
      }
    }
  }

  /// What moe_build_info says of a context.
  private func info(_ matmul: moe_matmul, _ instructions: moe_instructions, threads: Int32 = 1) throws -> String {
    let layer = try Layer(in: contextConfig(threads: threads, matmul: matmul, instructions: instructions))
    return String(cString: moe_build_info(layer.context))
  }

  @Test func buildInfoNamesKernelsAndProducts() throws {
    #expect(try info(MOE_MATMUL_OPENBLAS, MOE_INSTRUCTIONS_ALL).contains("matrix products: OpenBLAS"))
    #expect(try info(MOE_MATMUL_REFERENCE, MOE_INSTRUCTIONS_ALL).contains("matrix products: reference"))
    #expect(
      try info(MOE_MATMUL_AUTO, MOE_INSTRUCTIONS_ALL)
        .contains("matrix products: \(Processor.hasFMA ? "libmoe" : "OpenBLAS")"))
    #expect(try info(MOE_MATMUL_AUTO, MOE_INSTRUCTIONS_ALL, threads: 3).contains("threads: 3"))
  }

  #if arch(x86_64)
    @Test func instructionsAreTheMostThatMayBeUsed() throws {
      let two = Processor.hasFMA ? "avx2" : "base"
      let three = Processor.hasAVX512 ? "avx512" : two
      let most = Processor.hasAVX512BF16 ? "avx512-bf16" : three
      for (asked, name) in [
        (MOE_INSTRUCTIONS_ALL, most), (MOE_INSTRUCTIONS_BASE, "base"), (MOE_INSTRUCTIONS_AVX2, two),
        (MOE_INSTRUCTIONS_AVX512, three), (MOE_INSTRUCTIONS_AVX512_BF16, most),
      ] {
        #expect(try info(MOE_MATMUL_AUTO, asked).contains("kernels: \(name);"))
      }
      #expect(try info(MOE_MATMUL_AUTO, MOE_INSTRUCTIONS_BASE).contains("matrix products: OpenBLAS"))
    }

    @Test func ourKernelsWantFusedMultiplyAdd() {
      var config = contextConfig(matmul: MOE_MATMUL_NATIVE, instructions: MOE_INSTRUCTIONS_BASE)
      var out = untouched
      refused("matmul", moe_context_create(&config, &out))
      #expect(out == untouched)
    }
  #endif
}
