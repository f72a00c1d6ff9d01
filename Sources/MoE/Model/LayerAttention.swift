// A layer's attention in whichever form the model and the call have it: over heads of keys and values; over a latent as it is
// trained; or, where no backward follows, over a latent as it is used.

/// What forward makes and backward reads.
enum KeptLayerAttention {
  case heads(KeptAttention)
  case latent(KeptLatent)

  init(_ arena: inout Arena, _ work: BlockWork, forBackward: Bool) {
    if work.c.latent == nil {
      self = .heads(KeptAttention(&arena, work, forBackward: forBackward))
    } else {
      self = .latent(KeptLatent(&arena, work.c, work.input, forBackward: forBackward))
    }
  }
}

enum LayerAttentionForward {
  case heads(SelfAttentionForward)
  case latent(LatentAttentionForward)
  case absorbed(AbsorbedAttention)

  /// `arrays`: nil where the form has arrays of its own, since nothing is kept of it.
  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptLayerAttention?, cache: CachedLayer?,
    x: UnsafePointer<Float>, y: UnsafeMutablePointer<Float>
  ) {
    switch arrays {
    case .heads(let arrays): self = .heads(SelfAttentionForward(&arena, work, arrays, cache: cache, x: x, y: y))
    case .latent(let arrays): self = .latent(LatentAttentionForward(&arena, work, arrays, x: x, y: y))
    case nil: self = .absorbed(AbsorbedAttention(&arena, work, cache: cache, x: x, y: y))
    }
  }

  @inline(never) func run() throws(Fault) {
    switch self {
    case .heads(let attention): try attention.run()
    case .latent(let attention): try attention.run()
    case .absorbed(let attention): try attention.run()
    }
  }
}

// MARK: backward

enum LayerAttentionBackward {
  case heads(SelfAttentionBackward)
  case latent(LatentAttentionBackward)

  /// dx may be dy.
  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptLayerAttention, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>
  ) {
    switch arrays {
    case .heads(let arrays): self = .heads(SelfAttentionBackward(&arena, work, arrays, x: x, dy: dy, dx: dx))
    case .latent(let arrays): self = .latent(LatentAttentionBackward(&arena, work, arrays, x: x, dy: dy, dx: dx))
    }
  }

  @inline(never) func run() throws(Fault) {
    switch self {
    case .heads(let attention): try attention.run()
    case .latent(let attention): try attention.run()
    }
  }
}
