/// What a model is. The boundary has checked it. As flat as the header's configuration.
public struct ModelConfiguration {
  /// Numbers as in moe_norm_place.
  public enum NormPlace: Int32 {
    case before = 0  // PRE
    case after = 1  // POST
    case none = 2
  }

  /// RMS norms of queries and keys. Numbers as in moe_qk_norm.
  public enum QueryKeyNorm: Int32 {
    case none = 0
    case head = 1  // each head, before rotation
    case whole = 2  // all heads together, before rotation
    case rotated = 3  // each head, after rotation
    case plain = 4  // each head, after rotation, without weights, in layers that rotate

    var isAfterRotation: Bool { self == .rotated || self == .plain }
    var hasWeights: Bool { self != .none && self != .plain }
  }

  public var hidden: Int  // H
  public var layers: Int  // N
  public var heads: Int
  public var keyHeads: Int  // heads of keys and values
  public var headSize: Int  // D
  public var valueSize: Int  // Dv
  public var vocabulary = 0  // V; 0 = hidden states in and out
  public var positions = 0  // P, rows of the learned embedding of positions
  /// Rotary positions by number, [rotaryCount]; the caller's memory until the model is made, then the model's.
  public var rotaries: UnsafePointer<RotaryValues>?
  public var rotaryCount = 0
  public var norm = Norm.Kind.layer
  public var epsilon = 1e-5
  public var normPlace = NormPlace.before
  public var finalNorm = false
  public var causal = false
  public var qkvBias = false
  public var outputBias = false
  public var queryKeyNorm = QueryKeyNorm.none
  public var attentionScale: Float?  // of q . k; nil = 1 / sqrt(D)
  public var attentionGate = false  // output . sigmoid(gate), before the output projection
  public var sinks = false
  public var latent: LatentConfiguration?  // where keys and values come from latents
  public var temperature: Temperature?
  public var tiedOutput = false
  public var weights = ElementType.f32
  public var embeddings = ElementType.f32  // of the tokens' table, and of the output where it is tied
  public var embeddingScale: Float = 1
  public var residualScale: Float = 1
  public var logitScale: Float = 1
  public var logitCap: Float = 0  // c tanh(z / c); 0 = none
  public var logitBias = false
  public var dropout: Float = 0
  public var attentionDropout: Float = 0
  /// [N], in the model's memory, once it is made.
  var table: UnsafePointer<ModelLayer>?
  /// How many layers are MoE; counted when the table is made.
  var moeLayers = 0
  public var pooledCoefficient = 0.0
  public var initDeviation: Double?
  public var trainable = true
  /// Whether parameters have initial values, which who overwrites all of them has no use for.
  public var startsRandom = true
  /// Whether parameters have memory, which a model that only tells what they are does without.
  public var allocates = true
  public var seed: UInt64 = 0

  public init(hidden: Int, layers: Int, heads: Int, keyHeads: Int, headSize: Int) {
    self.hidden = hidden
    self.layers = layers
    self.heads = heads
    self.keyHeads = keyHeads
    self.headSize = headSize
    valueSize = headSize
  }
}

extension ModelConfiguration {
  /// Of a token: all heads' queries, keys, values and outputs, and what is projected together: queries, keys, values, gates.
  var queries: Int { heads * headSize }
  var keys: Int { keyHeads * headSize }
  var values: Int { keyHeads * valueSize }
  var outputs: Int { heads * valueSize }
  public var projected: Int { queries + keys + values + (attentionGate ? outputs : 0) }

  public var hasFeedForward: Bool { normPlace != .none }
  var hasResidual: Bool { normPlace != .none }
  func layer(_ n: Int) -> ModelLayer { table![n] }
  public func isMoE(_ n: Int) -> Bool { layer(n).isMoE }
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
