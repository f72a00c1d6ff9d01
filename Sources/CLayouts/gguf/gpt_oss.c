#include "architecture.h"

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, UNREAD("feed_forward_length"), NEEDED("expert_feed_forward_length", "intermediate_size"),
    CHOICE("num_local_experts", "num_experts_per_tok"), WINDOW_SIZE, NO_GROUPS, GATE_IS("1|3"),
    HAS_OR("blk.0.attn_q.bias", "attention_bias", "false"),
};
static const moei_tensor tensors[] = {
    EMBEDDINGS, BLOCK_NORMS("post_attention_norm"), HEADS(0),
    BLOCK_ONE("attn_sinks.weight", "attention.sinks", MOEI_ROWS_ALL, 0)};
static const moei_family names = {"gpt-oss", NAMES(tensors)};

const moei_architecture moei_architecture_gpt_oss = {
    "gpt-oss", {{"gpt_oss"}}, KEYS(keys), .turn_rule = MOEI_TURN_UNROUNDED, .names = &names};
