import CShims

// What the engine sees of this folder. The folder is compiled once per instruction set (KernelsAVX2 and so on are
// links to it), so each copy exports its table under a name of its own.

#if MOE_AVX512BF16
  @implementation @_cdecl("moei_kernels_avx512_bf16")
  public func moei_kernels_avx512_bf16(_ out: UnsafeMutablePointer<moei_kernels>) { fill(out, "avx512-bf16") }
#elseif MOE_AVX512
  @implementation @_cdecl("moei_kernels_avx512")
  public func moei_kernels_avx512(_ out: UnsafeMutablePointer<moei_kernels>) { fill(out, "avx512") }
#elseif MOE_AVX2
  @implementation @_cdecl("moei_kernels_avx2")
  public func moei_kernels_avx2(_ out: UnsafeMutablePointer<moei_kernels>) { fill(out, "avx2") }
#else
  @implementation @_cdecl("moei_kernels_base")
  public func moei_kernels_base(_ out: UnsafeMutablePointer<moei_kernels>) { fill(out, "base") }
#endif

@inline(__always) private func fill(_ out: UnsafeMutablePointer<moei_kernels>, _ name: StaticString) {
  out.initialize(
    to: moei_kernels(
      name: UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self),
      activate: { activate($0, Int($1), $2, $3) },
      activate_backward: { activateBackward($0, Int($1), $2, $3) },
      activate_gated: { activateGated($0, Int($1), $2, $3, $4) },
      activate_gated_backward: { activateGatedBackward($0, Int($1), $2, $3, $4, $5, $6) },
      inner_gradient: { innerGradient($0) },
      inner_gradient_bf16: { innerGradientBF16($0) },
      softmax: { softmax(Int($0), $1, $2, $3, $4) },
      exponentials: { exponentialsOfRow(Int($0), $1, $2) },
      sigmoid: { sigmoid(Int($0), $1, $2) },
      sqrt_softplus: { sqrtSoftplus(Int($0), $1, $2) },
      power: { power(Int($0), $1, $2, $3) },
      normal: { normal(Int($0), $1, $2, $3) },
      first_not_finite: { Int64(firstNotFinite(Int($0), $1)) },
      top_k: { topK(Int($0), Int($1), $2, $3, $4) },
      softmax_backward: { softmaxBackward(Int($0), $1, $2, $3) },
      attention_weights: { attentionWeights(Int($0), $1, $2, $3, $4, $5, $6, $7) },
      attention_weights_of_few: { attentionWeightsOfFew(Int($0), Int($1), $2, $3, $4, $5, $6, $7, $8, $9) },
      attention_weights_bf16: { attentionWeightsBF16(Int($0), $1, $2, $3, $4, $5, $6, $7, $8) },
      attention_sums: { attentionSums($0, $1, $2, $3) },
      attention_gradients: { attentionGradients($0) },
      attention_gradients_bf16: { attentionGradientsBF16($0) },
      rotate: { rotate(Int($0), Int($1), Int($2), $3, $4, $5, $6) },
      random_words: { randomWords(Int($0), $1, $2, $3) },
      uniform: { uniform(Int($0), $1, $2, $3, $4) },
      dropout: { dropout(Int($0), $1, $2, $3, $4, $5) },
      dot: { dot(Int($0), $1, $2) },
      scale: { scale(Int($0), $1, $2, $3) },
      add_scaled: { addScaled(Int($0), $1, $2, $3) },
      add: { add(Int($0), $1, $2) },
      add_rows: { addRows(Int($0), Int($1), $2, $3, $4, Int($5), $6 != 0, $7) },
      sum: { sumOfRow(Int($0), $1) },
      sum_of_squares: { sumOfSquares(Int($0), $1, $2) },
      normalize: { normalize(Int($0), $1, $2, $3, $4, $5, $6) },
      normalize_sums: { normalizeSums(Int($0), $1, $2, $3, $4, $5, $6, $7) },
      normalize_backward: { normalizeBackward(Int($0), $1, $2, $3, $4, $5, $6, $7, $8) },
      add_normalized: { addNormalized(Int($0), Int($1), $2, $3, Int($4), $5, Int($6), $7) },
      matmul: {
        matmul(Int($0), Int($1), Int($2), $3, Int($4), Int($5), $6, Int($7), Int($8), $9, Int($10))
      },
      has_tiles: hasTiles ? 1 : 0,
      has_pairs: hasPairs ? 1 : 0,
      tile_height: Int64(tileHeight),
      product: {
        product(
          Int($0), Int($1), Int($2), $3, $4, $5, Int($6), $7, Int($8),
          moei_ahead(first: $9, row: $10, chunk: $11, beside: $12))
      },
      rows_unfetched: Int64(rowsUnfetched),
      few_rows: Int64(fewRows),
      few_rows_of_pairs: Int64(fewRowsOfPairs),
      product_of_few_rows: {
        productOfFewRows(Int($0), Int($1), $2, $3, Int($4), $5, Int($6), $7, Int($8), Int($9), ($10, $11))
      },
      add_few_rows: { addFewRows(Int($0), Int($1), Int($2), $3, Int($4), $5, Int($6), $7, Int($8), $9, Int($10)) },
      add_few_rows_of_pairs: {
        addFewRowsOfPairs(Int($0), Int($1), Int($2), $3, Int($4), $5, Int($6), $7, Int($8), $9, Int($10))
      },
      product_over_tokens: {
        productOverTokens(
          Int($0), Int($1), $2, $3, Int($4), Int($5), $6, Int($7), Int($8), $9, Int($10), $11, Wanted($12, $13))
      },
      pack_transposed: { packTransposed(Int($0), Int($1), $2, Int($3), $4) },
      pack: { pack(Int($0), Int($1), $2, Int($3), $4) },
      gather: { gather(Int($0), Int($1), $2, $3, Int($4), $5, $6) },
      product_of_pairs: {
        productOfPairs(
          Int($0), Int($1), Int($2), $3, $4, $5, Int($6), $7, Int($8),
          moei_ahead(first: $9, row: $10, chunk: $11, beside: $12))
      },
      product_of_few_rows_of_pairs: {
        productOfFewRowsOfPairs(Int($0), Int($1), $2, $3, Int($4), $5, Int($6), $7, Int($8), Int($9), ($10, $11))
      },
      product_over_token_pairs: {
        productOverTokenPairs(
          Int($0), Int($1), $2, $3, Int($4), Int($5), $6, Int($7), Int($8), $9, Int($10), $11, Wanted($12, $13))
      },
      from_bf16: { fromBF16(Int($0), $1, $2) },
      to_bf16: { toBF16(Int($0), $1, $2) },
      round_to_bf16: { roundToBF16(Int($0), $1, $2) },
      from_f16: { fromF16(Int($0), $1, $2) },
      to_f16: { toF16(Int($0), $1, $2) },
      pack_pairs_transposed: { packPairsTransposed(Int($0), Int($1), $2, Int($3), $4) },
      pack_pairs: { packPairs(Int($0), Int($1), $2, Int($3), $4) },
      gather_bf16: { gatherBF16(Int($0), Int($1), $2, $3, Int($4), $5, $6) },
      gather_token_pairs: { gatherTokenPairs(Int($0), Int($1), $2, $3, Int($4), $5, $6) },
      add_token_pairs: { addTokenPairs(Int($0), $1, $2) },
      codes: moei_all_codes(),
      row_integers: { moei_row_integers($0, $1, $2) },
      gather_integers: { gatherIntegers(Int($0), Int($1), $2, $3, Int($4), $5, $6) },
      adamw: { adamw(Int($0), $1, $2, $3, $4) },
      sgd: { sgd(Int($0), $1, $2, $3, $4, $5, $6, $7) },
      nesterov: { nesterov(Int($0), $1, $2, $3, $4, $5) },
      plain_sgd: { plain_sgd(Int($0), $1, $2, $3, $4, $5) },
      round_by_chance: { round_by_chance(Int($0), $1, $2) }))
}
