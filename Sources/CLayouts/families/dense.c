#include "family.h"

/* Dense relatives: Llama, Mistral, Qwen3. */

static const moe_model_config plain = {DECODER};
static const moe_model_config with_head_norms = {DECODER, .qk_norm = MOE_QK_NORM_HEAD};

#define BIASES QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false")

static const moei_key llama_keys[] = {
    SIZES("32000"), KEY_HEADS("0"), HEAD_SIZE("0"), NORM_EPSILON("1e-6"), TIED("false"),
    DENSE_WIDTH("intermediate_size"), BIASES, {"mlp_bias", MOEI_KEY_NOT, MODEL(dense_no_bias), "false"},
    /* Llama's own attention sees everything. */
    IGNORED("sliding_window"), IGNORED("max_window_layers"), IS("use_sliding_window", "false"),
    IS("rope_interleaved", "false"), IGNORED("is_llama_config"),
};
static const moei_key mistral_keys[] = {
    SIZES("32000"), KEY_HEADS("8"), HEAD_SIZE("0"), NORM_EPSILON("1e-6"), TIED("false"),
    DENSE_WIDTH("intermediate_size"), RULE("sliding_window"), RULE("layer_types"), IS("attention_bias", "false"),
    IS("mlp_bias", "false"),
};
static const moei_key qwen3_keys[] = {
    SIZES("151936"), KEY_HEADS("32"), HEAD_SIZE("128"), NORM_EPSILON("1e-6"), TIED("false"),
    DENSE_WIDTH("intermediate_size"), BIASES, RULE("sliding_window"), RULE("use_sliding_window"),
    RULE("max_window_layers"), RULE("layer_types"),
};

static const moei_tensor tensors[] = {ENDS, NORMS, ATTENTION, DENSE("mlp.")};
static const moei_tensor qwen3_tensors[] = {ENDS, NORMS, ATTENTION, HEAD_NORMS, DENSE("mlp.")};

const moei_family moei_family_llama = {
    "llama", TEXT_MODEL, TABLES(llama_keys, tensors), .model = &plain, .layer_rule = MOEI_LAYERS_NONE, .theta = 1e4};
const moei_family moei_family_mistral = {
    "mistral", TEXT_MODEL, TABLES(mistral_keys, tensors), .model = &plain, .layer_rule = MOEI_LAYERS_NONE,
    .window_rule = MOEI_WINDOW_ALL, .window = 4096, .theta = 1e4};
const moei_family moei_family_qwen3 = {
    "qwen3", TEXT_MODEL, TABLES(qwen3_keys, qwen3_tensors), .model = &with_head_norms,
    .layer_rule = MOEI_LAYERS_NONE, .window_rule = MOEI_WINDOW_ABOVE_IF_USED, .window = 4096, .theta = 1e4};
