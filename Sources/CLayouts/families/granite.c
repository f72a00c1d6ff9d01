#include "family.h"

/* GraniteMoE, and GraniteMoeShared, which has a shared expert beside the MoE block. */

static const moe_model_config model = {DECODER};
static const moe_layer_config moe = {GATED, .router_weights = MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX};
static const moe_layer_config shared = {GATED, .router_weights = MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, .n_shared_experts = 1};

#define COMMON                                                                                           \
  SIZES("32000"), KEY_HEADS("0"), HEAD_SIZE("0"), NORM_EPSILON("1e-6"), TIED("false"),                    \
      WIDTH("intermediate_size"), EXPERTS("num_local_experts|num_experts", "8"),                          \
      TOP_K("num_experts_per_tok", "2"), BALANCE, QKV_BIAS("attention_bias", "false"),                    \
      OUTPUT_BIAS("attention_bias", "false"),                                                             \
      {"attention_multiplier", MOEI_KEY_FACTOR, MODEL(attention_scale), "1.0"},                           \
      {"embedding_multiplier", MOEI_KEY_FACTOR, MODEL(embedding_scale), "1.0"},                           \
      {"residual_multiplier", MOEI_KEY_FACTOR, MODEL(residual_scale), "1.0"},                             \
      {"logits_scaling", MOEI_KEY_DIVISOR, MODEL(logit_scale), "1.0"}

static const moei_key keys[] = {COMMON};
static const moei_key shared_keys[] = {
    COMMON, {"shared_intermediate_size", MOEI_KEY_SIZE, MOE(shared_intermediate_size), "0"}};
static const moei_tensor tensors[] = {ENDS, NORMS, ATTENTION};

#define GRANITE .model = &model, .layouts = {MOE_LAYOUT_GRANITE_MOE}, .theta = 1e4
const moei_family moei_family_granitemoe = {"granitemoe", TEXT_MODEL, TABLES(keys, tensors), GRANITE, .moe = &moe};
const moei_family moei_family_granitemoeshared = {
    "granitemoeshared", TEXT_MODEL, TABLES(shared_keys, tensors), GRANITE, .moe = &shared};
