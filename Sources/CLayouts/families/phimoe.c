#include "family.h"

static const moe_model_config model = {
    .struct_size = sizeof(moe_model_config), .norm = MOE_NORM_LAYER, .final_norm = 1, .causal = 1,
    .dense_kind = MOE_EXPERT_GATED, .dense_activation = MOE_ACTIVATION_SILU, .dense_no_bias = 1,
};
static const moe_layer_config moe = {
    GATED, .router_weights = MOE_ROUTER_WEIGHTS_SPARSEMIXER, .router_normalize = MOE_NORMALIZE_NONE};

static const moei_key keys[] = {
    SIZES("32064"), KEY_HEADS("8"), HEAD_SIZE("0"), NORM_EPSILON("1e-5"), TIED("false"),
    WIDTH("intermediate_size"), EXPERTS("num_local_experts|num_experts", "16"), TOP_K("num_experts_per_tok", "2"),
    /* SparseMixer chooses two, whatever the key says. */
    IS("num_experts_per_tok", "2"),
    NO_BALANCE, {"router_jitter_noise", MOEI_KEY_FLOAT, MOE(mask_threshold), "0.01"},
    {"input_jitter_noise", MOEI_KEY_FLOAT, MOE(jitter), "0.0"}, RULE("sliding_window"),
    QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"),
    {"lm_head_bias", MOEI_KEY_FLAG, MODEL(logit_bias), "false"}, IGNORED("hidden_dropout"),
};
static const moei_tensor tensors[] = {ENDS, NORMS, ATTENTION};

const moei_family moei_family_phimoe = {
    "phimoe", TEXT_MODEL, TABLES(keys, tensors), .model = &model, .moe = &moe, .layouts = {MOE_LAYOUT_MIXTRAL},
    .window_rule = MOEI_WINDOW_ALL, .rope_rule = MOEI_ROPE_PHIMOE, .theta = 1e6,
};
