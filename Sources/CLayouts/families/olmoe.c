#include "family.h"

static const moe_model_config model = {DECODER, .qk_norm = MOE_QK_NORM_WHOLE};
static const moe_layer_config moe = {GATED};

static const moei_key keys[] = {
    SIZES("50304"), KEY_HEADS("0"), HEAD_SIZE("0"), NORM_EPSILON("1e-5"), TIED("false"),
    WIDTH("intermediate_size"), EXPERTS("num_experts|num_local_experts", "64"), TOP_K("num_experts_per_tok", "8"),
    NORMALIZED("false"), BALANCE, QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"),
    RULE("sliding_window"), IS("clip_qkv", "null"),
};
static const moei_tensor tensors[] = {ENDS, NORMS, ATTENTION, HEAD_NORMS};

const moei_family moei_family_olmoe = {
    "olmoe", TEXT_MODEL, TABLES(keys, tensors), .model = &model, .moe = &moe,
    .layouts = {MOE_LAYOUT_OLMOE}, .window_rule = MOEI_WINDOW_ALL, .theta = 1e4,
};
