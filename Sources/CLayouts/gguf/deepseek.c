#include "architecture.h"

/* DeepSeek-V2 and V3, and what has their layers.  What follows from the latent is one matrix in older files, and two in newer ones:
 * keys, transposed, and values. */

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, WIDTH_KEY, MOE_WIDTH, CHOICE("n_routed_experts", "num_experts_per_tok"), GROUPS,
    BY_RULE("expert_gating_func"), NUMBER_OR("expert_shared_count", "n_shared_experts", "0"),
    NUMBER_OR("leading_dense_block_count", "first_k_dense_replace", "0"),
    NUMBER_OR("expert_weights_scale", "routed_scaling_factor", "1.0"),
    FLAG_OR("expert_weights_norm", "norm_topk_prob", "false"), NEEDED("attention.kv_lora_rank", "kv_lora_rank"),
    NUMBER_OR("attention.q_lora_rank", "q_lora_rank", "null"), BY_RULE("attention.key_length_mla"),
    BY_RULE("attention.value_length_mla"), HAS("blk.0.attn_kv_a_mqa.bias", "attention_bias"),
};

#define LATENT(rest)                                                                                       \
  EMBEDDINGS, BLOCK_NORMS("ffn_norm"), BLOCK_BOTH("attn_q_a", "attention.q_a", MOEI_ROWS_ALL, MOEI_RANKED),  \
      BLOCK_ONE("attn_q_a_norm.weight", "attention.q_a_norm.weight", MOEI_ROWS_ALL, 0),                     \
      BLOCK_ONE("attn_q_b.weight", "attention.q_b.weight", MOEI_ROWS_HEADS, MOEI_TURNED | MOEI_RANKED),     \
      BLOCK_ONE("attn_q.weight", "attention.q_b.weight", MOEI_ROWS_HEADS, MOEI_TURNED | MOEI_UNRANKED),     \
      BLOCK_BOTH("attn_kv_a_mqa", "attention.kv_a", MOEI_ROWS_LATENT, MOEI_TURNED),                         \
      BLOCK_ONE("attn_kv_a_norm.weight", "attention.kv_a_norm.weight", MOEI_ROWS_ALL, 0), rest,             \
      BLOCK_BOTH("attn_output", "attention.output", MOEI_ROWS_ALL, 0), DENSE_FFN
#define PARTS                                                                                  \
  BLOCK_ONE("attn_k_b.weight", "attention.kv_b.weight", MOEI_ROWS_LATENT_KEYS, 0),             \
      BLOCK_ONE("attn_v_b.weight", "attention.kv_b.weight", MOEI_ROWS_LATENT_VALUES, 0)
#define WHOLE BLOCK_ONE("attn_kv_b.weight", "attention.kv_b.weight", MOEI_ROWS_ALL, 0)

static const moei_tensor tensors[] = {LATENT(PARTS)};
static const moei_tensor older_tensors[] = {LATENT(WHOLE)};
/* The same once more. */
static const char *const parts_left[] = {
    "*.attn_k_b.weight", "*.attn_v_b.weight", "rope_freqs.weight", "*.attn_rot_embd.weight", NULL};
static const moei_family names = {"deepseek2", NAMES(tensors), .further_layers = 1};
static const moei_family older = {
    "deepseek2", .prefix = "", .outside = "", .layer = "blk.", .tensors = older_tensors,
    .tensor_count = LENGTH(older_tensors), .rotated = 1.0, .layouts = {MOE_LAYOUT_GGUF}, .left = parts_left,
    .further_layers = 1};

const moei_architecture moei_architecture_deepseek2 = {
    "deepseek2", {{"deepseek_v3", "expert_gating_func", 2}, {"deepseek_v2"}}, KEYS(keys), .heads_rule = MOEI_HEADS_LATENT,
    .turn_rule = MOEI_TURN_LATENT, .names = &names, .older = &older, .older_has = "blk.0.attn_kv_b.weight"};
