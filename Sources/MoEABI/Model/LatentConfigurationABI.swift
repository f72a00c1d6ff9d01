import CMoE
import MoE

// Multi-head latent attention, checked against the rest of moe_model_config.

extension ModelConfiguration {
  /// After the sizes of heads and the rotary tables.
  mutating func readLatent(_ config: moe_model_config) throws(Fault) {
    if config.latent_rank == 0 {
      if config.query_rank != 0 {
        throw .invalid("query_rank = \(Int(config.query_rank)), but latent_rank = 0: set it, or leave query_rank 0")
      }
      if config.latent_norm_epsilon != 0 {
        throw .invalid("latent_norm_epsilon = \(config.latent_norm_epsilon), but latent_rank = 0: there are no latents")
      }
      return
    }
    if keyHeads != heads {
      throw .invalid(
        "n_kv_heads = \(keyHeads), but with latent_rank every head has keys of its own: set 0 or n_heads = \(heads)")
    }
    if config.rope_theta != 0 {
      throw .invalid(
        "rope_theta = \(config.rope_theta), but with latent_rank only a part of each head turns: give rotary_tables, whose rotary_size says how much"
      )
    }
    if config.qk_norm != 0 {
      throw .invalid("qk_norm = \(Int(config.qk_norm)), but with latent_rank the latents are normed: set it to 0")
    }
    if config.attention_gate != 0 {
      throw .invalid(
        "attention_gate = 1, but with latent_rank nothing is projected beside queries and keys: set it to 0")
    }
    if config.temperature_scale != 0 {
      throw .invalid("temperature_scale = \(config.temperature_scale), but latent_rank is not 0: set one of them to 0")
    }
    if config.latent_norm_epsilon != 0 { try requireNormEpsilon(config.latent_norm_epsilon, "latent_norm_epsilon") }
    let own = LatentConfiguration(
      rank: Int(config.latent_rank), queryRank: config.query_rank == 0 ? nil : Int(config.query_rank),
      rotary: try rotatedPart(), epsilon: config.latent_norm_epsilon == 0 ? epsilon : config.latent_norm_epsilon)
    try requireSizes(own)
    latent = own
  }

  /// R, the same in all tables.
  private func rotatedPart() throws(Fault) -> Int {
    guard let rotaries else { return 0 }
    let part = rotaries[0].size(headSize: headSize)
    for n in 0..<rotaryCount where rotaries[n].size(headSize: headSize) != part {
      throw .invalid(
        "rotary_tables[\(n)].rotary_size = \(rotaries[n].size(headSize: headSize)), but with latent_rank all tables turn the same part, and rotary_tables[0] turns \(part)"
      )
    }
    if part >= headSize {
      throw .invalid(
        "rotary_tables[0].rotary_size = \(part) is all of head_size = \(headSize), but with latent_rank a part of each head comes from the latent: make it smaller"
      )
    }
    return part
  }

  /// What is as wide as an array's row fits in 31 bits, and every matrix's bytes in a size.
  private func requireSizes(_ latent: LatentConfiguration) throws(Fault) {
    let most = Int(Int32.max)
    let down = latent.rank + latent.rotary
    try require(down, "latent_rank + rotary_size", from: 1, to: most)
    let queries = try product(heads, headSize, "n_heads * head_size")
    try require(queries, "n_heads * head_size", from: 1, to: most)
    let expandedHead = headSize - latent.rotary + valueSize
    let expanded = try product(heads, expandedHead, "n_heads * (head_size - rotary_size + value_head_size)")
    try require(expanded, "n_heads * (head_size - rotary_size + value_head_size)", from: 1, to: most)
    let query = latent.queryRank ?? hidden
    _ = try product(queries * query, 4, "the size of n_heads * head_size * query_rank floats")
    _ = try product(query * hidden, 4, "the size of query_rank * hidden_size floats")
    _ = try product(down * hidden, 4, "the size of (latent_rank + rotary_size) * hidden_size floats")
    _ = try product(
      expanded * latent.rank, 4,
      "the size of n_heads * (head_size - rotary_size + value_head_size) * latent_rank floats")
  }
}
