#include "family.h"

static const moe_model_config model = {DECODER};
static const moe_layer_config moe = {GATED, .selection_bias = 1, .epsilon_form = MOE_EPSILON_LEAST};

static const moei_key keys[] = {
    SIZES("103424"), KEY_HEADS("4"), HEAD_SIZE("0"), NORM_EPSILON("1e-5"), TIED("true"),
    DENSE_WIDTH("intermediate_size"), WIDTH("moe_intermediate_size"),
    EXPERTS("moe_num_experts|num_experts", "64"), TOP_K("moe_k|num_experts_per_tok", "6"),
    {"moe_num_shared_experts", MOEI_KEY_SIZE, MOE(n_shared_experts), "2"},
    {"moe_norm_min", MOEI_KEY_FLOAT, MOE(normalize_epsilon), "1e-12"},
    RULE("moe_layer_start_index"), RULE("moe_layer_end_index"), RULE("moe_layer_interval"), NO_BALANCE,
    QKV_BIAS("use_bias", "false"), OUTPUT_BIAS("use_bias", "false"), {"use_bias", MOEI_KEY_FLAG, MODEL(logit_bias), "false"},
    {"use_bias", MOEI_KEY_NOT, MODEL(dense_no_bias), "false"},
    /* MOE_BIAS_OFF; a rule makes ON of it. */
    {"use_bias", MOEI_KEY_FLAG, MOE(shared_bias), "false"}, IS("moe_gate", "topk|top2_fused"), IS("moe_use_aux_free", "true"),
    IGNORED("moe_capacity"), IGNORED("num_nextn_predict_layers"), IGNORED("compression_ratio"), IGNORED("use_rmsnorm"),
};
static const moei_tensor tensors[] = {ENDS, NORMS, PROJECTIONS_OF_HEADS(MOEI_TURNED), DENSE("mlp.")};
static const char *const left[] = {"mtp*", "model.mtp*", NULL};

const moei_family moei_family_ernie4_5_moe = {
    "ernie4_5_moe", TEXT_MODEL, TABLES(keys, tensors), .model = &model, .moe = &moe, .left = left,
    .layouts = {MOE_LAYOUT_ERNIE4_5}, .layer_rule = MOEI_LAYERS_INTERVAL, .theta = 5e5,
};
