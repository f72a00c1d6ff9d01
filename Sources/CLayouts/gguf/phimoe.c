#include "architecture.h"

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, WIDTH_KEY, CHOICE("num_local_experts", "num_experts_per_tok"), WINDOW_SIZE, NO_GROUPS,
    GATE_IS("1"), UNREAD("attention.layer_norm_epsilon"), QKV_BIASES("attention_bias"), HAS("output.bias", "lm_head_bias"),
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(0)};
static const moei_family names = {"phimoe", NAMES(tensors)};

const moei_architecture moei_architecture_phimoe = {
    "phimoe", {{"phimoe"}}, KEYS(keys), .turn_rule = MOEI_TURN_SCALED, .names = &names};
