import CShims

// What one expert's computation holds: its tensors, and what is between its matrices.

/// One expert's parameters, its matrices as they are stored.
struct ExpertTensors {
  let gateWeight: StoredMatrix?  // [I,H]
  let gateBias: UnsafePointer<Float>?  // [I]
  let upWeight: StoredMatrix  // [I,H]; the same as downWeight where experts are linear, and not used
  let upBias: UnsafePointer<Float>?  // [I]
  let downWeight: StoredMatrix  // [H,I]
  let downBias: UnsafePointer<Float>?  // [H]
}

/// The gradients of one expert's parameters, those that are wanted.
struct ExpertGradients {
  let gateWeight: GradientMatrix?  // [I,H]
  let gateBias: UnsafeMutablePointer<Float>?  // [I]
  let upWeight: GradientMatrix?  // [I,H]; nil where experts are linear
  let upBias: UnsafeMutablePointer<Float>?  // [I]
  let downWeight: GradientMatrix?  // [H,I]
  let downBias: UnsafeMutablePointer<Float>?  // [H]

  init(
    gate: GradientMatrix?, gateBias: UnsafeMutablePointer<Float>?, up: GradientMatrix?,
    upBias: UnsafeMutablePointer<Float>?, down: GradientMatrix?, downBias: UnsafeMutablePointer<Float>?
  ) {
    (gateWeight, upWeight, downWeight) = (gate, up, down)
    (self.gateBias, self.upBias, self.downBias) = (gateBias, upBias, downBias)
  }

  /// One expert's gradients in memory for a single expert, tensor after tensor as above.
  init(ofOneIn memory: UnsafeMutablePointer<Float>, _ c: ExpertGroup) {
    let (h, i) = (c.hidden, c.intermediate)
    let bias = c.hasBias ? i : 0
    var place = memory
    gateWeight = c.gated ? GradientMatrix(place, rowStride: h) : nil
    if c.gated { place += i * h }
    gateBias = c.gated && c.hasBias ? place : nil
    if c.gated { place += bias }
    upWeight = c.linear ? nil : GradientMatrix(place, rowStride: h)
    if !c.linear { place += i * h }
    upBias = c.hasBias && !c.linear ? place : nil
    if !c.linear { place += bias }
    downWeight = GradientMatrix(place, rowStride: i)
    downBias = c.hasBias ? place + i * h : nil
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

  func from(_ element: Int) -> Preactivations { Preactivations(gate: gate.map { $0 + element }, up: up + element) }
}

extension Preactivations<Float> {
  func from(row: Int, _ c: ExpertGroup) -> Preactivations {
    from(row * c.intermediate)
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

  /// Arrays of one run's rows, counted as those of the whole group.
  func before(_ rows: GroupRows, width: Int) -> KeptPreactivations {
    switch self {
    case .float(let kept): .float(kept.from(-rows.placesBefore(unit: F32.unit) * width))
    case .bf16(let kept): .bf16(kept.from(-rows.placesBefore(unit: BF16.unit) * width))
    }
  }
}
