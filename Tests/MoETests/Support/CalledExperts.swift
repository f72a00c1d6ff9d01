import CMoE
import Testing

/// Where the elements of experts' matrices [E,outputs,inputs] lie.
enum ExpertLayout: CaseIterable, CustomStringConvertible, Sendable {
  case rows, columns, gaps, listed

  static let all = allCases
  var description: String {
    switch self {
    case .rows: "row after row"
    case .columns: "column after column"
    case .gaps: "with gaps"
    case .listed: "expert by expert"
    }
  }

  func strides(_ outputs: Int, _ inputs: Int) -> (Int64, Int64, Int64) {
    switch self {
    case .rows: (Int64(outputs * inputs), Int64(inputs), 1)
    case .columns: (Int64(outputs * inputs), 1, Int64(outputs))
    case .gaps: (Int64(6 * outputs * inputs + 5), 2, Int64(3 * outputs))
    case .listed: (0, Int64(inputs), 1)
    }
  }
}

/// One matrix of all experts, and memory for its gradient, in a layout.
final class CalledPart {
  let name: String
  let tensor: moe_expert_tensor
  let gradient: moe_expert_tensor
  let rowMajor: [UInt8]  // the weights, row after row
  private let size: (experts: Int, outputs: Int, inputs: Int)
  private let memory: [UnsafeMutableRawPointer]

  init(
    _ name: String, _ part: moe_expert_part, _ layout: ExpertLayout, _ type: moe_dtype, experts: Int, outputs: Int,
    inputs: Int, seed: UInt64
  ) {
    self.name = name
    size = (experts, outputs, inputs)
    let values = noise(experts * outputs * inputs, seed: seed).map { $0 / 4 }
    let element = type == MOE_DTYPE_F32 ? 4 : 2
    var bytes = [UInt8](repeating: 0, count: values.count * element)
    bytes.withUnsafeMutableBytes {
      for (i, v) in values.enumerated() {
        switch type {
        case MOE_DTYPE_F32: $0.storeBytes(of: v, toByteOffset: 4 * i, as: Float.self)
        case MOE_DTYPE_BF16:
          $0.storeBytes(of: UInt16(v.bitPattern >> 16), toByteOffset: 2 * i, as: UInt16.self)
        // Numbers of few digits are those of binary16 too.
        default:
          let number = Int32((v * 256).rounded())
          $0.storeBytes(of: binary16(number, over: 256), toByteOffset: 2 * i, as: UInt16.self)
        }
      }
    }
    rowMajor = bytes
    let strides = layout.strides(outputs, inputs)
    func make(_ type: moe_dtype, _ element: Int) -> (moe_expert_tensor, [UnsafeMutableRawPointer]) {
      var tensor = moe_expert_tensor()
      (tensor.part, tensor.dtype, tensor.strides) = (part.int32, type.int32, strides)
      var memory: [UnsafeMutableRawPointer] = []
      func allocate(_ elements: Int) -> UnsafeMutableRawPointer {
        let new = UnsafeMutableRawPointer.allocate(byteCount: elements * element, alignment: 16)
        new.initializeMemory(as: UInt8.self, repeating: 0xFF, count: elements * element)
        memory.append(new)
        return new
      }
      if layout == .listed {
        let list = UnsafeMutablePointer<UnsafeMutableRawPointer?>.allocate(capacity: experts)
        for e in 0..<experts { list[e] = allocate(outputs * inputs) }
        tensor.experts = list
        memory.append(UnsafeMutableRawPointer(list))
      } else {
        let reach = Int(strides.0) * (experts - 1) + Int(strides.1) * (outputs - 1) + Int(strides.2) * (inputs - 1)
        tensor.data = allocate(reach + 1)
      }
      return (tensor, memory)
    }
    let (weights, gradients) = (make(type, element), make(MOE_DTYPE_F32, 4))
    (tensor, gradient, memory) = (weights.0, gradients.0, weights.1 + gradients.1)
    var place = 0
    forEach(tensor, element) {
      $0.copyMemory(from: Array(bytes[place..<place + element]), byteCount: element)
      place += element
    }
  }

  deinit { for block in memory { block.deallocate() } }

  /// The gradient, row after row.
  var sums: [Float] {
    var found: [Float] = []
    forEach(gradient, 4) { found.append($0.loadUnaligned(as: Float.self)) }
    return found
  }

  private func forEach(_ tensor: moe_expert_tensor, _ element: Int, _ body: (UnsafeMutableRawPointer) -> Void) {
    for e in 0..<size.experts {
      let start = tensor.experts == nil ? tensor.data! + e * Int(tensor.strides.0) * element : tensor.experts[e]!
      for o in 0..<size.outputs {
        for i in 0..<size.inputs {
          body(start + (o * Int(tensor.strides.1) + i * Int(tensor.strides.2)) * element)
        }
      }
    }
  }
}

/// number / power as binary16; the power is one of 2 and the number has no more than 11 digits.
private func binary16(_ number: Int32, over power: Int32) -> UInt16 {
  if number == 0 { return 0 }
  let bits = (Float(number) / Float(power)).bitPattern
  let exponent = Int32(bits >> 23 & 0xFF) - 127 + 15
  return UInt16(bits >> 16 & 0x8000) | UInt16(exponent) << 10 | UInt16(bits >> 13 & 0x3FF)
}

/// Four experts of 37 and 45 features in a context of their own, and calls with 21 tokens of which some name nobody.
final class CalledExperts {
  /// A call that did not go well.
  struct Refusal: Error, Equatable {
    let status: moe_status
  }

  let context: OpaquePointer
  private(set) var prepared: OpaquePointer?
  /// Over which its calls are spread, where they are.
  var ranks: OpaquePointer?
  let config: moe_experts_config
  let parts: [CalledPart]
  let x = noise(21 * 37, seed: 11)
  let dy = noise(21 * 37, seed: 12)
  let routing = noise(21 * 2, seed: 13)
  let indices: [Int32] = (0..<42).map { [0, 2, -1, 1, 2, 0, 0, 2][$0 % 8] }  // nobody uses the last

  init(
    _ kind: moe_expert_kind, _ layout: ExpertLayout, _ type: moe_dtype, in contextConfig: moe_context_config? = nil
  ) throws {
    var contextConfig = contextConfig ?? defaultContextConfig()
    var created: OpaquePointer?
    try check(moe_context_create(&contextConfig, &created))
    context = created!
    let inner = kind == MOE_EXPERT_LINEAR ? 37 : 45
    var own = moe_experts_config()
    moe_experts_config_init(&own, MemoryLayout<moe_experts_config>.size)
    (own.n_experts, own.hidden_size, own.expert_kind) = (4, 37, kind.int32)
    own.intermediate_size = kind == MOE_EXPERT_LINEAR ? 0 : 45
    own.activation = kind == MOE_EXPERT_GATED ? MOE_ACTIVATION_SILU.int32 : 0
    config = own
    func part(_ name: String, _ part: moe_expert_part, _ outputs: Int, _ inputs: Int, _ seed: UInt64) -> CalledPart {
      CalledPart(name, part, layout, type, experts: 4, outputs: outputs, inputs: inputs, seed: seed)
    }
    var parts: [CalledPart] = []
    if kind == MOE_EXPERT_GATED { parts.append(part("gate", MOE_EXPERT_PART_GATE, inner, 37, 1)) }
    if kind != MOE_EXPERT_LINEAR { parts.append(part("up", MOE_EXPERT_PART_UP, inner, 37, 2)) }
    parts.append(part("down", MOE_EXPERT_PART_DOWN, 37, inner, 3))
    self.parts = parts
  }

  deinit {
    moe_experts_ranks_free(ranks)
    moe_experts_prepared_free(prepared)
    moe_context_free(context)
  }

  var tensors: [moe_expert_tensor] { parts.map(\.tensor) }

  /// The experts with other weights in their place.
  func withConfig(_ tensors: [moe_expert_tensor]? = nil, _ body: (inout moe_experts_config) -> moe_status) -> moe_status
  {
    (tensors ?? self.tensors).withUnsafeBufferPointer { weights in
      var config = config
      (config.weights, config.n_weights) = (weights.baseAddress, Int64(weights.count))
      return body(&config)
    }
  }

  private func withGradients(
    _ tensors: [moe_expert_tensor], _ body: (inout moe_experts_gradients) -> moe_status
  ) -> moe_status {
    tensors.withUnsafeBufferPointer { list in
      var gradients = moe_experts_gradients()
      moe_experts_gradients_init(&gradients, MemoryLayout<moe_experts_gradients>.size)
      (gradients.tensors, gradients.n_tensors, gradients.overwrite) = (list.baseAddress, Int64(list.count), 1)
      return body(&gradients)
    }
  }

  func withCall(_ body: (moe_experts_call) -> moe_status) -> moe_status {
    indices.withUnsafeBytes { indices in
      routing.withUnsafeBytes { routing in
        var call = moe_experts_call()
        moe_experts_call_init(&call, MemoryLayout<moe_experts_call>.size)
        (call.n_tokens, call.top_k) = (21, 2)
        (call.expert_indices, call.expert_weights) = (indices.baseAddress, routing.baseAddress)
        (call.prepared, call.ranks) = (prepared, ranks)
        return body(call)
      }
    }
  }

  func plan() throws -> moe_plan {
    var plan = moe_plan()
    moe_plan_init(&plan, MemoryLayout<moe_plan>.size)
    try check(
      withCall { call in
        var call = call
        return withConfig { config in
          withGradients(parts.map(\.gradient)) { gradients in
            moe_experts_plan(context, &config, &call, &gradients, 1, &plan)
          }
        }
      })
    return plan
  }

  func prepare(_ form: moe_prepared) throws {
    moe_experts_prepared_free(prepared)
    prepared = nil
    try check(status(form))
  }

  func tryToPrepare(_ form: moe_prepared) throws {
    moe_experts_prepared_free(prepared)
    prepared = nil
    try require(status(form))
  }

  private func status(_ form: moe_prepared) -> moe_status {
    withConfig { config in moe_experts_prepare(context, &config, form.int32, &prepared) }
  }

  private func require(_ status: moe_status) throws { if status != MOE_OK { throw Refusal(status: status) } }

  private func forward(_ y: inout [Float], _ saved: UnsafeMutableRawPointer?, _ size: Int) -> moe_status {
    withCall { call in
      var call = call
      return withConfig { config in
        moe_experts_forward(context, &config, &call, x, &y, saved, size, nil)
      }
    }
  }

  func tryForward() throws -> [Float] {
    var y = [Float](repeating: .nan, count: x.count)
    try require(forward(&y, nil, 0))
    return y
  }

  func forward() throws -> [Float] {
    var y = [Float](repeating: .nan, count: x.count)
    try check(forward(&y, nil, 0))
    return y
  }

  func forward(saved: inout [UInt8]) throws -> [Float] {
    var y = [Float](repeating: .nan, count: x.count)
    let size = saved.count
    try check(saved.withUnsafeMutableBytes { forward(&y, $0.baseAddress, size) })
    return y
  }

  private func backward(
    _ saved: [UInt8]?, _ gradients: [moe_expert_tensor], _ dx: inout [Float], _ dw: inout [Float],
    _ change: (inout moe_experts_gradients) -> Void = { _ in }
  ) -> moe_status {
    withCall { call in
      var call = call
      return withConfig { config in
        withGradients(gradients) { gradients in
          dx.withUnsafeMutableBytes { dx in
            dw.withUnsafeMutableBytes { dw in
              (gradients.dx, gradients.d_expert_weights) = (dx.baseAddress, dw.baseAddress)
              change(&gradients)
              return moe_experts_backward(context, &config, &call, saved, saved?.count ?? 0, x, dy, &gradients)
            }
          }
        }
      }
    }
  }

  /// Of a backward whose struct of gradients was changed.
  func backwardStatus(gradients change: (inout moe_experts_gradients) -> Void) -> moe_status {
    var (dx, dw) = (x, routing)
    return backward(nil, parts.map(\.gradient), &dx, &dw, change)
  }

  func backward(saved: [UInt8]?) throws -> (dx: [Float], dw: [Float]) {
    var (dx, dw) = ([Float](repeating: .nan, count: x.count), [Float](repeating: .nan, count: routing.count))
    try check(backward(saved, parts.map(\.gradient), &dx, &dw))
    return (dx, dw)
  }

  func tryBackward() throws -> [Float] {
    var (dx, dw) = ([Float](repeating: .nan, count: x.count), [Float](repeating: .nan, count: routing.count))
    try require(backward(nil, parts.map(\.gradient), &dx, &dw))
    return dx
  }

  func backwardStatus(_ change: (inout [moe_expert_tensor]) -> Void) -> moe_status {
    var (dx, dw, gradients) = (x, routing, parts.map(\.gradient))
    change(&gradients)
    return backward(nil, gradients, &dx, &dw)
  }

  /// Bits of all that forward and backward make, with bytes that were saved, and without.
  func everything() throws -> [String: [UInt32]] {
    var saved = [UInt8](repeating: 0xAB, count: try plan().tape_bytes)
    let y = try forward(saved: &saved)
    let (dx, dw) = try backward(saved: saved)
    var found = ["y": bits(y), "dx": bits(dx), "dw": bits(dw)]
    for part in parts { found["d \(part.name)"] = bits(part.sums) }
    let again = try backward(saved: nil)
    #expect(bits(again.dx) == found["dx"] && bits(again.dw) == found["dw"])
    for part in parts { #expect(bits(part.sums) == found["d \(part.name)"], "\(part.name), computed again") }
    return found
  }
}
