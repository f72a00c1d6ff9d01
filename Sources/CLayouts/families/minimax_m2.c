#include "family.h"

static const moe_model_config model = {DECODER, .qk_norm = MOE_QK_NORM_WHOLE};
static const moe_layer_config moe = {GATED, .score = MOE_SCORE_SIGMOID, .selection_bias = 1};

static const moei_key keys[] = {
    SIZES("200064"), KEY_HEADS("8"), HEAD_SIZE("128"), NORM_EPSILON("1e-6"), TIED("false"),
    WIDTH("intermediate_size"), EXPERTS("num_local_experts|num_experts", "256"), TOP_K("num_experts_per_tok", "8"),
    NO_BALANCE, IGNORED("router_jitter_noise"), IS("use_qk_norm", "true"), IS("qk_norm_type", "per_layer"),
    IS("scoring_func", "sigmoid"), IS("use_routing_bias", "true"), IS("shared_intermediate_size", "0"),
    IS("attn_type_list", "1"), IGNORED("use_mtp"), IGNORED("num_mtp_modules"), IGNORED("mtp_transformer_layers"),
    IS("sliding_window", "null"), IS("attention_bias", "false"),
    /* Of relatives with dense layers, shared experts and weighted residuals. */
    IGNORED("mlp_intermediate_size"), IGNORED("moe_intermediate_size"), IGNORED("shared_moe_mode"),
    IS("postnorm", "false"), IS("layernorm_full_attention_alpha", "1"), IS("layernorm_full_attention_beta", "1"),
    IS("layernorm_linear_attention_alpha", "1"), IS("layernorm_linear_attention_beta", "1"),
    IS("layernorm_mlp_alpha", "1"), IS("layernorm_mlp_beta", "1"),
};
static const moei_tensor tensors[] = {ENDS, NORMS, ATTENTION, HEAD_NORMS};

const moei_family moei_family_minimax_m2 = {
    "minimax_m2", TEXT_MODEL, TABLES(keys, tensors), .model = &model, .moe = &moe, .further_layers = 1,
    .layouts = {MOE_LAYOUT_MINIMAX_M2}, .theta = 5e6,
};
