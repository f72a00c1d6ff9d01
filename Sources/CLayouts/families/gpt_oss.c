#include "family.h"

static const moe_model_config model = {DECODER, .sinks = 1};
/* Without GATED: the gate has a bias. */
static const moe_layer_config moe = {
    .struct_size = sizeof(moe_layer_config), .expert_kind = MOE_EXPERT_GATED, .activation = MOE_ACTIVATION_SILU,
    .router_weights = MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, .router_bias = MOE_BIAS_ON, .expert_bias = MOE_BIAS_ON,
    .glu_offset = 1,
};

static const moei_key keys[] = {
    SIZES("201088"), KEY_HEADS("8"), HEAD_SIZE("64"), NORM_EPSILON("1e-5"), TIED("false"),
    WIDTH("intermediate_size"), EXPERTS("num_local_experts|num_experts", "128"),
    TOP_K("num_experts_per_tok|experts_per_token", "4"), BALANCE,
    QKV_BIAS("attention_bias", "true"), OUTPUT_BIAS("attention_bias", "true"),
    {"swiglu_limit", MOEI_KEY_FLOAT, MOE(glu_limit), "7.0"}, {"swiglu_alpha", MOEI_KEY_FLOAT, MOE(glu_alpha), "1.702"},
    RULE("sliding_window"), RULE("layer_types"), IGNORED("initial_context_length"),
};
static const moei_tensor tensors[] = {
    ENDS, NORMS, ATTENTION, TENSOR(LAYER("self_attn.sinks"), LAYER("attention.sinks"))};

const moei_family moei_family_gpt_oss = {
    "gpt_oss", TEXT_MODEL, TABLES(keys, tensors), .model = &model, .moe = &moe,
    .layouts = {MOE_LAYOUT_GPT_OSS, MOE_LAYOUT_GPT_OSS_MXFP4}, .window_rule = MOEI_WINDOW_ALTERNATES, .window = 128,
    .rope_rule = MOEI_ROPE_NEEDED, .theta = 150000,
};
