import CMoE
import Testing

/// A way to compute: what must not change a bit.
struct Way: CustomStringConvertible {
  var threads: Int32 = 1
  var instructions = MOE_INSTRUCTIONS_ALL
  var matmul = MOE_MATMUL_NATIVE

  var context: moe_context_config {
    contextConfig(threads: threads, matmul: matmul, instructions: instructions)
  }
  var description: String {
    "threads \(threads), instructions \(instructions.rawValue), matmul \(matmul.rawValue)"
  }

  /// Ways under the whole contract for weights of that type, those of one thread and our own kernels first.
  static func all(_ type: moe_dtype) -> [Way] {
    let most = type == MOE_DTYPE_BF16 ? MOE_INSTRUCTIONS_AVX512 : MOE_INSTRUCTIONS_ALL
    return [
      Way(instructions: most),
      Way(threads: 2, instructions: most),
      Way(threads: 3, instructions: most),
      Way(threads: 7, instructions: most),
      Way(instructions: MOE_INSTRUCTIONS_AVX2),
      Way(threads: 2, instructions: MOE_INSTRUCTIONS_AVX512),
      Way(threads: 3, instructions: MOE_INSTRUCTIONS_AVX2),
      Way(threads: 2, instructions: MOE_INSTRUCTIONS_AVX2, matmul: MOE_MATMUL_REFERENCE),
    ]
  }

  /// AVX512-BF16 adds two products at once: bits of its own, for every number of threads.
  static let inPairs = [1, 2, 3, 7].map { Way(threads: $0) }

  static let types = [MOE_DTYPE_F32, MOE_DTYPE_BF16, MOE_DTYPE_F16]

  /// In every type of weights every way computes what the first one does.
  static func expectTheSame(
    _ what: some Any, sourceLocation: SourceLocation = #_sourceLocation,
    _ run: (moe_context_config, moe_dtype) throws -> Record
  ) throws {
    for type in types {
      for ways in [all(type)] + (type == MOE_DTYPE_BF16 ? [inPairs] : []) {
        let expected = try run(ways[0].context, type)
        for way in ways.dropFirst() {
          let actual = try run(way.context, type)
          for (name, values) in expected.parts where actual.parts[name] != values {
            Issue.record(
              "\(what), weights of type \(type.rawValue): \(name) differs with \(way)", sourceLocation: sourceLocation)
          }
        }
      }
    }
  }
}
