#include "architecture.h"

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, UNREAD("feed_forward_length"), NEEDED("expert_feed_forward_length", "intermediate_size"),
    CHOICE("num_local_experts", "num_experts_per_tok"), NO_GROUPS, GATE_IS("2"),
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(0), QK_NORMS};
static const moei_family names = {"minimax-m2", NAMES(tensors)};

const moei_architecture moei_architecture_minimax_m2 = {
    "minimax-m2", {{"minimax_m2"}}, KEYS(keys), .turn_rule = MOEI_TURN_SIZE, .names = &names};
