/* What the tables of architectures share. */
#ifndef MOEI_ARCHITECTURE_H
#define MOEI_ARCHITECTURE_H

#include "gguf.h"

#include <stddef.h>

/* By its path: the engine, which sees gguf.h, never sees a struct of the public header. */
#include "../../../include/moe.h"

/* Keys, as gguf.h has their kinds. */
#define UNREAD(name) {name, NULL, MOEI_META_IGNORED, NULL}
#define BY_RULE(name) {name, NULL, MOEI_META_RULE, NULL}
#define NUMBER(name, key) {name, key, MOEI_META_NUMBER, NULL}
#define NUMBER_OR(name, key, otherwise) {name, key, MOEI_META_NUMBER, otherwise}
#define NEEDED(name, key) {name, key, MOEI_META_NEEDED, NULL}
#define FLAG_OR(name, key, otherwise) {name, key, MOEI_META_FLAG, otherwise}
#define MUST_BE(name, words) {name, NULL, MOEI_META_IS, words}
#define ALWAYS(key, value) {NULL, key, MOEI_META_ALWAYS, value}
#define HAS(tensor, key) {tensor, key, MOEI_META_HAS, NULL}
#define HAS_OR(tensor, key, otherwise) {tensor, key, MOEI_META_HAS, otherwise}

/* What every decoder has. */
#define SIZES                                                                                               \
  NEEDED("embedding_length", "hidden_size"), NUMBER("context_length", "max_position_embeddings"),           \
      NEEDED("attention.head_count", "num_attention_heads"), BY_RULE("block_count"), BY_RULE("vocab_size"), \
      BY_RULE("attention.head_count_kv"), BY_RULE("attention.key_length"), BY_RULE("attention.value_length"), \
      BY_RULE("nextn_predict_layers"), MUST_BE("attention.causal", "true"), BY_RULE("rope.freq_base"),       \
      BY_RULE("rope.dimension_count"), BY_RULE("rope.scaling.type"), BY_RULE("rope.scaling.factor"),        \
      BY_RULE("rope.scale_linear"), BY_RULE("rope.scaling.original_context_length"),                        \
      BY_RULE("rope.scaling.attn_factor"), BY_RULE("rope.scaling.yarn_attn_factor"),                        \
      BY_RULE("rope.scaling.yarn_beta_fast"), BY_RULE("rope.scaling.yarn_beta_slow"),                       \
      BY_RULE("rope.scaling.yarn_log_multiplier"), MUST_BE("rope.scaling.yarn_ext_factor", "1|-1"),          \
      UNREAD("rope.scaling.finetuned"), MUST_BE("tensor_data_layout", "reference"),                         \
      MUST_BE("use_parallel_residual", "false"), UNREAD("pooling_type")
#define RMS_EPSILON NEEDED("attention.layer_norm_rms_epsilon", "rms_norm_eps")
#define WIDTH_KEY NEEDED("feed_forward_length", "intermediate_size")
#define MOE_WIDTH NEEDED("expert_feed_forward_length", "moe_intermediate_size")
#define CHOICE(experts, top_k) NEEDED("expert_count", experts), NEEDED("expert_used_count", top_k)
#define GATE_IS(number) MUST_BE("expert_gating_func", number)
#define NO_GROUPS MUST_BE("expert_group_count", "0|1"), MUST_BE("expert_group_used_count", "0|1")
#define GROUPS NUMBER_OR("expert_group_count", "n_group", "1"), NUMBER_OR("expert_group_used_count", "topk_group", "1")
#define WINDOW_SIZE NUMBER_OR("attention.sliding_window", "sliding_window", "null")
#define QKV_BIASES(key) HAS("blk.0.attn_q.bias", key)

/* Tensors: names, and what they are of a model. */
#define IN_BLOCK(name) "blk.*." name
#define OF_LAYER(name) "layers.*." name
#define ONE(name, parameter, rows, flags) {name, parameter, rows, flags}
#define BOTH(name, parameter, rows, flags) \
  {name ".weight", parameter ".weight", rows, flags}, {name ".bias", parameter ".bias", rows, flags}
#define BLOCK_BOTH(name, parameter, rows, flags) BOTH(IN_BLOCK(name), OF_LAYER(parameter), rows, flags)
#define BLOCK_ONE(name, parameter, rows, flags) ONE(IN_BLOCK(name), OF_LAYER(parameter), rows, flags)
#define EMBEDDINGS                                                                  \
  ONE("token_embd.weight", "embed.weight", MOEI_ROWS_ALL, 0),                       \
      BOTH("output_norm", "norm", MOEI_ROWS_ALL, 0),                                \
      BOTH("output", "output", MOEI_ROWS_ALL, MOEI_OUTSIDE)
/* `second`: the norm before the ffn. */
#define BLOCK_NORMS(second) \
  BLOCK_BOTH("attn_norm", "norm1", MOEI_ROWS_ALL, 0), BLOCK_BOTH(second, "norm2", MOEI_ROWS_ALL, 0)
/* `flags`: of queries and keys. */
#define HEADS(flags)                                                     \
  BLOCK_BOTH("attn_q", "attention.qkv", MOEI_ROWS_QUERY, flags),         \
      BLOCK_BOTH("attn_k", "attention.qkv", MOEI_ROWS_KEY, flags),       \
      BLOCK_BOTH("attn_v", "attention.qkv", MOEI_ROWS_VALUE, 0),         \
      BLOCK_BOTH("attn_output", "attention.output", MOEI_ROWS_ALL, 0)
#define QK_NORMS                                                                       \
  BLOCK_ONE("attn_q_norm.weight", "attention.q_norm.weight", MOEI_ROWS_ALL, 0),        \
      BLOCK_ONE("attn_k_norm.weight", "attention.k_norm.weight", MOEI_ROWS_ALL, 0)
#define DENSE_FFN                                                        \
  BLOCK_BOTH("ffn_gate", "ffn.experts.gate", MOEI_ROWS_ALL, 0),          \
      BLOCK_BOTH("ffn_up", "ffn.experts.up", MOEI_ROWS_ALL, 0),          \
      BLOCK_BOTH("ffn_down", "ffn.experts.down", MOEI_ROWS_ALL, 0)

#define LENGTH(array) ((int32_t)(sizeof(array) / sizeof(array)[0]))
#define NAMES(t)                                                                                          \
  .prefix = "", .outside = "", .layer = "blk.", .tensors = t, .tensor_count = LENGTH(t), .rotated = 1.0, \
  .layouts = {MOE_LAYOUT_GGUF}, .left = moei_gguf_left
#define KEYS(k) .keys = k, .key_count = LENGTH(k)

/* Tables of rotary positions, which are read as part of the configuration. */
extern const char *const moei_gguf_left[];

#endif
