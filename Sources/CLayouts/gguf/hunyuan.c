#include "architecture.h"

/* The base of its positions is what alpha makes of it. */

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, UNREAD("feed_forward_length"), NEEDED("expert_feed_forward_length", "intermediate_size"),
    CHOICE("num_experts", "moe_topk"), NO_GROUPS, GATE_IS("1"), MUST_BE("expert_shared_count", "1"),
    UNREAD("expert_shared_feed_forward_length"), QKV_BIASES("attention_bias"),
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(0), QK_NORMS};
static const moei_family names = {"hunyuan-moe", NAMES(tensors)};

const moei_architecture moei_architecture_hunyuan_moe = {
    "hunyuan-moe", {{"hunyuan_v1_moe"}}, KEYS(keys), .names = &names};
