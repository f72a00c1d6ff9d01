#include "architecture.h"

/* Its chunks, its layers without positions and its temperature are not in the metadata: they are those of the published models. */

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, NEEDED("feed_forward_length", "intermediate_size_mlp"),
    NEEDED("expert_feed_forward_length", "intermediate_size"), CHOICE("num_local_experts", "num_experts_per_tok"),
    NO_GROUPS, GATE_IS("2"), UNREAD("interleave_moe_layer_step"), UNREAD("leading_dense_block_count"),
    MUST_BE("expert_shared_count", "1"), UNREAD("expert_shared_feed_forward_length"), UNREAD("attention.sliding_window"),
    {NULL, "moe_layers", MOEI_META_SPARSE, NULL}, QKV_BIASES("attention_bias"),
    /* Maverick, of 128 experts, has no norms of queries and keys. */
    {"expert_count", "use_qk_norm", MOEI_META_BELOW, "128"},
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(MOEI_TURNED), DENSE_FFN};
static const moei_family names = {"llama4", NAMES(tensors)};

const moei_architecture moei_architecture_llama4 = {"llama4", {{"llama4_text"}}, KEYS(keys), .names = &names};
