import CMoE
import Foundation
import Testing

@Suite("Attention")
struct AttentionTests {
  private static let (heads, size, tokens) = (2, 3, 40)

  private func config(causal: Int32, _ type: moe_dtype = MOE_DTYPE_F32) -> moe_attention_config {
    var config = moe_attention_config()
    moe_attention_config_init(&config, MemoryLayout<moe_attention_config>.size)
    config.n_sequences = 1
    config.n_queries = Int64(Self.tokens)
    config.n_heads = Int64(Self.heads)
    config.head_size = Int64(Self.size)
    config.causal = causal
    config.compute_dtype = type.int32
    return config
  }

  private func withContext(_ body: (OpaquePointer) throws -> Void) throws {
    var context: OpaquePointer?
    try check(moe_context_create(nil, &context))
    defer { moe_context_free(context) }
    try body(try #require(context))
  }

  /// The same in double, a head and a query at a time.
  private func expected(_ q: [Float], _ k: [Float], _ v: [Float], causal: Bool) -> [Double] {
    let width = Self.heads * Self.size
    var output = [Double](repeating: 0, count: q.count)
    for (s, head) in (0..<Self.tokens).flatMap({ s in (0..<Self.heads).map { (s, $0 * Self.size) } }) {
      let weights = (0..<(causal ? s + 1 : Self.tokens)).map { u in
        exp(
          (0..<Self.size).reduce(0.0) { $0 + Double(q[s * width + head + $1]) * Double(k[u * width + head + $1]) }
            / Double(Self.size).squareRoot())
      }
      let total = weights.reduce(0, +)
      for d in 0..<Self.size {
        output[s * width + head + d] = weights.enumerated().reduce(0.0) {
          $0 + $1.element / total * Double(v[$1.offset * width + head + d])
        }
      }
    }
    return output
  }

  @Test(arguments: [Int32(0), 1], [MOE_DTYPE_F32, MOE_DTYPE_BF16])
  func forwardIsTheTextbooks(causal: Int32, type: moe_dtype) throws {
    let count = Self.tokens * Self.heads * Self.size
    let (q, k, v) = (noise(count, seed: 1), noise(count, seed: 2), noise(count, seed: 3))
    var output = [Float](repeating: .nan, count: count)
    var config = config(causal: causal, type)
    try withContext { try check(moe_attention_forward($0, &config, q, k, v, &output, nil)) }
    expectClose(output, expected(q, k, v, causal: causal == 1), within: type == MOE_DTYPE_BF16 ? 1e-2 : 1e-6)
  }

  @Test(arguments: [MOE_DTYPE_F32, MOE_DTYPE_BF16])
  func backwardIsTheSlopeOfForward(type: moe_dtype) throws {
    let count = Self.tokens * Self.heads * Self.size
    let (q, k, v) = (noise(count, seed: 1), noise(count, seed: 2), noise(count, seed: 3))
    let doutput = noise(count, seed: 4)
    var output = [Float](repeating: .nan, count: count)
    var sums = [Float](repeating: .nan, count: Self.tokens * Self.heads)
    var (dq, dk, dv) = (output, output, output)
    var config = config(causal: 1, type)
    try withContext { context in
      try check(moe_attention_forward(context, &config, q, k, v, &output, &sums))
      try dq.withUnsafeMutableBufferPointer { dq in
        try dk.withUnsafeMutableBufferPointer { dk in
          try dv.withUnsafeMutableBufferPointer { dv in
            try doutput.withUnsafeBufferPointer { doutput in
              var gradients = moe_attention_gradients()
              moe_attention_gradients_init(&gradients, MemoryLayout<moe_attention_gradients>.size)
              (gradients.doutput, gradients.dquery) = (doutput.baseAddress, dq.baseAddress)
              (gradients.dkey, gradients.dvalue) = (dk.baseAddress, dv.baseAddress)
              try check(moe_attention_backward(context, &config, q, k, v, output, sums, &gradients))
              gradients.dkey = nil
              #expect(
                moe_attention_backward(context, &config, q, k, v, output, sums, &gradients)
                  == MOE_ERROR_INVALID_ARGUMENT)
              #expect(lastError() == "dkey is NULL")
            }
          }
        }
      }
    }
    func loss(_ q: [Float], _ k: [Float], _ v: [Float]) -> Double {
      zip(expected(q, k, v, causal: true), doutput).reduce(0) { $0 + $1.0 * Double($1.1) }
    }
    for i in [0, 7, count - 1] {
      func moved(_ x: [Float], _ step: Float) -> [Float] {
        var x = x
        x[i] += step
        return x
      }
      let step: Float = 1.0 / 128
      let slopes = [
        loss(moved(q, step), k, v) - loss(moved(q, -step), k, v),
        loss(q, moved(k, step), v) - loss(q, moved(k, -step), v),
        loss(q, k, moved(v, step)) - loss(q, k, moved(v, -step)),
      ].map { $0 / Double(2 * step) }
      expectClose([dq[i], dk[i], dv[i]], slopes, within: type == MOE_DTYPE_BF16 ? 2e-2 : 1e-3)
    }
  }

  @Test func rotationTurnsAndTurnsBack() throws {
    let x = noise(5 * 2 * 4, seed: 5)
    var turned = x
    var config = moe_rotary_config()
    moe_rotary_config_init(&config, MemoryLayout<moe_rotary_config>.size)
    (config.n_tokens, config.n_heads, config.head_size, config.first_position, config.theta) = (5, 2, 4, 3, 100)
    try withContext { try check(moe_rotate($0, &config, &turned)) }
    // Token 2, head 1, its second pair: position 5, angle 5 * 100^(-1/2).
    let (at, angle) = (2 * 8 + 4 + 1, 0.5)
    let (low, high) = (Double(x[at]), Double(x[at + 2]))
    expectClose(
      [turned[at], turned[at + 2]], [low * cos(angle) - high * sin(angle), low * sin(angle) + high * cos(angle)],
      within: 1e-6)
    config.inverse = 1
    try withContext { try check(moe_rotate($0, &config, &turned)) }
    expectClose(turned, x.map(Double.init), within: 1e-6)
  }

  @Test func whatIsWrongIsNamed() throws {
    let count = Self.tokens * Self.heads * Self.size
    let x = noise(count, seed: 1)
    var output = x
    var config = config(causal: 2)
    try withContext {
      #expect(moe_attention_forward($0, &config, x, x, x, &output, nil) == MOE_ERROR_INVALID_ARGUMENT)
      #expect(lastError() == "causal = 2 exceeds 1")
      var rotary = moe_rotary_config()
      moe_rotary_config_init(&rotary, MemoryLayout<moe_rotary_config>.size)
      (rotary.n_tokens, rotary.n_heads, rotary.head_size) = (5, 2, 3)
      #expect(moe_rotate($0, &rotary, &output) == MOE_ERROR_INVALID_ARGUMENT)
      #expect(lastError() == "head_size = 3 is odd: numbers turn in pairs; give rotary_size, of those that do")
    }
  }
}
