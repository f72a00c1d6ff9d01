/// Multi-head latent attention [MLA 2024]: a token's keys and values of all heads come from one latent of L numbers and one key
/// part of R numbers that turns.
public struct LatentConfiguration {
  public var rank: Int  // L
  /// Q: queries come from so many numbers; nil = from the hidden state.
  public var queryRank: Int?
  public var rotary: Int  // R, the last numbers of a head; 0 = none turn
  public var epsilon: Double  // of the norms of latents

  public init(rank: Int, queryRank: Int?, rotary: Int, epsilon: Double) {
    (self.rank, self.queryRank, self.rotary, self.epsilon) = (rank, queryRank, rotary, epsilon)
  }

  /// What a cache holds of a token: the latent, then the key part that turns.
  var row: Int { rank + rotary }
}

extension ModelConfiguration {
  /// Whether a call computes as reading does: where a cache is possible and no backward follows.
  func absorbs(_ input: ModelInput, taped: Bool) -> Bool {
    latent != nil && causal && vocabulary > 0 && !taped && !input.training
  }
}

/// Sizes that the stages of latent attention share.
struct LatentSizes {
  let heads: Int
  let head: Int  // D
  let value: Int  // Dv
  let latent: LatentConfiguration

  init(_ c: ModelConfiguration) { (heads, head, value, latent) = (c.heads, c.headSize, c.valueSize, c.latent!) }

  var rank: Int { latent.rank }  // L
  var rotary: Int { latent.rotary }  // R
  var row: Int { latent.row }  // L + R
  var plain: Int { head - rotary }  // of a key, from the latent: D - R
  /// Of a token, all heads together.
  var queries: Int { heads * head }
  var values: Int { heads * value }
  /// Rows of kv_b that belong to a head: its key's, then its value's.
  var expandedHead: Int { plain + value }
  var expanded: Int { heads * expandedHead }
}
