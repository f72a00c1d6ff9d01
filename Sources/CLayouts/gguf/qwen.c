#include "architecture.h"

/* Qwen2-MoE, Qwen3-MoE, Qwen3. */

#define COMMON                                                                                             \
  SIZES, RMS_EPSILON, NUMBER("feed_forward_length", "intermediate_size"), MOE_WIDTH,                       \
      CHOICE("num_experts", "num_experts_per_tok"), NO_GROUPS, GATE_IS("1"), MUST_BE("attention.sliding_window", "0"), \
      {NULL, "mlp_only_layers", MOEI_META_DENSE, NULL}

static const moei_metadata qwen2_keys[] = {
    COMMON, FLAG_OR("expert_weights_norm", "norm_topk_prob", "false"),
    NEEDED("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    MUST_BE("expert_shared_count", "1"), HAS_OR("blk.0.attn_q.bias", "qkv_bias", "false"),
};
static const moei_metadata qwen3_keys[] = {
    COMMON, FLAG_OR("expert_weights_norm", "norm_topk_prob", "true"), QKV_BIASES("attention_bias"),
};
static const moei_metadata dense_keys[] = {
    SIZES, RMS_EPSILON, WIDTH_KEY, QKV_BIASES("attention_bias"), MUST_BE("attention.sliding_window", "0"),
};

static const moei_tensor qwen2_tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(0), DENSE_FFN};
static const moei_tensor qwen3_tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(0), QK_NORMS, DENSE_FFN};
static const moei_family qwen2moe = {"qwen2moe", NAMES(qwen2_tensors)};
static const moei_family qwen3moe = {"qwen3moe", NAMES(qwen3_tensors)};
static const moei_family qwen3 = {"qwen3", NAMES(qwen3_tensors)};

const moei_architecture moei_architecture_qwen2moe = {
    "qwen2moe", {{"qwen2_moe"}}, KEYS(qwen2_keys), .names = &qwen2moe};
const moei_architecture moei_architecture_qwen3moe = {
    "qwen3moe", {{"qwen3_moe"}}, KEYS(qwen3_keys), .names = &qwen3moe};
const moei_architecture moei_architecture_qwen3 = {"qwen3", {{"qwen3"}}, KEYS(dense_keys), .names = &qwen3};
