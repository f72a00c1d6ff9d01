// The ways to one group's sums: our own kernels, tile by tile, in float32, bfloat16 or integers (TiledForward.swift); row-major
// products (PlainExperts.swift); and experts that have nothing to multiply (FreeExperts.swift).

enum GroupForward {
  case tiled(TiledForward<F32>)
  case tiledBF16(TiledForward<BF16>)
  case integers(TiledForward<Integers>)
  case rowIntegers(TiledForward<RowIntegers>)
  case plain(PlainForward)
  case free(FreeForward)

  /// `kept`: where pre-activations go for backward. `outputs`: nil where pre-activations alone are wanted. The frame of all forms is gone
  /// before one of them runs.
  @inline(never) init(
    _ arena: inout Arena, _ work: GroupWork, kept: KeptPreactivations?, outputs: UnsafeMutablePointer<Float>?
  ) {
    switch ExpertForm(work) {
    case .tiled: self = .tiled(TiledForward(&arena, work, kept: kept?.floats, outputs: outputs))
    case .tiledBF16: self = .tiledBF16(TiledForward(&arena, work, kept: kept?.halves, outputs: outputs))
    case .integers: self = .integers(TiledForward(&arena, work, kept: nil, outputs: outputs))
    case .rowIntegers: self = .rowIntegers(TiledForward(&arena, work, kept: nil, outputs: outputs))
    case .plain: self = .plain(PlainForward(&arena, work, kept: kept?.floats, outputs: outputs))
    case .free: self = .free(FreeForward(work: work, outputs: outputs))
    }
  }

  @inline(never) func run(in context: ContextPointer) throws(Fault) {
    switch self {
    case .tiled(let forward): try forward.run(in: context)
    case .tiledBF16(let forward): try forward.run(in: context)
    case .integers(let forward): try forward.run(in: context)
    case .rowIntegers(let forward): try forward.run(in: context)
    case .plain(let forward): try forward.run(in: context)
    case .free(let forward): try forward.run(in: context)
    }
  }

  /// The pre-activations alone.
  @inline(never) func runInner(in context: ContextPointer) throws(Fault) {
    switch self {
    case .tiled(let forward): try forward.runInner(in: context)
    case .tiledBF16(let forward): try forward.runInner(in: context)
    case .integers(let forward): try forward.runInner(in: context)
    case .rowIntegers(let forward): try forward.runInner(in: context)
    case .plain(let forward): try forward.run(in: context)
    case .free: break
    }
  }
}

/// Which of the ways a group takes. The raw type is for the linker: without one the enum brings its own Hashable,
/// and with it a random seed that older C libraries do not have.
enum ExpertForm: Int32 {
  case tiled, tiledBF16, integers, rowIntegers, plain, free

  init(_ work: GroupWork) {
    let isNative = work.matmul.backend == .native
    let tokens = work.isDifferentiated ? nil : work.prepared?.forms.tokens
    if !work.c.multiplies {
      self = .free
    } else if tokens == .blockHalves {
      self = .tiledBF16
    } else if tokens == .integers {
      self = .integers
    } else if tokens == .rowIntegers {
      self = .rowIntegers
    } else {
      switch work.precision {
      case .f32: self = isNative ? .tiled : .plain
      case .bf16: self = isNative ? .tiledBF16 : .plain
      }
    }
  }
}

extension GroupWork {
  /// What becomes of tokens that are multiplied as floats.
  var precision: PrecisionKind { prepared?.forms.precision ?? c.weights.format.precision }
}

// MARK: backward

enum GroupBackward {
  case tiled(TiledBackward<F32>)
  case tiledBF16(TiledBackward<BF16>)
  case plain(PlainBackward)
  case free(FreeBackward)

  init(_ arena: inout Arena, _ work: GroupWork, kept: KeptPreactivations?, _ gradients: GroupGradients) {
    switch (kept, ExpertForm(work)) {
    case (.bf16(let kept), _): self = .tiledBF16(TiledBackward(&arena, work, kept: kept, gradients))
    case (.float(let kept), .plain): self = .plain(PlainBackward(&arena, work, kept: kept, gradients))
    case (.float(let kept), _): self = .tiled(TiledBackward(&arena, work, kept: kept, gradients))
    case (nil, _): self = .free(FreeBackward(work: work, gradients: gradients))
    }
  }

  @inline(never) func run(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.run(in: context, needInputGradient: needInputGradient)
    case .tiledBF16(let backward): try backward.run(in: context, needInputGradient: needInputGradient)
    case .plain(let backward): try backward.run(in: context)
    case .free(let backward): try backward.run(in: context)
    }
  }

  /// The gradients of x and of the routing weights, and those of constants.
  @inline(never) func runInputs(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.runInputs(in: context, needInputGradient: needInputGradient)
    case .tiledBF16(let backward): try backward.runInputs(in: context, needInputGradient: needInputGradient)
    case .plain(let backward): try backward.runInputs(in: context)
    case .free(let backward): try backward.run(in: context)
    }
  }

  /// All that rows wait for; `finish` follows before anything else uses the scratch. Row-major products make all at once.
  @inline(never) func runRows(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    switch self {
    case .tiled, .tiledBF16: try runInputs(in: context, needInputGradient: needInputGradient)
    case .plain, .free: try run(in: context, needInputGradient: needInputGradient)
    }
  }

  /// What `runRows` has left: the gradients of matrices and their biases.
  @inline(never) func finish(in context: ContextPointer) throws(Fault) {
    switch self {
    case .tiled, .tiledBF16: try runWeights(in: context, again: false)
    case .plain, .free: break
    }
  }

  /// The gradients of matrices and their biases. `again`: something else has used the scratch since `runInputs`.
  @inline(never) func runWeights(in context: ContextPointer, again: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.runWeights(in: context, again: again)
    case .tiledBF16(let backward): try backward.runWeights(in: context, again: again)
    case .plain(let backward): try backward.runWeights(in: context)
    case .free: break
    }
  }
}
