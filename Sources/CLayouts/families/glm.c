#include "family.h"

/* GLM-4.5 and dots.llm1: DeepSeek-V3's MoE behind attention as Llama has it. */

static const moe_model_config glm = {DECODER};
static const moe_model_config dots = {DECODER, .qk_norm = MOE_QK_NORM_HEAD};
static const moe_layer_config moe = {GATED, SIGMOID_GATE, .group_top_m = 2};

#define COMMON(normalized, top_k, shared)                                                                   \
  HEAD_SIZE("0"), TIED("false"), DENSE_WIDTH("intermediate_size"), WIDTH("moe_intermediate_size"),          \
      EXPERTS("n_routed_experts|num_experts|num_local_experts", NULL), TOP_K("num_experts_per_tok", top_k), \
      {"n_shared_experts", MOEI_KEY_SIZE, MOE(n_shared_experts), shared}, ROUTED_SCALE("1.0"),              \
      NORMALIZED(normalized), {"n_group", MOEI_KEY_COUNT, MOE(n_groups), "1"},                              \
      {"topk_group", MOEI_KEY_COUNT, MOE(top_groups), "1"}, RULE("first_k_dense_replace"),                  \
      IS("moe_layer_freq", "1"), NO_BALANCE, QKV_BIAS("attention_bias", "false"),                           \
      IS("topk_method", "noaux_tc"), IGNORED("num_nextn_predict_layers"),                                   \
      IGNORED("num_mtp_layers")

static const moei_key glm_keys[] = {
    SIZES("151552"), KEY_HEADS("8"), NORM_EPSILON("1e-5"), COMMON("true", "8", "1"),
    IS("scoring_func", "sigmoid"),    {"use_qk_norm", MOEI_KEY_FLAG, MODEL(qk_norm), "false"},
};
static const moei_key dots_keys[] = {
    SIZES("152064"), KEY_HEADS("0"), NORM_EPSILON("1e-6"), COMMON("false", NULL, "0"),
    /* dots.llm1 has the name of the method here. */
    IS("scoring_func", "sigmoid|noaux_tc"), IGNORED("use_sliding_window"),
    OUTPUT_BIAS("attention_bias", "false"), RULE("sliding_window"), RULE("max_window_layers"), RULE("layer_types"),
};

static const moei_tensor tensors[] = {ENDS, NORMS, ATTENTION, HEAD_NORMS, DENSE("mlp.")};

const moei_family moei_family_glm4_moe = {
    "glm4_moe", TABLES(glm_keys, tensors), .prefix = "model.", .outside = "", .model = &glm, .moe = &moe,
    .layouts = {MOE_LAYOUT_DEEPSEEK}, .layer_rule = MOEI_LAYERS_FIRST_DENSE, .first_dense = 1, .further_layers = 1,
    .theta = 1e4, .rotated = 0.5,
};
const moei_family moei_family_dots1 = {
    "dots1", TEXT_MODEL, TABLES(dots_keys, tensors), .model = &dots, .moe = &moe,
    .layouts = {MOE_LAYOUT_DEEPSEEK}, .layer_rule = MOEI_LAYERS_FIRST_DENSE, .window_rule = MOEI_WINDOW_ABOVE,
    .window = 4096, .theta = 1e4,
};
