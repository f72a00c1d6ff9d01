#include "architecture.h"

/* GraniteMoE, with shared experts too; its pairs are neighbours as Llama's are. */

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, WIDTH_KEY, CHOICE("num_local_experts", "num_experts_per_tok"), NO_GROUPS, GATE_IS("1|3"),
    NUMBER_OR("attention.scale", "attention_multiplier", "1.0"), NUMBER_OR("embedding_scale", "embedding_multiplier", "1.0"),
    NUMBER_OR("residual_scale", "residual_multiplier", "1.0"), NUMBER_OR("logit_scale", "logits_scaling", "1.0"),
    NUMBER("expert_shared_feed_forward_length", "shared_intermediate_size"), QKV_BIASES("attention_bias"),
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(MOEI_TURNED)};
static const moei_family names = {"granitemoe", NAMES(tensors)};

const moei_architecture moei_architecture_granitemoe = {
    "granitemoe", {{"granitemoeshared", "expert_shared_feed_forward_length"}, {"granitemoe"}}, KEYS(keys), .names = &names};
