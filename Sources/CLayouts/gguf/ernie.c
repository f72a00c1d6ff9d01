#include "architecture.h"

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, WIDTH_KEY, MOE_WIDTH, CHOICE("moe_num_experts", "moe_k"), NO_GROUPS, GATE_IS("1"),
    NUMBER_OR("expert_shared_count", "moe_num_shared_experts", "0"), UNREAD("expert_shared_feed_forward_length"),
    NUMBER_OR("interleave_moe_layer_step", "moe_layer_interval", "1"),
    NUMBER_OR("leading_dense_block_count", "moe_layer_start_index", "0"),
    {NULL, "moe_layer_end_index", MOEI_META_LAST, NULL}, QKV_BIASES("use_bias"),
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(MOEI_TURNED), DENSE_FFN};
static const moei_family names = {"ernie4_5-moe", NAMES(tensors)};

const moei_architecture moei_architecture_ernie4_5_moe = {
    "ernie4_5-moe", {{"ernie4_5_moe"}}, KEYS(keys), .names = &names};
