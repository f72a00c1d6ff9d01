#include "architecture.h"

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, WIDTH_KEY, CHOICE("num_experts", "num_experts_per_tok"), WINDOW_SIZE, NO_GROUPS, GATE_IS("1"),
    FLAG_OR("expert_weights_norm", "norm_topk_prob", "false"), QKV_BIASES("attention_bias"),
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(0), QK_NORMS};
static const moei_family names = {"olmoe", NAMES(tensors)};

const moei_architecture moei_architecture_olmoe = {"olmoe", {{"olmoe"}}, KEYS(keys), .names = &names};
