import CMoE
import Testing

/// The numeric contract for every scheme of routing: in training and in evaluation, for some tokens and for more than one
/// block of them, with and without padding.
@Suite("The same bits of every scheme", .enabled(if: Processor.hasFMA))
struct SchemeBitsTests {
  @Test(arguments: Scheme.all)
  func everyWay(scheme: Scheme) throws {
    for (tokens, masked) in [(63, false), (303, true)] {
      for training in [true, false] {
        let inputs = scheme.inputs(tokens: tokens, training: training, masked: masked)
        try Way.expectTheSame("\(tokens) tokens, training: \(training)") { context, type in
          let layer = try scheme.layer(in: context) { $0.weight_dtype = type.int32 }
          let record = try Record(ofOnePassOver: layer, tokens: tokens, inputs.options)
          if scheme.drops { #expect(record.dropped > 0) }
          return record
        }
      }
    }
  }

  /// Padding in one block, and tokens of several without any.
  @Test(arguments: Scheme.all)
  func maskedAndUnmasked(scheme: Scheme) throws {
    for (tokens, masked) in [(63, true), (303, false)] {
      let inputs = scheme.inputs(tokens: tokens, masked: masked)
      let records = try [Way(), Way(threads: 3, instructions: MOE_INSTRUCTIONS_AVX2)].map {
        try Record(ofOnePassOver: try scheme.layer(in: $0.context), tokens: tokens, inputs.options)
      }
      for (name, values) in records[0].parts where records[1].parts[name] != values {
        Issue.record("\(tokens) tokens: \(name) differs")
      }
    }
  }
}
