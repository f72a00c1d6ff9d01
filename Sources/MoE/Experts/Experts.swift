import CShims

// The experts' networks over the rows that dispatch gave them.
//   MLP:    out = W_down act(W_up x + b_up) + b_down
//   gated:  out = W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down
//   linear: out = W_down x + b_down

/// One expert's parameters, or their gradients.
struct ExpertTensors<Weight> {
  let gateWeight: UnsafeMutablePointer<Weight>?  // [I,H]
  let gateBias: UnsafeMutablePointer<Float>?  // [I]
  let upWeight: UnsafeMutablePointer<Weight>  // [I,H]; the same as downWeight where experts are linear, and not used
  let upBias: UnsafeMutablePointer<Float>?  // [I]
  let downWeight: UnsafeMutablePointer<Weight>  // [H,I]
  let downBias: UnsafeMutablePointer<Float>?  // [H]

  private init(
    _ c: Configuration, _ e: Int, weight: (Parameters.Role) -> UnsafeMutableRawPointer?,
    bias: (Parameters.Role) -> UnsafeMutablePointer<Float>?
  ) {
    let (h, i) = (c.hidden, c.intermediate)
    func matrix(_ role: Parameters.Role) -> UnsafeMutablePointer<Weight>? {
      weight(role).map { $0.assumingMemoryBound(to: Weight.self) + e * i * h }
    }
    gateWeight = matrix(.gateWeight)
    gateBias = bias(.gateBias).map { $0 + e * i }
    upWeight = matrix(c.linear ? .downWeight : .upWeight)!
    upBias = bias(.upBias).map { $0 + e * i }
    downWeight = matrix(.downWeight)!
    downBias = bias(.downBias).map { $0 + e * h }
  }

  init(_ c: Configuration, expert e: Int, _ parameters: Parameters) {
    self.init(c, e, weight: parameters.memory, bias: parameters.data)
  }
}

extension ExpertTensors where Weight == Float {
  init(gradientsIn parameters: Parameters, _ c: Configuration, expert e: Int) {
    self.init(c, e, weight: { UnsafeMutableRawPointer(parameters.grad($0)) }, bias: parameters.grad)
  }
}

/// W x + b before the activation, for all rows or for a part of them: what backward needs of forward. Nothing where
/// experts are linear.
struct Preactivations<Element> {
  let gate: UnsafeMutablePointer<Element>?  // [rows, width], gated experts only
  let up: UnsafeMutablePointer<Element>  // [rows, width]

  init(_ arena: inout Arena, _ c: Configuration, rows: Int, width: Int) {
    gate = c.gated ? arena.take(Element.self, rows, width) : nil
    up = arena.take(Element.self, c.linear ? 0 : rows, width)
  }

  init(gate: UnsafeMutablePointer<Element>?, up: UnsafeMutablePointer<Element>) {
    self.gate = gate
    self.up = up
  }
}

extension Preactivations<Float> {
  func from(row: Int, _ c: Configuration) -> Preactivations {
    Preactivations(gate: gate.map { $0 + row * c.intermediate }, up: up + row * c.intermediate)
  }

  /// a = act(up), or act(gate) * up, then dropout; a may be `up`. Rows of `width` floats hold columns `from` ..<
  /// `from` + `count`.
  func activate(
    _ a: UnsafeMutablePointer<Float>, rows: Int, width: Int, from: Int, count: Int, pairs: UnsafePointer<Int32>,
    _ c: Configuration, _ dropout: Dropout?, _ kernels: UnsafePointer<moei_kernels>
  ) {
    if let gate {
      kernels.pointee.activate_gated(c.activation, Int64(rows * width), gate, up, a)
    } else {
      kernels.pointee.activate(c.activation, Int64(rows * width), up, a)
    }
    guard let dropout else { return }
    for row in 0..<rows { dropout.apply(a + row * width, pair: Int(pairs[row]), from: from, count: count) }
  }
}

/// Pre-activations on a tape, in the form of the experts that will read them.
enum KeptPreactivations {
  case float(Preactivations<Float>)
  case bf16(Preactivations<UInt16>)
}

// MARK: forward

/// Three ways to the same sums: our own kernels, tile by tile, in float32 or bfloat16, or row-major products.
enum ExpertsForward {
  case tiled(TiledForward<F32>)
  case tiledBF16(TiledForward<BF16>)
  case plain(PlainForward)

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    prepared: PreparedWeights?, dispatch: Dispatch, dropout: Dropout?, kept: KeptPreactivations?
  ) {
    switch ExpertForm(c, context: context, prepared: prepared) {
    case .tiled:
      var mine: Preactivations<Float>?
      if case .float(let kept) = kept { mine = kept }
      self = .tiled(
        TiledForward(
          &arena, c, context: context, x: x, parameters: parameters, prepared: prepared, dispatch: dispatch,
          dropout: dropout, kept: mine))
    case .tiledBF16:
      var mine: Preactivations<UInt16>?
      if case .bf16(let kept) = kept { mine = kept }
      self = .tiledBF16(
        TiledForward(
          &arena, c, context: context, x: x, parameters: parameters, prepared: prepared, dispatch: dispatch,
          dropout: dropout, kept: mine))
    case .plain:
      var mine: Preactivations<Float>?
      if case .float(let kept) = kept { mine = kept }
      self = .plain(
        PlainForward(
          &arena, c, context: context, x: x, parameters: parameters, dispatch: dispatch, dropout: dropout, kept: mine))
    }
  }

  func run(in context: ContextPointer) throws(Fault) {
    switch self {
    case .tiled(let forward): try forward.run(in: context)
    case .tiledBF16(let forward): try forward.run(in: context)
    case .plain(let forward): try forward.run(in: context)
    }
  }

  /// [T*K, outputStride]
  var outputs: UnsafePointer<Float> {
    switch self {
    case .tiled(let forward): UnsafePointer(forward.outputs)
    case .tiledBF16(let forward): UnsafePointer(forward.outputs)
    case .plain(let forward): UnsafePointer(forward.outputs)
    }
  }

  var outputStride: Int {
    switch self {
    case .tiled(let forward): forward.outputStride
    case .tiledBF16(let forward): forward.outputStride
    case .plain(let forward): forward.c.hidden
    }
  }
}

/// Which of the three ways a call takes. The raw type is for the linker: without one the enum brings its own Hashable,
/// and with it a random seed that older C libraries do not have.
enum ExpertForm: Int32 {
  case tiled, tiledBF16, plain

  init(_ c: Configuration, context: ContextPointer, prepared: PreparedWeights?) {
    if !context.packsWeights {
      self = .plain
    } else {
      self = c.weights == .bf16 || prepared?.bf16 == true ? .tiledBF16 : .tiled
    }
  }

  /// Memory for the pre-activations of a call.
  func preactivations(_ arena: inout Arena, _ c: Configuration, pairs: Int) -> KeptPreactivations {
    switch self {
    case .tiled: .float(Preactivations(&arena, c, rows: pairs, width: padded(c.intermediate)))
    case .tiledBF16:
      .bf16(
        Preactivations(
          &arena, c, rows: ExpertPiece.places(pairs, experts: c.experts, unit: BF16.unit),
          width: padded(c.intermediate)))
    case .plain: .float(Preactivations(&arena, c, rows: pairs, width: c.intermediate))
    }
  }
}

// MARK: backward

enum ExpertsBackward {
  case tiled(TiledBackward<F32>)
  case tiledBF16(TiledBackward<BF16>)
  case plain(PlainBackward)

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, parameters: Parameters, tape: TapeContents
  ) {
    switch tape.preactivations {
    case .bf16(let kept):
      self = .tiledBF16(
        TiledBackward(&arena, c, context: context, x: x, dy: dy, parameters: parameters, tape: tape, kept: kept))
    case .float(let kept):
      if context.packsWeights {
        self = .tiled(
          TiledBackward(&arena, c, context: context, x: x, dy: dy, parameters: parameters, tape: tape, kept: kept))
      } else {
        self = .plain(
          PlainBackward(&arena, c, context: context, x: x, dy: dy, parameters: parameters, tape: tape, kept: kept))
      }
    }
  }

  func run(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.run(in: context, needInputGradient: needInputGradient)
    case .tiledBF16(let backward): try backward.run(in: context, needInputGradient: needInputGradient)
    case .plain(let backward): try backward.run(in: context)
    }
  }

  /// [T,K] gradient of the routing weights
  var dWeights: UnsafePointer<Float> {
    switch self {
    case .tiled(let backward): UnsafePointer(backward.dWeights)
    case .tiledBF16(let backward): UnsafePointer(backward.dWeights)
    case .plain(let backward): UnsafePointer(backward.dWeights)
    }
  }

  /// [T*K, dRowStride] each row's gradient of x
  var dRows: UnsafePointer<Float> {
    switch self {
    case .tiled(let backward): UnsafePointer(backward.dRows)
    case .tiledBF16(let backward): UnsafePointer(backward.dRows)
    case .plain(let backward): UnsafePointer(backward.dRows)
    }
  }

  var dRowStride: Int {
    switch self {
    case .tiled(let backward): padded(backward.c.hidden)
    case .tiledBF16(let backward): padded(backward.c.hidden)
    case .plain(let backward): backward.c.hidden
    }
  }
}
