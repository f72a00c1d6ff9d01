#include "family.h"

static const moe_model_config model = {DECODER};
static const moe_layer_config moe = {GATED};

static const moei_key keys[] = {
    SIZES("32000"), KEY_HEADS("8"), HEAD_SIZE("0"), NORM_EPSILON("1e-5"), TIED("false"),
    RULE("sliding_window"),
    WIDTH("intermediate_size"), EXPERTS("num_local_experts|num_experts", "8"), TOP_K("num_experts_per_tok", "2"),
    BALANCE, {"router_jitter_noise", MOEI_KEY_FLOAT, MOE(jitter), "0.0"},
};
static const moei_tensor tensors[] = {ENDS, NORMS, ATTENTION};

const moei_family moei_family_mixtral = {
    "mixtral", TEXT_MODEL, TABLES(keys, tensors), .model = &model, .moe = &moe,
    .layouts = {MOE_LAYOUT_MIXTRAL}, .window_rule = MOEI_WINDOW_ALL, .theta = 1e6,
};
