#include "family.h"

/* Qwen2-MoE: biases of queries, keys and values, one shared expert with a gate.  Qwen3-MoE: norms of queries and keys, and
 * no shared expert. */

static const moe_model_config qwen2 = {DECODER};
static const moe_model_config qwen3 = {DECODER, .qk_norm = MOE_QK_NORM_HEAD};
static const moe_layer_config qwen2_moe = {GATED, .n_shared_experts = 1, .shared_gate = MOE_SHARED_SIGMOID};
static const moe_layer_config qwen3_moe = {GATED};

#define COMMON(key_heads)                                                                                     \
  SIZES("151936"), KEY_HEADS(key_heads), HEAD_SIZE("0"), NORM_EPSILON("1e-6"),                               \
      DENSE_WIDTH("intermediate_size"), WIDTH("moe_intermediate_size"),                                       \
      RULE("sliding_window"), RULE("use_sliding_window"), RULE("max_window_layers"), RULE("decoder_sparse_step"), \
      RULE("mlp_only_layers"), NORMALIZED("false"), BALANCE

static const moei_key qwen2_keys[] = {
    COMMON("16"), TIED("false"), QKV_BIAS("qkv_bias", "true"),
    {"shared_expert_intermediate_size", MOEI_KEY_SIZE, MOE(shared_intermediate_size), "5632"},
    EXPERTS("num_experts", "60"), TOP_K("num_experts_per_tok", "4"), RULE("layer_types"),
};
static const moei_key qwen3_keys[] = {
    COMMON("4"), TIED("false"), QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"),
    EXPERTS("num_experts|num_local_experts", "128"), TOP_K("num_experts_per_tok", "8"),
};
/* norm_topk_prob is no key of Qwen3-VL-MoE: its weights are always divided by their sum. */
static const moei_key qwen3_vl_keys[] = {
    SIZES("151936"), KEY_HEADS("16"), HEAD_SIZE("0"), NORM_EPSILON("1e-6"), TIED("true"),
    DENSE_WIDTH("intermediate_size"), WIDTH("moe_intermediate_size"), RULE("decoder_sparse_step"),
    RULE("mlp_only_layers"), BALANCE, QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"),
    EXPERTS("num_experts|num_local_experts", "60"), TOP_K("num_experts_per_tok", "4"), IGNORED("norm_topk_prob"),
    IGNORED("deepstack_visual_indexes"), IS("sliding_window", "null"),
};

static const moei_tensor qwen2_tensors[] = {ENDS, NORMS, ATTENTION, DENSE("mlp.")};
static const moei_tensor qwen3_tensors[] = {ENDS, NORMS, ATTENTION, HEAD_NORMS, DENSE("mlp.")};
static const char *const images[] = {"model.visual.*", NULL};

const moei_family moei_family_qwen2_moe = {
    "qwen2_moe", TEXT_MODEL, TABLES(qwen2_keys, qwen2_tensors), .model = &qwen2, .moe = &qwen2_moe,
    .layouts = {MOE_LAYOUT_QWEN2_MOE}, .layer_rule = MOEI_LAYERS_STEP, .window_rule = MOEI_WINDOW_BELOW, .theta = 1e4,
};
const moei_family moei_family_qwen3_moe = {
    "qwen3_moe", TEXT_MODEL, TABLES(qwen3_keys, qwen3_tensors), .model = &qwen3, .moe = &qwen3_moe,
    .layouts = {MOE_LAYOUT_QWEN3_MOE}, .layer_rule = MOEI_LAYERS_STEP, .window_rule = MOEI_WINDOW_IF_USED, .theta = 1e4,
};
#define VL                                                                              \
  TABLES(qwen3_vl_keys, qwen3_tensors), .model = &qwen3, .moe = &qwen3_moe,             \
      .layouts = {MOE_LAYOUT_QWEN3_VL_MOE}, .layer_rule = MOEI_LAYERS_STEP, .theta = 5e5
const moei_family moei_family_qwen3_vl_moe = {
    "qwen3_vl_moe", "text_config", "model.language_model.", .outside = "", .rotated = 1.0, VL, .left = images};
const moei_family moei_family_qwen3_vl_moe_text = {"qwen3_vl_moe_text", TEXT_MODEL, VL};
