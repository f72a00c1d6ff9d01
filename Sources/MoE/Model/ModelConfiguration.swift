/// What a model is. The boundary has checked it. As flat as the header's configuration.
public struct ModelConfiguration {
  /// Numbers as in moe_norm_place.
  public enum NormPlace: Int32 {
    case before = 0  // PRE
    case after = 1  // POST
    case none = 2
  }

  public var hidden: Int  // H
  public var layers: Int  // N
  public var heads: Int
  public var keyHeads: Int  // heads of keys and values
  public var headSize: Int  // D
  public var vocabulary = 0  // V; 0 = hidden states in and out
  public var positions = 0  // P, rows of the learned embedding of positions
  public var theta: Double?  // of rotary positions
  public var norm = Norm.Kind.layer
  public var epsilon = 1e-5
  public var normPlace = NormPlace.before
  public var finalNorm = false
  public var causal = false
  public var qkvBias = false
  public var outputBias = false
  public var headNorm = false  // RMS norms of each head's queries and keys
  public var tiedOutput = false
  public var weights = ElementType.f32
  public var dropout: Float = 0
  public var attentionDropout: Float = 0
  /// nil: no layer is MoE.
  public var moeEvery: Int?
  public var pooledCoefficient = 0.0
  public var initDeviation: Double?
  public var trainable = true
  public var seed: UInt64 = 0

  public init(hidden: Int, layers: Int, heads: Int, keyHeads: Int, headSize: Int) {
    self.hidden = hidden
    self.layers = layers
    self.heads = heads
    self.keyHeads = keyHeads
    self.headSize = headSize
  }
}

extension ModelConfiguration {
  /// Of a token: all heads' queries, all heads' keys (or values), and queries, keys and values together.
  var queries: Int { heads * headSize }
  var keys: Int { keyHeads * headSize }
  var projected: Int { queries + 2 * keys }

  public var hasFeedForward: Bool { normPlace != .none }
  var hasResidual: Bool { normPlace != .none }
  public func isMoE(_ n: Int) -> Bool { moeEvery.map { (n + 1) % $0 == 0 } ?? false }
  /// Whether layer n's rows of LayerNorm have biases.
  var normBias: Bool { norm == .layer }

  /// Keys of random numbers: of layer n's ffn, and of the rest of layer n (moe_model_config.seed).
  public func seed(ofFeedForward n: Int) -> UInt64 { seed(2 * UInt64(n) + 1) }
  func seed(ofLayer n: Int) -> UInt64 { seed(2 * UInt64(n) + 2) }
  private func seed(_ number: UInt64) -> UInt64 { seed &+ 0x9E37_79B9_7F4A_7C15 &* number }
}

/// Streams of a model's random numbers beside those of initial values, whose numbers are the parameters' slots.
enum ModelStream: UInt8 {
  case embeddingDropout = 64
  case attentionOutputDropout = 65
  case feedForwardDropout = 66
}
