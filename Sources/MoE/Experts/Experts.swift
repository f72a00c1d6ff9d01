import CShims

// The experts' networks over the rows that dispatch gave them.
//   MLP:    out = W_down act(W_up x + b_up) + b_down
//   gated:  out = W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down

/// One expert's parameters, or their gradients.
struct ExpertTensors {
  let gateWeight: UnsafeMutablePointer<Float>?  // [I,H]
  let gateBias: UnsafeMutablePointer<Float>?  // [I]
  let upWeight: UnsafeMutablePointer<Float>  // [I,H]
  let upBias: UnsafeMutablePointer<Float>?  // [I]
  let downWeight: UnsafeMutablePointer<Float>  // [H,I]
  let downBias: UnsafeMutablePointer<Float>?  // [H]

  init(
    _ c: Configuration, expert e: Int, _ tensor: (Parameters.Role) -> UnsafeMutablePointer<Float>?
  ) {
    let (h, i) = (c.hidden, c.intermediate)
    gateWeight = tensor(.gateWeight).map { $0 + e * i * h }
    gateBias = tensor(.gateBias).map { $0 + e * i }
    upWeight = tensor(.upWeight)! + e * i * h
    upBias = tensor(.upBias).map { $0 + e * i }
    downWeight = tensor(.downWeight)! + e * h * i
    downBias = tensor(.downBias).map { $0 + e * h }
  }
}

/// W x + b before the activation, for all rows or for a part of them: what backward needs of forward.
struct Preactivations {
  let gate: UnsafeMutablePointer<Float>?  // [rows, width], gated experts only
  let up: UnsafeMutablePointer<Float>  // [rows, width]

  init(_ arena: inout Arena, _ c: Configuration, rows: Int, width: Int) {
    gate = c.gated ? arena.take(Float.self, rows, width) : nil
    up = arena.take(Float.self, rows, width)
  }

  init(gate: UnsafeMutablePointer<Float>?, up: UnsafeMutablePointer<Float>) {
    self.gate = gate
    self.up = up
  }

  func from(row: Int, _ c: Configuration) -> Preactivations {
    Preactivations(gate: gate.map { $0 + row * c.intermediate }, up: up + row * c.intermediate)
  }

  /// a = act(up), or act(gate) * up, then dropout. Rows of `width` floats hold columns `from` ..< `from` + `count`.
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

// MARK: forward

/// Two ways to the same sums: our own kernels, tile by tile, or row-major products.
enum ExpertsForward {
  case tiled(TiledInner, TiledOutput)
  case plain(PlainForward)

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    prepared: PreparedWeights?, dispatch: Dispatch, dropout: Dropout?, kept: Preactivations?
  ) {
    if context.matmul.backend == .native {
      let inner = TiledInner(
        &arena, c, context: context, x: x, parameters: parameters, prepared: prepared, dispatch: dispatch,
        dropout: dropout, kept: kept)
      let output = TiledOutput(
        &arena, c, context: context, parameters: parameters, prepared: prepared, dispatch: dispatch,
        activations: inner.activations)
      self = .tiled(inner, output)
    } else {
      self = .plain(
        PlainForward(
          &arena, c, context: context, x: x, parameters: parameters, dispatch: dispatch, dropout: dropout, kept: kept))
    }
  }

  func run(in context: ContextPointer) throws(Fault) {
    switch self {
    case .tiled(let inner, let output):
      try inner.run(in: context)
      try output.run(in: context)
    case .plain(let forward): try forward.run(in: context)
    }
  }

  /// [T*K, outputStride]
  var outputs: UnsafePointer<Float> {
    switch self {
    case .tiled(_, let output): UnsafePointer(output.outputs)
    case .plain(let forward): UnsafePointer(forward.outputs)
    }
  }

  var outputStride: Int {
    switch self {
    case .tiled(_, let output): padded(output.c.hidden)
    case .plain(let forward): forward.c.hidden
    }
  }
}

// MARK: backward

enum ExpertsBackward {
  case tiled(TiledBackward)
  case plain(PlainBackward)

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, parameters: Parameters, tape: TapeContents
  ) {
    if context.matmul.backend == .native {
      self = .tiled(TiledBackward(&arena, c, context: context, x: x, dy: dy, parameters: parameters, tape: tape))
    } else {
      self = .plain(PlainBackward(&arena, c, context: context, x: x, dy: dy, parameters: parameters, tape: tape))
    }
  }

  func run(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.run(in: context, needInputGradient: needInputGradient)
    case .plain(let backward): try backward.run(in: context)
    }
  }

  /// [T,K] gradient of the routing weights
  var dWeights: UnsafePointer<Float> {
    switch self {
    case .tiled(let backward): UnsafePointer(backward.dWeights)
    case .plain(let backward): UnsafePointer(backward.dWeights)
    }
  }

  /// [T*K, dRowStride] each row's gradient of x
  var dRows: UnsafePointer<Float> {
    switch self {
    case .tiled(let backward): UnsafePointer(backward.dRows)
    case .plain(let backward): UnsafePointer(backward.dRows)
    }
  }

  var dRowStride: Int {
    switch self {
    case .tiled(let backward): padded(backward.c.hidden)
    case .plain(let backward): backward.c.hidden
    }
  }
}
