#include "family.h"

/* Llama 4's language model, by itself or beside the part for images. */

static const moe_model_config model = {DECODER, .qk_norm = MOE_QK_NORM_PLAIN};
static const moe_layer_config moe = {
    GATED, .router_weights = MOE_ROUTER_WEIGHTS_TOPK_SIGMOID, .router_normalize = MOE_NORMALIZE_NONE,
    .weight_on_input = 1, .n_shared_experts = 1};

static const moei_key keys[] = {
    SIZES("202048"), KEY_HEADS("8"), HEAD_SIZE("128"), NORM_EPSILON("1e-5"), TIED("false"),
    WIDTH("intermediate_size"), DENSE_WIDTH("intermediate_size_mlp"), EXPERTS("num_local_experts|num_experts", "16"),
    TOP_K("num_experts_per_tok", "1"), QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"),
    NO_BALANCE, IGNORED("router_jitter_noise"), RULE("moe_layers"), RULE("interleave_moe_layer_step"),
    RULE("use_qk_norm"), RULE("no_rope_layers"), RULE("no_rope_layer_interval"), RULE("attention_chunk_size"),
    RULE("layer_types"), RULE("attn_temperature_tuning"),
    {"floor_scale", MOEI_KEY_DOUBLE, MODEL(temperature_floor), "8192"},
    {"attn_scale", MOEI_KEY_DOUBLE, MODEL(temperature_scale), "0.1"}, IGNORED("for_llm_compressor"),
};
static const moei_tensor tensors[] = {
    ENDS, NORMS, PROJECTIONS_OF_HEADS(MOEI_TURNED), DENSE("feed_forward."),
};
static const char *const images[] = {"vision_model.*", "multi_modal_projector.*", NULL};

#define LLAMA4                                                                                             \
  TABLES(keys, tensors), .model = &model, .moe = &moe, .layer_rule = MOEI_LAYERS_LISTED,                   \
      .window_rule = MOEI_WINDOW_CHUNKS, .rope_rule = MOEI_ROPE_SOMETIMES, .theta = 5e5, .rotated = 1.0
const moei_family moei_family_llama4 = {
    "llama4", "text_config", "language_model.model.", "language_model.", LLAMA4, .left = images,
    .layouts = {MOE_LAYOUT_LLAMA4}};
const moei_family moei_family_llama4_text = {
    "llama4_text", NULL, "model.", "", LLAMA4, .layouts = {MOE_LAYOUT_LLAMA4_TEXT}};
