#include "family.h"

/* Qwen3.5-MoE as far as its layers are attention: gates on its output, norms whose weights are stored minus 1. */

static const moe_model_config model = {DECODER, .qk_norm = MOE_QK_NORM_HEAD, .attention_gate = 1};
static const moe_layer_config moe = {GATED, .n_shared_experts = 1, .shared_gate = MOE_SHARED_SIGMOID};

static const moei_key keys[] = {
    SIZES("248320"), KEY_HEADS("2"), HEAD_SIZE("256"), NORM_EPSILON("1e-6"), TIED("false"),
    WIDTH("moe_intermediate_size"), EXPERTS("num_experts|num_local_experts", "256"), TOP_K("num_experts_per_tok", "8"),
    {"shared_expert_intermediate_size", MOEI_KEY_SIZE, MOE(shared_intermediate_size), "512"}, BALANCE,
    QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"), RULE("layer_types"),
    RULE("full_attention_interval"), IGNORED("linear_conv_kernel_dim"), IGNORED("linear_key_head_dim"),
    IGNORED("linear_value_head_dim"), IGNORED("linear_num_key_heads"), IGNORED("linear_num_value_heads"),
    IS("attn_output_gate", "true"), IGNORED("mtp_num_hidden_layers"), IGNORED("mtp_use_dedicated_embeddings"),
    IGNORED("mlp_only_layers"), IGNORED("mamba_ssm_dtype"),
};

#define ZERO_NORM(name, parameter) {name ".weight", parameter ".weight", MOEI_ROWS_ALL, MOEI_FROM_ZERO}
static const moei_tensor tensors[] = {
    TENSOR("embed_tokens.weight", "embed.weight"), ZERO_NORM("norm", "norm"),
    {"lm_head.weight", "output.weight", MOEI_ROWS_ALL, MOEI_OUTSIDE | MOEI_TIED},
    ZERO_NORM(LAYER("input_layernorm"), LAYER("norm1")), ZERO_NORM(LAYER("post_attention_layernorm"), LAYER("norm2")),
    PAIR(LAYER("self_attn.q_proj"), LAYER("attention.qkv"), MOEI_ROWS_QUERY_AND_GATE, 0),
    PAIR(LAYER("self_attn.k_proj"), LAYER("attention.qkv"), MOEI_ROWS_KEY, 0),
    PAIR(LAYER("self_attn.v_proj"), LAYER("attention.qkv"), MOEI_ROWS_VALUE, 0),
    PAIR(LAYER("self_attn.o_proj"), LAYER("attention.output"), MOEI_ROWS_ALL, 0),
    ZERO_NORM(LAYER("self_attn.q_norm"), LAYER("attention.q_norm")),
    ZERO_NORM(LAYER("self_attn.k_norm"), LAYER("attention.k_norm")),
};
static const char *const left[] = {"model.visual.*", "mtp.*", NULL};

#define QWEN3_5                                                                                              \
  TABLES(keys, tensors), .model = &model, .moe = &moe, .layouts = {MOE_LAYOUT_QWEN3_5_MOE}, .left = left,     \
      .window_rule = MOEI_WINDOW_FULL_ONLY, .theta = 1e4, .rotated = 0.25
const moei_family moei_family_qwen3_5_moe = {
    "qwen3_5_moe", "text_config", "model.language_model.", "", QWEN3_5};
const moei_family moei_family_qwen3_5_moe_text = {"qwen3_5_moe_text", NULL, "model.", "", QWEN3_5};
