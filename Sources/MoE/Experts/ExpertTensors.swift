import CShims

// What one expert's computation holds: its tensors, and what is between its matrices.

/// One expert's parameters, its matrices as they are stored; or their gradients.
struct ExpertTensors<Matrix> {
  let gateWeight: Matrix?  // [I,H]
  let gateBias: UnsafeMutablePointer<Float>?  // [I]
  let upWeight: Matrix  // [I,H]; the same as downWeight where experts are linear, and not used
  let upBias: UnsafeMutablePointer<Float>?  // [I]
  let downWeight: Matrix  // [H,I]
  let downBias: UnsafeMutablePointer<Float>?  // [H]
}

extension ExpertTensors<StoredMatrix> {
  init(_ c: ExpertGroup, expert e: Int, _ parameters: Parameters) {
    let (h, i, place) = (c.hidden, c.intermediate, parameters.place(ofExpert: e))
    func matrix(_ role: Parameters.Role, rowStride: Int) -> StoredMatrix? {
      parameters.memory(role).map { StoredMatrix($0, c.weights, first: place * i * h, rowStride: rowStride) }
    }
    gateWeight = matrix(.gateWeight, rowStride: h)
    gateBias = parameters.data(.gateBias).map { $0 + e * i }
    upWeight = matrix(c.linear ? .downWeight : .upWeight, rowStride: h)!
    upBias = parameters.data(.upBias).map { $0 + e * i }
    downWeight = matrix(.downWeight, rowStride: i)!
    downBias = parameters.data(.downBias).map { $0 + e * h }
  }
}

typealias ExpertGradients = ExpertTensors<UnsafeMutablePointer<Float>>

extension ExpertGradients {
  init(gradientsIn parameters: Parameters, _ c: ExpertGroup, expert e: Int) {
    let (h, i) = (c.hidden, c.intermediate)
    func part(_ role: Parameters.Role, _ place: Int) -> UnsafeMutablePointer<Float>? {
      parameters.grad(role).map { $0 + place }
    }
    gateWeight = part(.gateWeight, e * i * h)
    gateBias = part(.gateBias, e * i)
    upWeight = part(c.linear ? .downWeight : .upWeight, e * i * h)!
    upBias = part(.upBias, e * i)
    downWeight = part(.downWeight, e * i * h)!
    downBias = part(.downBias, e * h)
  }

  /// One expert's gradients in memory for a single expert, tensor after tensor as above.
  init(gradientsOfOneIn memory: UnsafeMutablePointer<Float>, _ c: ExpertGroup) {
    let (matrix, bias) = (c.intermediate * c.hidden, c.hasBias ? c.intermediate : 0)
    var place = memory
    gateWeight = c.gated ? place : nil
    if c.gated { place += matrix }
    gateBias = c.gated && c.hasBias ? place : nil
    if c.gated { place += bias }
    upWeight = place
    if !c.linear { place += matrix }
    upBias = c.hasBias && !c.linear ? place : nil
    if !c.linear { place += bias }
    downWeight = place
    downBias = c.hasBias ? place + matrix : nil
  }
}

/// W x + b before the activation, for all rows or for a part of them: what backward needs of forward. Nothing where
/// experts are linear.
struct Preactivations<Element> {
  let gate: UnsafeMutablePointer<Element>?  // [rows, width], gated experts only
  let up: UnsafeMutablePointer<Element>  // [rows, width]

  init(_ arena: inout Arena, _ c: ExpertGroup, rows: Int, width: Int) {
    gate = c.gated ? arena.take(Element.self, rows, width) : nil
    up = arena.take(Element.self, c.linear ? 0 : rows, width)
  }

  init(gate: UnsafeMutablePointer<Element>?, up: UnsafeMutablePointer<Element>) {
    self.gate = gate
    self.up = up
  }
}

extension Preactivations<Float> {
  func from(row: Int, _ c: ExpertGroup) -> Preactivations {
    Preactivations(gate: gate.map { $0 + row * c.intermediate }, up: up + row * c.intermediate)
  }

  /// a = act(up), or act(gate) * up, then dropout; a may be `up`. Rows of `width` floats hold columns `from` ..<
  /// `from` + `count`.
  func activate(
    _ a: UnsafeMutablePointer<Float>, rows: Int, width: Int, from: Int, count: Int, pairs: UnsafePointer<Int32>,
    _ work: GroupWork
  ) {
    let (c, kernels) = (work.c, work.kernels)
    if let gate {
      kernels.pointee.activate_gated(c.activation, Int64(rows * width), gate, up, a)
    } else {
      kernels.pointee.activate(c.activation, Int64(rows * width), up, a)
    }
    guard let dropout = work.dropout else { return }
    for row in 0..<rows { dropout.apply(a + row * width, pair: Int(pairs[row]), from: from, count: count) }
  }
}

/// Pre-activations on a tape, in the form of the experts that will read them.
enum KeptPreactivations {
  case float(Preactivations<Float>)
  case bf16(Preactivations<UInt16>)

  var floats: Preactivations<Float>? { if case .float(let kept) = self { kept } else { nil } }
  var halves: Preactivations<UInt16>? { if case .bf16(let kept) = self { kept } else { nil } }
}
