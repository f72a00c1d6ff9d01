/* What the families' tables share. */
#ifndef MOEI_FAMILY_H
#define MOEI_FAMILY_H

/* By its path: the engine, which sees families.h, never sees a struct of the public header. */
#include "../../../include/moe_model.h"
#include "families.h"

#define MODEL(field) MOEI_OF_MODEL, offsetof(moe_model_config, field)
#define MOE(field) MOEI_OF_MOE, offsetof(moe_layer_config, field)

/* Keys, as families.h has their kinds. */
#define IGNORED(name) {name, MOEI_KEY_IGNORED, MOEI_OF_NOTHING, 0, "null"}
#define RULE(name) {name, MOEI_KEY_RULE, MOEI_OF_NOTHING, 0, "null"}
#define IS(name, words) {name, MOEI_KEY_IS, MOEI_OF_NOTHING, 0, words}

/* What every decoder has. */
#define SIZES(tokens)                                                         \
  {"vocab_size", MOEI_KEY_SIZE, MODEL(vocabulary_size), tokens},              \
      {"hidden_size", MOEI_KEY_SIZE, MODEL(hidden_size), NULL},               \
      {"num_hidden_layers", MOEI_KEY_SIZE, MODEL(n_layers), NULL},            \
      {"num_attention_heads", MOEI_KEY_SIZE, MODEL(n_heads), NULL},           \
      {"attention_dropout", MOEI_KEY_FLOAT, MODEL(attention_dropout), "0.0"}, \
      IS("hidden_act", "silu|swish")
#define KEY_HEADS(otherwise) {"num_key_value_heads", MOEI_KEY_SIZE, MODEL(n_kv_heads), otherwise}
#define HEAD_SIZE(otherwise) {"head_dim", MOEI_KEY_SIZE, MODEL(head_size), otherwise}
#define NORM_EPSILON(otherwise) {"rms_norm_eps", MOEI_KEY_FACTOR, MODEL(norm_epsilon), otherwise}
#define TIED(otherwise) {"tie_word_embeddings", MOEI_KEY_FLAG, MODEL(tied_output), otherwise}
#define DENSE_WIDTH(name) {name, MOEI_KEY_SIZE, MODEL(dense_intermediate_size), NULL}
#define QKV_BIAS(name, otherwise) {name, MOEI_KEY_FLAG, MODEL(qkv_bias), otherwise}
#define OUTPUT_BIAS(name, otherwise) {name, MOEI_KEY_FLAG, MODEL(output_bias), otherwise}

/* Of its experts. */
#define EXPERTS(name, otherwise) {name, MOEI_KEY_SIZE, MOE(n_experts), otherwise}
#define TOP_K(name, otherwise) {name, MOEI_KEY_SIZE, MOE(top_k), otherwise}
#define WIDTH(name) {name, MOEI_KEY_SIZE, MOE(intermediate_size), NULL}
#define NORMALIZED(otherwise) {"norm_topk_prob", MOEI_KEY_NOT, MOE(router_normalize), otherwise}
#define ROUTED_SCALE(otherwise) {"routed_scaling_factor", MOEI_KEY_FLOAT, MOE(routed_scale), otherwise}
/* transformers adds the balance loss where it gives the router's logits back. */
#define BALANCE \
  RULE("output_router_logits"), {"router_aux_loss_coef", MOEI_KEY_DOUBLE, MODEL(pooled_balance_coef), "0.001"}
#define NO_BALANCE IGNORED("output_router_logits"), IGNORED("router_aux_loss_coef")

/* A decoder of the kind of Llama, and gated experts with SiLU; fields may follow. */
#define DECODER                                                                                            \
  .struct_size = sizeof(moe_model_config), .norm = MOE_NORM_RMS, .final_norm = 1, .causal = 1,             \
  .dense_kind = MOE_EXPERT_GATED, .dense_activation = MOE_ACTIVATION_SILU, .dense_no_bias = 1
#define GATED                                                                                              \
  .struct_size = sizeof(moe_layer_config), .expert_kind = MOE_EXPERT_GATED, .activation = MOE_ACTIVATION_SILU, \
  .router_bias = MOE_BIAS_OFF
/* DeepSeek-V3's choice and weights [DeepSeek-V3 2024]. */
#define SIGMOID_GATE .score = MOE_SCORE_SIGMOID, .selection_bias = 1, .normalize_epsilon = 1e-20f

/* Tensors. */
#define TENSOR(name, parameter) {name, parameter, MOEI_ROWS_ALL, 0}
#define PAIR(name, parameter, rows, flags) \
  {name ".weight", parameter ".weight", rows, flags}, {name ".bias", parameter ".bias", rows, flags}
#define NORM(name, parameter) PAIR(name, parameter, MOEI_ROWS_ALL, 0)
#define ENDS                                                                     \
  TENSOR("embed_tokens.weight", "embed.weight"), NORM("norm", "norm"),           \
      {"lm_head.weight", "output.weight", MOEI_ROWS_ALL, MOEI_OUTSIDE | MOEI_TIED}, \
      {"lm_head.bias", "output.bias", MOEI_ROWS_ALL, MOEI_OUTSIDE}
/* Behind "layers.N." of both. */
#define LAYER(name) "layers.*." name
#define NORMS \
  NORM(LAYER("input_layernorm"), LAYER("norm1")), NORM(LAYER("post_attention_layernorm"), LAYER("norm2"))
#define PROJECTIONS_OF_HEADS(flags)                                                        \
  PAIR(LAYER("self_attn.q_proj"), LAYER("attention.qkv"), MOEI_ROWS_QUERY, flags),         \
      PAIR(LAYER("self_attn.k_proj"), LAYER("attention.qkv"), MOEI_ROWS_KEY, flags),       \
      PAIR(LAYER("self_attn.v_proj"), LAYER("attention.qkv"), MOEI_ROWS_VALUE, 0),         \
      PAIR(LAYER("self_attn.o_proj"), LAYER("attention.output"), MOEI_ROWS_ALL, 0)
#define ATTENTION PROJECTIONS_OF_HEADS(0)
#define HEAD_NORMS                                                          \
  TENSOR(LAYER("self_attn.q_norm.weight"), LAYER("attention.q_norm.weight")), \
      TENSOR(LAYER("self_attn.k_norm.weight"), LAYER("attention.k_norm.weight"))
/* A layer that is not MoE. */
#define DENSE(name)                                                              \
  PAIR(LAYER(name "gate_proj"), LAYER("ffn.experts.gate"), MOEI_ROWS_ALL, 0),    \
      PAIR(LAYER(name "up_proj"), LAYER("ffn.experts.up"), MOEI_ROWS_ALL, 0),    \
      PAIR(LAYER(name "down_proj"), LAYER("ffn.experts.down"), MOEI_ROWS_ALL, 0)

#define COUNT(array) ((int32_t)(sizeof(array) / sizeof(array)[0]))
#define TABLES(k, t) .keys = k, .key_count = COUNT(k), .tensors = t, .tensor_count = COUNT(t)
#define TEXT_MODEL .prefix = "model.", .outside = "", .rotated = 1.0

#endif
