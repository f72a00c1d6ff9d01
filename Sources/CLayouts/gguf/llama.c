#include "architecture.h"

/* Llama and its like: Llama, Mistral, Mixtral.  The pairs that turn are neighbours, where transformers has them half a head apart. */

static const moei_metadata keys[] = {
    SIZES, RMS_EPSILON, WIDTH_KEY, WINDOW_SIZE,
    NUMBER("expert_count", "num_local_experts"), NUMBER("expert_used_count", "num_experts_per_tok"),
    MUST_BE("expert_feed_forward_length", "0"), MUST_BE("expert_shared_count", "0"), NO_GROUPS, GATE_IS("1"),
    QKV_BIASES("attention_bias"), HAS("blk.0.ffn_gate.bias", "mlp_bias"),
};
static const moei_tensor tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(MOEI_TURNED), DENSE_FFN};
static const moei_family names = {"llama", NAMES(tensors)};

const moei_architecture moei_architecture_llama = {
    "llama", {{"mixtral", "expert_count"}, {"mistral", "attention.sliding_window"}, {"llama"}}, KEYS(keys), .names = &names};
