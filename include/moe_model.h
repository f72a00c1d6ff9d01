/* moe_model.h: what stands around the layer of moe.h in a transformer, and whole models.
 *
 *   Blocks   norms, rotary positions, attention, products with a matrix, embeddings, cross-entropy: functions over the
 *            caller's arrays, forward and backward, without a handle.
 *   Models   a stack of transformer layers, dense or MoE, as an encoder or a decoder-only language model: a handle with
 *            parameters, a tape, a memory plan and generation.
 *
 * The rules of moe.h hold.  In particular the same inputs give the same bits on every run, for every n_threads and on every
 * instruction set; gradients of parameters are added (+=), gradients of activations are overwritten; arrays of one call
 * do not overlap unless the comment says so.  The blocks' arrays are float32.  Every block is thread-safe with distinct
 * outputs, and may be cancelled (MOE_ERROR_CANCELLED; gradients are then partly added).
 * B sequences of S tokens each are T = B * S tokens; token t is position t % S of sequence t / S.
 *
 * References: [Attention 2017] arXiv:1706.03762; [LayerNorm 2016] arXiv:1607.06450; [RMSNorm 2019] arXiv:1910.07467;
 * [RoPE 2021] arXiv:2104.09864; [GQA 2023] arXiv:2305.13245; [Online softmax 2018] arXiv:1805.02867;
 * [FlashAttention 2022] arXiv:2205.14135; [Pre-LN 2020] arXiv:2002.04745; [Label smoothing 2015] arXiv:1512.00567;
 * [Top-p 2019] arXiv:1904.09751; [Min-p 2024] arXiv:2407.01082; [CTRL 2019] arXiv:1909.05858; [Attention sinks 2023] arXiv:2309.17453; [YaRN 2023] arXiv:2309.00071;
 * [LongRoPE 2024] arXiv:2402.13753; [MLA 2024] arXiv:2405.04434; [QK norm 2023] arXiv:2302.05442.
 */
#ifndef MOE_MODEL_H
#define MOE_MODEL_H

#include "moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------
 * Norms
 * ---------------------------------------------------------------------------------------------------------- */

/** What a norm divides by. */
typedef enum moe_norm {
  MOE_NORM_LAYER = 0, /**< y = (x - mean) / sqrt(variance + epsilon) * weight + bias  [LayerNorm 2016]; biased variance */
  MOE_NORM_RMS = 1    /**< y = x / sqrt(mean of x^2 + epsilon) * weight  [RMSNorm 2019] */
} moe_norm;

typedef struct moe_norm_config {
  size_t struct_size;
  int64_t n_tokens;    /**< T, 0 to 2^31 - 1 */
  int64_t hidden_size; /**< H, 1 to 2^31 - 1 */
  double epsilon;      /**< at least the smallest normal float, 1.2e-38; of the forward alone; 1e-5 in MOE_NORM_CONFIG_INIT */
  int32_t norm;        /**< a moe_norm */
  int32_t reserved;    /**< 0 */
} moe_norm_config;

#define MOE_NORM_CONFIG_INIT { sizeof(moe_norm_config), 0, 0, 1e-5, 0, 0 }

/** Fill `config` as MOE_NORM_CONFIG_INIT does.  NULL is ignored. */
MOE_API void moe_norm_config_init(moe_norm_config *config, size_t struct_size);

/** Each row normalised by itself.
 *  @param x          [in]  [T,H]
 *  @param weight     [in]  [H]
 *  @param bias       [in, nullable] [H]; NULL with RMS
 *  @param y          [out] [T,H]; may be x
 *  @param statistics [out, nullable] [T,2]: mean (0 with RMS) and 1 / root, for the backward
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, CANCELLED. */
MOE_API MOE_CHECK moe_status moe_norm_forward(moe_context *context, const moe_norm_config *config, const float *x,
                                              const float *weight, const float *bias, float *y, float *statistics);

/** Its gradients.
 *  @param dy      [in]  [T,H]
 *  @param dx      [out, nullable] [T,H]; may be dy
 *  @param dweight [in, out, nullable] [H], added to
 *  @param dbias   [in, out, nullable] [H], added to; NULL with RMS
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, CANCELLED. */
MOE_API MOE_CHECK moe_status moe_norm_backward(moe_context *context, const moe_norm_config *config, const float *x,
                                               const float *weight, const float *statistics, const float *dy,
                                               float *dx, float *dweight, float *dbias);

/* ------------------------------------------------------------------------------------------------------------
 * Products with a matrix
 * ---------------------------------------------------------------------------------------------------------- */

typedef struct moe_linear_config {
  size_t struct_size;
  int64_t n_tokens;     /**< T, 0 to 2^31 - 1 */
  int64_t inputs;       /**< 1 to 2^31 - 1 */
  int64_t outputs;      /**< 1 to 2^31 - 1 */
  int32_t weight_dtype; /**< as moe_layer_config.weight_dtype; with BF16 x is rounded to it for the product, sums are float32 */
  int32_t reserved;     /**< 0 */
} moe_linear_config;

#define MOE_LINEAR_CONFIG_INIT { sizeof(moe_linear_config), 0, 0, 0, 0, 0 }

/** Fill `config` with the defaults (0).  NULL is ignored. */
MOE_API void moe_linear_config_init(moe_linear_config *config, size_t struct_size);

/** y = x W^T + b.
 *  @param x      [in]  [T,inputs]
 *  @param weight [in]  [outputs,inputs] of weight_dtype
 *  @param bias   [in, nullable] [outputs]
 *  @param y      [out] [T,outputs]
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, CANCELLED. */
MOE_API MOE_CHECK moe_status moe_linear_forward(moe_context *context, const moe_linear_config *config, const float *x,
                                                const void *weight, const float *bias, float *y);

/** dx = dy W;  dW += dy^T x;  db += sum over tokens of dy.
 *  With bfloat16 weights the products read x and dy rounded; db adds dy as it is.
 *  @param dy      [in]  [T,outputs]
 *  @param dx      [out, nullable] [T,inputs]
 *  @param dweight [in, out, nullable] [outputs,inputs], float32
 *  @param dbias   [in, out, nullable] [outputs]
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, CANCELLED. */
MOE_API MOE_CHECK moe_status moe_linear_backward(moe_context *context, const moe_linear_config *config, const float *x,
                                                 const void *weight, const float *dy, float *dx, float *dweight,
                                                 float *dbias);

/* ------------------------------------------------------------------------------------------------------------
 * Positions and attention
 * ---------------------------------------------------------------------------------------------------------- */

typedef struct moe_rotary_config {
  size_t struct_size;
  int64_t n_tokens;         /**< T, 0 to 2^31 - 1 */
  int64_t n_heads;          /**< 1 to 2^20 */
  int64_t head_size;        /**< D, 2 to 2^20: floats from one head to the next; even, where all of them turn */
  int64_t stride;           /**< floats from one token's heads to the next's; 0 = n_heads * D */
  int64_t sequence_length;  /**< 0 to 2^31 - 1; without positions token t is at t % sequence_length + first_position; 0 = n_tokens */
  int64_t first_position;   /**< 0 to 2^31 - 1 */
  const int64_t *positions; /**< [T], nullable: each token's, 0 to 2^31 - 1 */
  double theta;             /**< >= 1; 10000 in MOE_ROTARY_CONFIG_INIT */
  int32_t inverse;          /**< 1 = turns back, which is the backward */
  int32_t reserved;         /**< 0 */
  int64_t rotary_size;      /**< R, 0 to D, even: the first R numbers of a head turn, the others stay; 0 = D */
  const double *frequencies; /**< [R / 2], nullable: radians per position, -2^20 to 2^20, in place of theta^(-2i/R) */
  double scale;             /**< finite: times cos and sin, with inverse = 1 too; 0 = 1 */
} moe_rotary_config;

#define MOE_ROTARY_CONFIG_INIT { sizeof(moe_rotary_config), 0, 0, 0, 0, 0, 0, NULL, 10000.0, 0, 0, 0, NULL, 0.0 }

/** Fill `config` as MOE_ROTARY_CONFIG_INIT does.  NULL is ignored. */
MOE_API void moe_rotary_config_init(moe_rotary_config *config, size_t struct_size);

/** Rotary positions [RoPE 2021] in the form of Llama: for i < R/2, with a = position * theta^(-2i/R), or position * frequencies[i],
 *      x[i], x[i + R/2] = scale * (x[i] cos a - x[i + R/2] sin a),  scale * (x[i + R/2] cos a + x[i] sin a)
 *  in place.  The backward is the same with inverse = 1: a turn by -a.
 *  @param x [in, out] [T, n_heads, D], rows of tokens `stride` floats apart
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, CANCELLED. */
MOE_API MOE_CHECK moe_status moe_rotate(moe_context *context, const moe_rotary_config *config, float *x);

/** What attention is asked for.  Heads are D wide; several query heads share a key/value head where n_kv_heads is smaller
 *  [GQA 2023]: query head h reads head h / (n_heads / n_kv_heads). */
typedef struct moe_attention_config {
  size_t struct_size;
  int64_t n_sequences;     /**< B, 1 to 2^31 - 1 */
  int64_t n_queries;       /**< S, of each sequence, 1 to 2^31 - 1 */
  int64_t n_keys;          /**< U, of each sequence, 0 to 2^31 - 1; 0 = n_queries */
  int64_t n_heads;         /**< of the queries, 1 to 2^20 */
  int64_t n_kv_heads;      /**< 0 to 2^20, a divisor of n_heads; 0 = n_heads */
  int64_t head_size;       /**< D, 1 to 2^20 */
  int64_t query_stride;    /**< floats from one token's queries to the next's, of query and dquery; 0 = n_heads * D */
  int64_t key_stride;      /**< of key and dkey; 0 = n_kv_heads * D */
  int64_t value_stride;    /**< of value and dvalue; 0 = n_kv_heads * Dv */
  int64_t output_stride;   /**< of output and doutput; 0 = n_heads * Dv */
  double scale;            /**< of q . k, finite; 0 = 1 / sqrt(D) */
  int32_t causal;          /**< 1: query s sees keys 0 to s + U - S */
  float dropout;           /**< [0, 1): probability that a weight is dropped, the others scaled */
  uint64_t seed;           /**< of dropout */
  uint64_t step;           /**< below 2^56 */
  const uint8_t *mask;     /**< [S,U], nullable: 1 = the query may see the key */
  const float *added_mask; /**< [S,U], nullable: added to scale * q . k; minus infinity = never */
  const uint8_t *valid_mask; /**< [B,U], nullable: 1 = a real key, 0 = padding, which no query sees */
  const float *sinks;      /**< [n_heads], nullable: one more logit of each head's softmax, which has no value: it takes its share
                                of the weight [Attention sinks 2023; gpt-oss].  Finite; minus infinity = none of this head */
  int64_t window;          /**< W, 0 to 2^31 - 1; 0 = all: query at place p sees keys p - W + 1 to p alone; with causal = 1.  Places are
                                counted over real keys, padding not among them */
  int64_t chunk;           /**< 0 to 2^31 - 1; 0 = none: a query sees keys whose place divided by chunk, rounded down, is that of its
                                own alone; with causal = 1 (Llama 4) */
  int64_t value_size;      /**< Dv, of value's and output's heads, 0 to 2^20; 0 = D */
  int32_t compute_dtype;   /**< MOE_DTYPE_F32, or MOE_DTYPE_BF16: what is multiplied is rounded to bfloat16, queries, keys, values,
                                doutput, the softmax's weights and the gradients of scores; sums, the softmax and all arrays
                                are float32 (docs/numerics.md) */
} moe_attention_config;

#define MOE_ATTENTION_CONFIG_INIT \
  { sizeof(moe_attention_config), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0.0f, 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0, 0 }

/** Fill `config` with the defaults (0).  NULL is ignored. */
MOE_API void moe_attention_config_init(moe_attention_config *config, size_t struct_size);

/** output = softmax(scale * Q K^T + masks) V for each head [Attention 2017], in tiles with a running softmax
 *  [Online softmax 2018, FlashAttention 2022]: memory beside the arrays depends on neither S nor U.  With sinks the softmax's
 *  divisor has the term exp(sinks[h]) too.
 *  @param query    [in]  [B,S,n_heads,D]
 *  @param key      [in]  [B,U,n_kv_heads,D]
 *  @param value    [in]  [B,U,n_kv_heads,Dv], Dv = value_size
 *  @param output   [out] [B,S,n_heads,Dv]; a query that sees no key gets 0
 *  @param log_sums [out, nullable] [B,n_heads,S] log of the softmax's divisor (minus infinity where no key is seen), for
 *                  the backward
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, NOT_FINITE (naming sequence, head and query), CANCELLED. */
MOE_API MOE_CHECK moe_status moe_attention_forward(moe_context *context, const moe_attention_config *config,
                                                   const float *query, const float *key, const float *value,
                                                   float *output, float *log_sums);

/** What the backward of attention is given beside the forward's arrays, and where it writes. */
typedef struct moe_attention_gradients {
  size_t struct_size;
  const float *doutput; /**< [B,S,n_heads,Dv] */
  float *dquery;        /**< [out] as query; overwritten, as the next two */
  float *dkey;          /**< [out] as key */
  float *dvalue;        /**< [out] as value */
  float *dsinks;        /**< [n_heads], nullable, added to; NULL without sinks */
} moe_attention_gradients;

#define MOE_ATTENTION_GRADIENTS_INIT { sizeof(moe_attention_gradients), NULL, NULL, NULL, NULL, NULL }

/** Fill `gradients` with NULL.  NULL is ignored. */
MOE_API void moe_attention_gradients_init(moe_attention_gradients *gradients, size_t struct_size);

/** Its gradients; scores are computed again, dropout is drawn again.
 *  @param config, query, key, value [in] as in the forward
 *  @param output, log_sums [in] what the forward wrote
 *  @param gradients [in] all but dsinks are needed
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, CANCELLED. */
MOE_API MOE_CHECK moe_status moe_attention_backward(moe_context *context, const moe_attention_config *config,
                                                    const float *query, const float *key, const float *value,
                                                    const float *output, const float *log_sums,
                                                    const moe_attention_gradients *gradients);

/* ------------------------------------------------------------------------------------------------------------
 * Tokens in, and the loss
 * ---------------------------------------------------------------------------------------------------------- */

typedef struct moe_embedding_config {
  size_t struct_size;
  int64_t n_tokens;        /**< T, 0 to 2^31 - 1 */
  int64_t hidden_size;     /**< H, 1 to 2^31 - 1 */
  int64_t n_rows;          /**< of table, 1 to 2^31 - 1 */
  int64_t n_positions;     /**< of positions, 1 to 2^31 - 1; 0 with none, where the next two are not read either */
  int64_t sequence_length; /**< 0 to 2^31 - 1; 0 = n_tokens */
  int64_t first_position;  /**< 0 to 2^31 - 1 */
} moe_embedding_config;

#define MOE_EMBEDDING_CONFIG_INIT { sizeof(moe_embedding_config), 0, 0, 0, 0, 0, 0 }

/** Fill `config` with the defaults (0).  NULL is ignored. */
MOE_API void moe_embedding_config_init(moe_embedding_config *config, size_t struct_size);

/** y[t] = table[tokens[t]] + positions[t % sequence_length + first_position].
 *  @param tokens    [in]  [T], 0 to n_rows - 1
 *  @param table     [in]  [n_rows,H]
 *  @param positions [in, nullable] [n_positions,H]
 *  @param y         [out] [T,H]
 *  @return MOE_OK, INVALID_ARGUMENT (a token or a position beyond its table: the message names it), CANCELLED. */
MOE_API MOE_CHECK moe_status moe_embedding_forward(moe_context *context, const moe_embedding_config *config,
                                                   const int32_t *tokens, const float *table, const float *positions,
                                                   float *y);

/** Adds dy's rows to those of dtable and dpositions (NULL: not), each in ascending order of t.
 *  @return as moe_embedding_forward. */
MOE_API MOE_CHECK moe_status moe_embedding_backward(moe_context *context, const moe_embedding_config *config,
                                                    const int32_t *tokens, const float *dy, float *dtable,
                                                    float *dpositions);

typedef struct moe_cross_entropy_config {
  size_t struct_size;
  int64_t n_tokens;        /**< T, 0 to 2^31 - 1 */
  int64_t hidden_size;     /**< H, 1 to 2^31 - 1 */
  int64_t vocabulary_size; /**< V, 1 to 2^31 - 1 */
  int32_t weight_dtype;    /**< as moe_layer_config.weight_dtype, see moe_linear_config */
  int32_t ignore_index;    /**< a number: targets that do not count; -100 in MOE_CROSS_ENTROPY_CONFIG_INIT */
  double label_smoothing;  /**< s, [0, 1] */
  double d_loss;           /**< finite: gradients are those of d_loss * loss; 1 in MOE_CROSS_ENTROPY_CONFIG_INIT */
  double logit_scale;      /**< finite: times the logits; 0 = 1 */
  double logit_softcap;    /**< c, finite, at least 0: logits become c tanh(z / c), z scaled already; 0 = none */
  const float *bias;       /**< [V], nullable: added to x W^T */
  float *dbias;            /**< [V], nullable, [in, out]: its gradient is added; NULL without bias */
} moe_cross_entropy_config;

#define MOE_CROSS_ENTROPY_CONFIG_INIT { sizeof(moe_cross_entropy_config), 0, 0, 0, 0, -100, 0.0, 1.0, 0.0, 0.0, NULL, NULL }

/** Fill `config` as MOE_CROSS_ENTROPY_CONFIG_INIT does.  NULL is ignored. */
MOE_API void moe_cross_entropy_config_init(moe_cross_entropy_config *config, size_t struct_size);

/** Cross-entropy of the logits z = logit_scale (x W^T + bias), capped where logit_softcap says so, fused with the product:
 *  logits exist for some tokens at a time, never [T,V].
 *      loss = sum over counted t of [ (1 - s) (lse_t - z_t[target]) + s (lse_t - mean of z_t) ] / n      s = label_smoothing
 *  n counts the tokens whose target is not ignore_index; PyTorch's reduction "mean".
 *  With dx, dweight or dbias, gradients of d_loss * loss too: dx is overwritten, the others added to.
 *  @param x       [in]  [T,H]
 *  @param weight  [in]  [V,H] of weight_dtype
 *  @param targets [in]  [T], 0 to V - 1, or ignore_index
 *  @param loss    [out] in nats; 0 where n = 0
 *  @param counted [out, nullable] n
 *  @param token_losses [out, nullable] [T] of each token, 0 where ignored
 *  @param dx      [out, nullable] [T,H]
 *  @param dweight [in, out, nullable] [V,H] float32
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, NOT_FINITE (naming the token; gradients are then partly written),
 *          CANCELLED. */
MOE_API MOE_CHECK moe_status moe_cross_entropy(moe_context *context, const moe_cross_entropy_config *config,
                                               const float *x, const void *weight, const int32_t *targets,
                                               double *loss, int64_t *counted, float *token_losses, float *dx,
                                               float *dweight);

/* ------------------------------------------------------------------------------------------------------------
 * Models
 * ---------------------------------------------------------------------------------------------------------- */

/** A stack of transformer layers and its parameters.  Keeps its context alive. */
typedef struct moe_model moe_model;

/** Where the norms of a layer stand. */
typedef enum moe_norm_place {
  MOE_NORM_PRE = 0,  /**< h = x + attention(norm(x));  y = h + ffn(norm(h))  [Pre-LN 2020] */
  MOE_NORM_POST = 1, /**< h = norm(x + attention(x));  y = norm(h + ffn(h))  [Attention 2017] */
  MOE_NORM_NONE = 2  /**< y = attention(x) alone, without residual and ffn: torch.nn.MultiheadAttention */
} moe_norm_place;

/** Norms of queries and keys, RMS with norm_epsilon [QK norm 2023]. */
typedef enum moe_qk_norm {
  MOE_QK_NORM_NONE = 0,
  MOE_QK_NORM_HEAD = 1,    /**< over each head, before rotation (Qwen3) */
  MOE_QK_NORM_WHOLE = 2,   /**< over all heads' queries together, and all heads' keys, before rotation (OLMoE, MiniMax-M2) */
  MOE_QK_NORM_ROTATED = 3, /**< over each head, after rotation (Hunyuan) */
  MOE_QK_NORM_PLAIN = 4    /**< over each head, after rotation, without weights, in layers that rotate alone (Llama 4) */
} moe_qk_norm;

/** Rotary positions as data: of every layer of a model that names it. */
typedef struct moe_rotary_table {
  int64_t rotary_size;            /**< R, 0 to 2^31 - 1, even: the first R of a head's D numbers turn (with latent_rank the last R); 0 = D */
  double theta;                   /**< finite, >= 1: angles are position * theta^(-2i/R); 0 with frequencies */
  const double *frequencies;      /**< [rotary_size / 2], nullable, copied: radians per position, -2^20 to 2^20 */
  double scale;                   /**< finite: times cos and sin; 0 = 1 */
  const double *long_frequencies; /**< [rotary_size / 2], nullable, copied: in place of frequencies in a sequence that has a
                                       position of original_length or more, or a cache with room for more than that
                                       [LongRoPE 2024] */
  double long_scale;              /**< finite: as scale, with long_frequencies; 0 = 1 */
  int64_t original_length;        /**< 0 to 2^31 - 1; 0 without long_frequencies */
} moe_rotary_table;

/** One layer of a model whose layers differ. */
typedef struct moe_model_layer_config {
  int32_t dense;     /**< 1 = its ffn is dense; 0 = MoE where the model has `moe` */
  int32_t rotary;    /**< a number: which of rotary_tables turns it, from 0; -1 = none does; 0 too where there are none */
  int64_t window;    /**< 0 to 2^31 - 1, as moe_attention_config.window; 0 = all keys */
  int64_t chunk;     /**< 0 to 2^31 - 1, as moe_attention_config.chunk; 0 = none */
  int64_t dense_intermediate_size; /**< of a dense layer, 0 to 2^31 - 1; 0 = the model's */
} moe_model_layer_config;

/** What a model is.  Where nothing else is said, 0 is off. */
typedef struct moe_model_config {
  size_t struct_size;
  int64_t hidden_size;     /**< H, 1 to 2^31 - 1 */
  int64_t n_layers;        /**< N, 1 to 2^20 */
  int64_t n_heads;         /**< of the queries, 1 to 2^31 - 1 */
  int64_t n_kv_heads;      /**< 0 to 2^31 - 1, a divisor of n_heads; 0 = n_heads */
  int64_t head_size;       /**< D, 0 to 2^31 - 1; 0 = H / n_heads */
  int64_t vocabulary_size; /**< V, 0 to 2^31 - 1: tokens in, logits out.  0: an encoder, hidden states [T,H] in and out */
  int64_t max_positions;   /**< 0 to 2^31 - 1: rows of a learned position embedding, with V; 0 = none */
  double rope_theta;       /**< >= 1: rotary positions in every attention; 0 = none */
  double norm_epsilon;     /**< 0 = 1e-5; else as in moe_norm_config */
  int32_t norm;            /**< a moe_norm */
  int32_t norm_place;      /**< a moe_norm_place */
  int32_t final_norm;      /**< 1: a norm after the last layer */
  int32_t causal;          /**< 1: tokens see themselves and earlier ones */
  int32_t qkv_bias;        /**< 1: queries, keys and values have biases */
  int32_t output_bias;     /**< 1: attention's output projection has one */
  int32_t qk_norm;         /**< a moe_qk_norm */
  int32_t tied_output;     /**< 1: the output product uses the token embedding */
  int32_t weight_dtype;    /**< as moe_layer_config.weight_dtype, of projections, dense ffn, experts and an untied output (mixed
                                precision: router, norms, embeddings, sums, residuals, loss and gradients stay float32).
                                Attention has the compute_dtype of what its output projection multiplies with: BF16 where
                                that is bfloat16, or prepared in a form with bfloat16 tokens */
  float dropout;           /**< [0, 1), on embeddings, and on what attention and ffn add to the residual */
  float attention_dropout; /**< [0, 1), on attention's weights */
  int32_t dense_kind;      /**< ffn of layers that are not MoE: MOE_EXPERT_MLP or MOE_EXPERT_GATED */
  int32_t dense_activation; /**< a moe_activation */
  int32_t dense_no_bias;   /**< 1: without biases */
  float dense_dropout;     /**< [0, 1), on the inner activations of dense layers; that of experts is in `moe` */
  int32_t inference_only;  /**< 1 = no memory for gradients; backward is refused */
  int64_t dense_intermediate_size; /**< I of dense layers, 0 to 2^31 - 1; 0 without any */
  const moe_layer_config *moe; /**< ffn of MoE layers, copied; NULL: every layer is dense.  hidden_size 0 or H;
                                    io_dtype, inference_only and seed 0; router not EXTERNAL; HASH only of tokens, with
                                    vocabulary_size V; unallocated EXPERT_WEIGHTS with the model's inference_only
                                    alone: offload each layer of moe_model_layer, or bind; EXPERT_GRADIENTS without it, of
                                    every ffn, dense ones too: bind them, or step by moe_model_backward_step */
  int64_t moe_every;       /**< 0 to 2^31 - 1: layer n = 0, 1, ... is MoE where (n + 1) % moe_every == 0; 0 = 1, every layer */
  double pooled_balance_coef; /**< >= 0, times moe_pooled_balance_loss over the MoE layers, added to the objective as transformers
                                   does */
  double init_deviation;   /**< >= 0, of the normal distribution that embeddings and projections are drawn from; 0 = 0.02 for
                                embeddings and Xavier's uniform for projections */
  uint64_t seed;           /**< initialisation and dropout.  Layer n has the keys  seed + g (2 n + 1)  for its ffn, whose
                                moe_layer_config.seed that is, and  seed + g (2 n + 2)  for the rest,
                                g = 0x9e3779b97f4a7c15, modulo 2^64 */
  const moe_rotary_table *rotary_tables; /**< [n_rotary_tables], nullable, copied; with rope_theta 0.  Layers have the first, where
                                `layers` does not say otherwise; so it is with rope_theta, which is one table */
  int64_t n_rotary_tables; /**< 0 to 64 */
  const moe_model_layer_config *layers; /**< [n_layers], nullable, copied: layers that differ; then moe_every is 0 */
  double attention_scale;  /**< finite: of q . k; 0 = 1 / sqrt(D) */
  double embedding_scale;  /**< finite: times the embedded tokens; 0 = 1 */
  double residual_scale;   /**< finite: times what attention and ffn add to the residual; 0 = 1 */
  double logit_scale;      /**< finite: times the logits; 0 = 1 */
  double logit_softcap;    /**< c, finite, at least 0: logits become c tanh(z / c), z scaled already; 0 = none */
  double temperature_scale; /**< a, finite: queries of layers without rotation are multiplied by
                                1 + a log(1 + floor((position + 1) / temperature_floor)) (Llama 4); 0 = not */
  double temperature_floor; /**< >= 1 with temperature_scale, else 0 */
  int64_t value_head_size; /**< of the values, 0 to 2^31 - 1; 0 = D */
  int64_t latent_rank;     /**< 0 to 2^31 - 1; above 0: multi-head latent attention [MLA 2024], see moe_model_parameter_count: keys and
                                values of a token come from so many numbers, and the cache holds these and the rotated part alone.
                                Calls with a tape or in training compute over keys and values of every head; calls of a causal
                                model with a vocabulary without either, and moe_model_read, over the latents: the same to rounding
                                (docs/numerics.md).
                                n_kv_heads is 0 or n_heads, rotary_size of the tables is the rotated part of D */
  int64_t query_rank;      /**< 0 to 2^31 - 1, with latent_rank: queries come from so many numbers; 0 = from the hidden state */
  int32_t sinks;           /**< 1: attention.sinks [heads], see moe_attention_config */
  int32_t attention_gate;  /**< 1: output . sigmoid(gate) before the output projection, the gates being projected beside queries,
                                keys and values (Qwen3.5) */
  int32_t logit_bias;      /**< 1: output.bias [V] (PhiMoE), also where the output is tied (ERNIE-4.5) */
  int32_t embedding_dtype; /**< MOE_DTYPE_F32 or BF16, of embed.weight, and of the output where it is tied */
  double latent_norm_epsilon; /**< 0 = norm_epsilon; else as in moe_norm_config: of q_a_norm and kv_a_norm, with latent_rank (DeepSeek's
                                   code has 1e-6 there, whatever its other norms have) */
} moe_model_config;

#define MOE_MODEL_CONFIG_INIT \
  { \
    sizeof(moe_model_config), 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0, 0, 0, 0.0f, 0, 0, \
    NULL, 0, 0.0, 0.0, 0, NULL, 0, NULL, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0.0 \
  }

/** Fill `config` with the defaults (0).  NULL is ignored. */
MOE_API void moe_model_config_init(moe_model_config *config, size_t struct_size);

/** Fill `config` as torch.nn.TransformerEncoderLayer has it, one layer: LayerNorm after (POST), biases everywhere,
 *  dropout 0.1 everywhere, ReLU MLP.  Set the sizes, and `moe` to have experts in place of the MLP. */
MOE_API void moe_encoder_layer_config_init(moe_model_config *config, size_t struct_size);

/** @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_model_create(moe_context *context, const moe_model_config *config, moe_model **out);
MOE_API void moe_model_free(moe_model *model);

/** What the model was made with, as it was given; the pointers in it live as long as the model.
 *  @param config [out] with struct_size set
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_model_configuration(const moe_model *model, moe_model_config *config);

/** Number of parameter tensors.  In order, those the configuration has:
 *    embed.weight [V,H]        positions.weight [P,H]
 *    for each layer n:
 *    layers.n.norm1.weight [H]           layers.n.norm1.bias [H]              before, or after, attention
 *    layers.n.attention.qkv.weight [(heads + kv_heads) D + kv_heads Dv, H]   ...qkv.bias   rows of queries, then keys, then
 *                                                              values; with attention_gate heads Dv rows of gates behind
 *    layers.n.attention.q_norm.weight [D]                        ...k_norm.weight [D]     (WHOLE: [heads D] and [kv_heads D])
 *    layers.n.attention.sinks [heads]
 *    with latent_rank L, query_rank Q and R = rotary_size, in place of qkv:
 *      layers.n.attention.q_a.weight [Q,H]      q_a.bias [Q]    q_a_norm.weight [Q]    q_b.weight [heads D, Q]
 *        (query_rank 0: q_b.weight [heads D, H] alone); of a head D - R numbers, then the R that turn
 *      layers.n.attention.kv_a.weight [L + R, H]   kv_a.bias    kv_a_norm.weight [L]   the latent, then the key part that turns
 *      layers.n.attention.kv_b.weight [heads (D - R + value_head_size), L]             of a head keys, then values
 *    layers.n.attention.output.weight [H, heads Dv]              ...output.bias [H]
 *    layers.n.norm2.weight [H]           layers.n.norm2.bias [H]
 *    layers.n.ffn.<as moe_layer_parameter_count names them>: of a dense layer experts.up.weight [1,I,H] and so on
 *    norm.weight [H]           norm.bias [H]                                  final norm
 *    output.weight [V,H]       output.bias [V]                                untied
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_model_parameter_count(const moe_model *model, int64_t *count);
/** As moe_layer_parameter, moe_layer_find_parameter, moe_layer_bind_parameter and moe_layer_zero_grad. */
MOE_API MOE_CHECK moe_status moe_model_parameter(const moe_model *model, int64_t index, moe_tensor *tensor);
MOE_API MOE_CHECK moe_status moe_model_find_parameter(const moe_model *model, const char *name, int64_t *index);
MOE_API MOE_CHECK moe_status moe_model_bind_parameter(moe_model *model, int64_t index, void *data, float *grad);
MOE_API MOE_CHECK moe_status moe_model_zero_grad(moe_model *model);

/** Stop training parameter `index`.  The memory of its gradient is given up: the library's own is freed, the caller's let go.
 *  Backward computes neither the gradient nor what it alone needs, and ends at the first layer with something to train; the
 *  other gradients keep their bits.  Forward, tapes and moe_model_plan_memory are as before.  moe_model_parameter tells it by frozen = 1
 *  and grad NULL: leave it out of optimisers' lists, and make those anew that had it.  Binding a gradient trains it again, see
 *  moe_model_bind_parameter.  Frozen already: nothing happens.  Wants the model for itself.
 *  @return MOE_OK, INVALID_ARGUMENT (no such parameter, a buffer), BAD_STATE (inference_only). */
MOE_API MOE_CHECK moe_status moe_model_freeze(moe_model *model, int64_t index);

/** The ffn of layer n, for moe_layer_update_selection_bias, moe_layer_offload and the like.  It belongs to the model:
 *  do not free it, and do not call its forward in training.
 *  @return MOE_OK, INVALID_ARGUMENT (no such layer, or one without an ffn). */
MOE_API MOE_CHECK moe_status moe_model_layer(const moe_model *model, int64_t n, moe_layer **layer);

/** Prepare a model: moe_layer_prepare of every ffn, dense ones too, and a packed copy of each matrix that tokens are
 *  multiplied by: attention's projections, and that of the logits; in few bits also of the embedding, in which tokens are then looked up,
 *  one copy where the output is tied to it.  What a latent is expanded by stays as it is.
 *  @param model    [in]
 *  @param prepared [in] a moe_prepared; packs again what is packed already.  An output tied to an embedding of another type than the weights
 *                  keeps its values where they do
 *  The copies do not follow the parameters: forward and read look at 16 values of each, and are refused with BAD_STATE where one
 *  has changed.  The loss is computed from the copies, backward reads the parameters themselves, but for few bits: what is packed so
 *  is frozen until it is prepared otherwise, as of moe_layer_prepare; of a tied output that is the embedding too.  Wants the model for itself.
 *  @return MOE_OK, INVALID_ARGUMENT (as of moe_layer_prepare), OUT_OF_MEMORY, NOT_FINITE, BAD_STATE (a parameter has no memory); after
 *          an error nothing is packed. */
MOE_API MOE_CHECK moe_status moe_model_prepare(moe_model *model, int32_t prepared);

/** What forward leaves for backward.  Keeps its model's context alive. */
typedef struct moe_model_tape moe_model_tape;
/** @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_model_tape_create(const moe_model *model, moe_model_tape **out);
MOE_API void moe_model_tape_free(moe_model_tape *tape);

/** One call: what goes in. */
typedef struct moe_model_input {
  size_t struct_size;
  int64_t n_sequences;       /**< B, 0 to 2^31 - 1; 0 of a rank of a model over ranks (moe_ranks.h) alone */
  int64_t sequence_length;   /**< S, 1 to 2^31 - 1; at most max_positions, where there are any: with valid_mask of the real tokens alone,
                                  with positions each of these below it */
  const int32_t *tokens;     /**< [B,S] of a model with a vocabulary, else NULL */
  const float *hidden;       /**< [B,S,H] of one without, else NULL */
  const int32_t *targets;    /**< [B,S], nullable: the loss is computed */
  int32_t ignore_index;      /**< a number: targets that do not count; -100 in MOE_MODEL_INPUT_INIT */
  int32_t training;          /**< 1: dropout and exploration act */
  double label_smoothing;    /**< s of moe_cross_entropy, [0, 1) */
  uint64_t step;             /**< below 2^56, as in moe_forward_options */
  const uint8_t *mask;       /**< [S,S], nullable; as in moe_attention_config */
  const float *added_mask;   /**< [S,S], nullable */
  const uint8_t *valid_mask; /**< [B,S], nullable: 0 = padding, wherever it stands: no query sees it, no expert computes it, and
                                  rows of it in hidden or dhidden that are not finite count as 0.  Leave it out of targets
                                  yourself */
  size_t memory_limit;       /**< bytes of scratch and tape together, of this call and its backward; 0 = the context's */
  const int64_t *positions;  /**< [B,S], nullable: each token's position, for max_positions and rope_theta.  NULL: the number of
                                  tokens before it in its sequence, padding not among them, so that a sequence padded in front
                                  or behind has the hidden states of the sequence alone, bit for bit where dropout does not act
                                  (and, of a float32 model, the gradients) */
  const uint8_t *loss_mask;  /**< [B,S], nullable: the tokens that count in the layers' auxiliary losses and reports, as in
                                  moe_forward_options; which targets count is ignore_index's */
  int64_t chunk_tokens;      /**< 0 to 2^31 - 1: tokens that an ffn computes at once at most, as in moe_forward_options; 0 = as planned */
} moe_model_input;

#define MOE_MODEL_INPUT_INIT \
  { sizeof(moe_model_input), 0, 0, NULL, NULL, NULL, -100, 0, 0.0, 0, NULL, NULL, NULL, 0, NULL, NULL, 0 }

/** Fill `input` with the defaults: 0, and -100 for ignore_index.  NULL is ignored. */
MOE_API void moe_model_input_init(moe_model_input *input, size_t struct_size);

/** One call: what is learned from it. */
typedef struct moe_model_report {
  size_t struct_size;
  double loss;                 /**< cross-entropy, mean in nats; 0 without targets */
  double objective;            /**< loss + aux_loss + pooled_balance_coef * pooled_balance_loss */
  double aux_loss;             /**< the sum over layers of moe_report.aux_loss */
  double pooled_balance_loss;  /**< 0 where its coefficient is 0 */
  int64_t n_targets;           /**< that counted */
  moe_report *layers;          /**< [n_layers], nullable, each with struct_size set; of dense layers all 0, and no array is
                                    written */
  float *token_losses;         /**< [B,S], nullable */
} moe_model_report;

#define MOE_MODEL_REPORT_INIT { sizeof(moe_model_report), 0.0, 0.0, 0.0, 0.0, 0, NULL, NULL }

/** Fill `report` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_model_report_init(moe_model_report *report, size_t struct_size);

/** What a layer keeps from forward to backward. */
typedef enum moe_keep {
  MOE_KEEP_ALL = 0,     /**< everything backward needs */
  MOE_KEEP_LEAN = 1,    /**< attention's arrays, of the ffn its routing (a LEAN tape) */
  MOE_KEEP_INPUT = 2    /**< the layer's input and the routing (with POST, h + ffn(h) too): attention is computed again */
} moe_keep;

/** Memory of a call of a model, in bytes: exactly what forward and backward will ask for. */
typedef struct moe_model_plan {
  size_t struct_size;
  size_t forward_bytes;  /**< scratch of forward */
  size_t backward_bytes; /**< scratch of backward; 0 without a tape */
  size_t tape_bytes;     /**< 0 without */
  size_t total_bytes;    /**< tape and the larger scratch, of a model over ranks what comes from others too: what a memory limit bounds */
  int32_t *keep;         /**< [n_layers], nullable, [out]: a moe_keep each */
  int64_t kept_all;      /**< layers with MOE_KEEP_ALL */
  int64_t kept_lean;     /**< with MOE_KEEP_LEAN */
  int64_t kept_input;    /**< with MOE_KEEP_INPUT */
} moe_model_plan;

#define MOE_MODEL_PLAN_INIT { sizeof(moe_model_plan), 0, 0, 0, 0, NULL, 0, 0, 0 }

/** Fill `plan` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_model_plan_init(moe_model_plan *plan, size_t struct_size);

/** As moe_layer_plan, for the whole model.  A limit is kept by keeping less in as few layers as possible: first LEAN from
 *  the first layer on, then INPUT; chunks of tokens within the ffn where that is not enough.  No choice changes a bit.
 *  The input's arrays are not read: any address that is aligned for its elements says that there will be one.
 *  @return MOE_OK, INVALID_ARGUMENT (also a limit that is too small: the message says what would do), OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_model_plan_memory(const moe_model *model, const moe_model_input *input, int32_t taped,
                                                   moe_model_plan *plan);

/** @param hidden [out, nullable] [B,S,H] after the last layer and the final norm
 *  @param logits [out, nullable] [B,S,V]; of a model with a vocabulary
 *  @param tape   [out, nullable]
 *  @param report [out, nullable]
 *  @return as moe_layer_forward. */
MOE_API MOE_CHECK moe_status moe_model_forward(const moe_model *model, const moe_model_input *input, float *hidden,
                                               float *logits, moe_model_tape *tape, moe_model_report *report);

/** Gradients of  d_objective * objective + <dhidden, hidden>, added to the parameters' (but frozen ones').
 *  @param input   [in] as in forward; hidden is the same array, since the tape has no copy of it
 *  @param dhidden [in, nullable] [B,S,H]
 *  @param dinput  [out, nullable] [B,S,H] of a model without a vocabulary, overwritten
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BAD_STATE (empty or another model's tape, inference_only, weights that have been
 *          prepared in few bits since forward, or no longer are; no memory for some gradient), NOT_FINITE (the loss of a token: parameters
 *          are no longer those of forward), CANCELLED; gradients are then partly added: zero them. */
MOE_API MOE_CHECK moe_status moe_model_backward(moe_model *model, const moe_model_tape *tape,
                                                const moe_model_input *input, double d_objective, const float *dhidden,
                                                float *dinput);

/** One training step: the bits of moe_model_zero_grad, moe_model_backward and moe_optimizer_step with gradients times clip_factor.
 *  Each parameter is stepped once nothing of this backward reads it any more, the last layer's first.  A model with
 *  MOE_UNALLOCATED_EXPERT_GRADIENTS has the gradient of one expert at a time, as moe_layer_backward with options.optimizer has,
 *  whose notes hold here; gradients of everything else are kept until the next call.
 *  The call wants the model and the optimiser for itself.  The cancel callback is asked until the last layer's backward begins, and
 *  no more after that: with any error no parameter has changed and no step was counted.  Afterwards the tape is of no more use.
 *  @param model       [in] not over ranks, and without weights in few bits
 *  @param tape        [in] of the last forward
 *  @param input       [in] as in moe_model_backward, as are d_objective, dhidden and dinput
 *  @param optimizer   [in] created for exactly the parameters that have a gradient and are not frozen, in the order of moe_model_parameter
 *  @param clip_factor [in] above 0: what gradients are multiplied by; 0 = 1
 *  @return as moe_model_backward; INVALID_ARGUMENT (also an optimizer for other tensors), BAD_STATE (also weights in few bits, or an
 *          optimizer whose state has no memory). */
MOE_API MOE_CHECK moe_status moe_model_backward_step(moe_model *model, const moe_model_tape *tape,
                                                     const moe_model_input *input, double d_objective,
                                                     const float *dhidden, float *dinput, moe_optimizer *optimizer,
                                                     float clip_factor);

/* ------------------------------------------------------------------------------------------------------------
 * Calibration: few bits chosen by text
 * ---------------------------------------------------------------------------------------------------------- */

/** What a model's matrices read over some text: of each that moe_model_prepare packs, and of each expert's, the squares of every input,
 *  summed over the tokens that reached it; and, as far as there is memory for them, the products of all inputs with each other: of the
 *  hidden state that gate and up of a layer's experts read, once for all of them.
 *
 *  Few bits chosen by it keep what the matrices put out rather than their weights.  Where there are products, blocks of weights make up for
 *  the errors of the blocks before them in the row [GPTQ 2022, arXiv:2210.17323]: with S the sums of x x^T, l a hundredth of the mean of
 *  their diagonal times (1 + n_inputs / n_tokens), R upper triangular, R R^T = S + l I, and d = w - q, a row's error is |d R|^2, and in
 *  place of w_k is packed  w_k - d_k,  d_k = - (sum over i < k of d_i R_ik) / R_kk.  With each scale weights are clipped at 13 shares of their
 *  largest magnitude, 1, 31/32 ... 20/32, and the share is taken that makes
 *
 *      sum over j of m_j (w_j - q_j)^2           m_j: the mean of x_j^2, and 1/100 of the mean of all m
 *
 *  least.  (Scales of nvfp4, q4_k and q6_k, which have one above them in common, choose for themselves where that is better for
 *  the row, or block, than one share for all.)  An expert that fewer than 32 tokens reached is packed by the squares of what all experts of its
 *  group read, without products of its own; where no token came, m is 1.  One text serves every form, and every model with parameters of
 *  the same names and shapes.  It keeps its context alive, not its model. */
typedef struct moe_calibration moe_calibration;

/** Create an empty calibration for a model, whose parameters need no memory; free it with moe_calibration_free.  It takes 8 bytes for each
 *  input of each expert's matrices, gate and up being one.
 *  @param model         [in]
 *  @param product_bytes [in] for products of inputs at most, 4 n_inputs^2 of a matrix, and of an expert's down; matrices with the fewest
 *                       bytes have them first, those of all layers alike.  0: none
 *  @param out           [out]
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_calibration_create(const moe_model *model, size_t product_bytes, moe_calibration **out);
/** Free a calibration; NULL is a no-op. */
MOE_API void moe_calibration_free(moe_calibration *calibration);

/** Run tokens through the model and add what its matrices read; padding is left out.  Sums are taken in the order of tokens
 *  and of calls, squares in double, products in float32: the same bits for all n_threads, memory limits and chunks.  Calls on one calibration take turns.
 *  @param model       [in] as forward takes it; its weights are not packed in few bits.  Experts may be offloaded
 *  @param input       [in] as of moe_model_forward; targets are checked and change nothing, and training is 0
 *  @param calibration [in, out] of a model with such parameters
 *  @return as moe_model_forward; after an error the calibration is empty. */
MOE_API MOE_CHECK moe_status moe_model_calibrate(const moe_model *model, const moe_model_input *input,
                                                 moe_calibration *calibration);

/** moe_model_prepare in a form of few bits that are chosen by a calibration.
 *  @param model       [in, out] with all its weights in memory
 *  @param prepared    [in] a moe_prepared, of few bits
 *  @param calibration [in]
 *  @return as moe_model_prepare; INVALID_ARGUMENT also of another model's calibration, BAD_STATE also of offloaded experts. */
MOE_API MOE_CHECK moe_status moe_model_prepare_calibrated(moe_model *model, int32_t prepared, const moe_calibration *calibration);

/** What is known of one matrix. */
typedef struct moe_calibrated {
  size_t struct_size;
  const char *name;         /**< of the parameter; lives as long as the calibration */
  int64_t n_experts;        /**< in the parameter, 1 of a matrix that all tokens are multiplied by; 0 of a parameter that is not packed, and
                                 all that follows */
  int64_t n_inputs;         /**< of a row of weights */
  int64_t n_tokens;         /**< that reached the expert */
  const double *square_sums; /**< n_inputs sums of x_j^2 over these tokens; they live as long as the calibration */
  const float *products;    /**< n_inputs^2 sums of x_i x_j; NULL where they had no memory.  So long they live too */
  int64_t n_product_tokens; /**< over which these are; of gate and up all that came into the layer */
  int32_t is_few;           /**< 1 = fewer than 32 tokens: it is packed by what all experts of its group read */
  int32_t reserved;         /**< 0 */
} moe_calibrated;

#define MOE_CALIBRATED_INIT { sizeof(moe_calibrated), NULL, 0, 0, 0, NULL, NULL, 0, 0, 0 }

/** Fill `calibrated` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_calibrated_init(moe_calibrated *calibrated, size_t struct_size);

/** What is known of a parameter, for one expert.
 *  @param calibration [in]
 *  @param parameter   [in] its number in the model, see moe_model_parameter
 *  @param expert      [in] from 0 to n_experts - 1, counted within the parameter; 0 where there are none
 *  @param calibrated  [in, out] struct_size in, the rest out
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_calibration_read(const moe_calibration *calibration, int64_t parameter, int64_t expert,
                                                  moe_calibrated *calibrated);

/* ------------------------------------------------------------------------------------------------------------
 * Generation
 * ---------------------------------------------------------------------------------------------------------- */

/** Keys and values of the tokens so far, of B sequences that grow together.  With latent_rank it holds the latent_rank +
 *  rotary_size numbers that they come from.  Padding takes room, but has no keys. */
typedef struct moe_cache moe_cache;
/** @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_cache_create(const moe_model *model, int64_t n_sequences, int64_t max_length,
                                              moe_cache **out);
MOE_API void moe_cache_free(moe_cache *cache);
/** Forget all but the first `length` tokens.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_cache_truncate(moe_cache *cache, int64_t length);

/** @param n_sequences [out, nullable]  B
 *  @param max_length  [out, nullable]  tokens of each that there is room for
 *  @param length      [out, nullable]  tokens of each that have been read, padding among them
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_cache_size(const moe_cache *cache, int64_t *n_sequences, int64_t *max_length,
                                            int64_t *length);

/** Writes what has been read into one safetensors file, whole or not at all; a file of that name is replaced.  Its tensors:
 *    sizes [2] I64: length and max_length      valid [B, length] U8: which tokens are real
 *    layers.n.keys, layers.n.values: the real tokens' rows, sequence by sequence, float32, or bfloat16 where attention
 *      multiplies it
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, IO. */
MOE_API MOE_CHECK moe_status moe_cache_save(const moe_cache *cache, const char *path);

/** A cache as it was saved: what is read next has the bits that it would have had.  The weights have to be those of the model
 *  that filled it, which nothing checks; layers and widths are checked.
 *  @param max_length 0 = as saved; at least the length saved.  Where a rotary table has a long form, max_length chooses between the
 *                    two, as in moe_cache_create: leave it 0 there, or on the same side
 *  @param out        [out] free it with moe_cache_free
 *  @return MOE_OK, INVALID_ARGUMENT (no such file, another model's: the message names the tensor), OUT_OF_MEMORY, IO. */
MOE_API MOE_CHECK moe_status moe_cache_load(const moe_model *model, const char *path, int64_t max_length,
                                            moe_cache **out);

/** Reads n more tokens of each sequence of a causal model with a vocabulary; evaluation.
 *  @param tokens [in]  [B,n]
 *  @param logits [out] [B,V] of the last token: those of moe_model_forward without a tape over the whole sequence, bit for bit
 *                with MOE_MATMUL_NATIVE (experts with a capacity, and those that choose their tokens, apart)
 *  @return MOE_OK, INVALID_ARGUMENT (the cache is full), BAD_STATE (another model's cache; one of bfloat16, made
 *          before weights were prepared so that attention multiplies float32), OUT_OF_MEMORY, NOT_FINITE, CANCELLED; on an
 *          error the cache is as it was. */
MOE_API MOE_CHECK moe_status moe_model_read(const moe_model *model, moe_cache *cache, const int32_t *tokens, int64_t n,
                                            float *logits);

/** What moe_model_read_with is told beside the tokens. */
typedef struct moe_read_options {
  size_t struct_size;
  const uint8_t *valid_mask; /**< [B,n], nullable: 0 = padding, as in moe_model_input: in front of a prompt, behind one, or in
                                  every step of a sequence that has ended */
  const int64_t *positions;  /**< [B,n], nullable, as in moe_model_input; NULL: the number of real tokens before, those in the
                                  cache among them */
} moe_read_options;

#define MOE_READ_OPTIONS_INIT { sizeof(moe_read_options), NULL, NULL }

/** Fill `options` with the defaults (NULL).  NULL is ignored. */
MOE_API void moe_read_options_init(moe_read_options *options, size_t struct_size);

/** moe_model_read for sequences of different lengths.
 *  @param options [in, nullable]
 *  @param logits  [out] [B,V] of each sequence's last real token among these, as if it had been read alone; 0 where there is none
 *  @return as moe_model_read. */
MOE_API MOE_CHECK moe_status moe_model_read_with(const moe_model *model, moe_cache *cache, const int32_t *tokens,
                                                 int64_t n, const moe_read_options *options, float *logits);

/** How the next token is drawn: repetition_penalty first, then temperature, top_k, top_p and min_p, each of what the one before
 *  has left. */
typedef struct moe_sampling {
  size_t struct_size;
  double temperature; /**< finite, at least 0; 0: greedy, the largest logit, the lowest index among equals */
  int64_t top_k;      /**< at least 0: of the k largest logits; 0, and V or more = all */
  double top_p;       /**< [0, 1]: of the fewest, most likely tokens whose probabilities reach p, at least one
                           [Top-p 2019]; 1 = all, 0 = the most likely alone */
  uint64_t seed;      /**< the random number is Philox's for (seed, draw) */
  double min_p;       /**< [0, 1]: of the tokens at least min_p times as likely as the most likely one [Min-p 2024]; 0 = all */
  double repetition_penalty; /**< finite, at least 0: logits of the tokens in history, of each once, are divided by it where they
                                  are positive, and multiplied with it where they are negative, also for greedy [CTRL 2019];
                                  1, and 0, change none */
  const int32_t *history; /**< [n_history], nullable: the sequence so far, or what of it is penalised */
  int64_t n_history;  /**< 0 to 2^31 - 1 */
} moe_sampling;

#define MOE_SAMPLING_INIT { sizeof(moe_sampling), 0.0, 0, 1.0, 0, 0.0, 0.0, NULL, 0 }

/** Fill `sampling` as MOE_SAMPLING_INIT does.  NULL is ignored. */
MOE_API void moe_sampling_init(moe_sampling *sampling, size_t struct_size);

/** @param logits [in]  [V]
 *  @param draw   [in]  number of the token, so that every draw has a random number of its own
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, NOT_FINITE. */
MOE_API MOE_CHECK moe_status moe_sample(moe_context *context, const float *logits, int64_t vocabulary_size,
                                        const moe_sampling *sampling, uint64_t draw, int32_t *token);

/** What moe_generate does after a token that on_token has been told. */
typedef enum moe_next {
  MOE_NEXT_GO_ON = 0,
  MOE_NEXT_END_SEQUENCE = 1, /**< the sequence has ended with this token */
  MOE_NEXT_END_ALL = 2       /**< all have, those included that would get a token in this step; as every other number */
} moe_next;

/** How sequences go on from their prompts. */
typedef struct moe_generation {
  size_t struct_size;
  int64_t max_new_tokens; /**< N, 1 to 2^31 - 1: of each sequence at most */
  const int32_t *eos;     /**< [n_eos], nullable: tokens that end a sequence, as its last */
  int64_t n_eos;          /**< 0 to 2^31 - 1 */
  const moe_sampling *sampling; /**< nullable: of all sequences; NULL = greedy.  The history that is penalised is a sequence's prompt and
                                     what it has got; sampling's own stands in front of it in all sequences */
  const uint64_t *seeds;  /**< [B], nullable: of each sequence; NULL: sequence b has sampling's seed + b, modulo 2^64 */
  int64_t chunk_tokens;   /**< 0 to 2^31 - 1: tokens of the prompts read at once at most, of all sequences together, but one of
                               each; 0 = 2048, fewer where the limit asks for it */
  size_t memory_limit;    /**< bytes of scratch of each reading, as in moe_model_input; 0 = the context's */
  moe_cache *cache;       /**< nullable: read into this, behind what it holds.  Afterwards it has the prompts and the tokens that they
                               got, but for each sequence's last, which has not been read; on an error it is as it was */
  int32_t (*on_token)(void *user, int64_t sequence, int64_t number, int32_t token, const float *logits); /**< nullable: is told each token as
                               soon as it is drawn, with its number from 0 on and the logits [V] it was drawn from, before any
                               penalty, which are the call's; answers a moe_next.  Within the calling thread, where it must touch
                               neither model nor cache */
  void *user;             /**< goes to on_token */
} moe_generation;

#define MOE_GENERATION_INIT { sizeof(moe_generation), 0, NULL, 0, NULL, NULL, 0, 0, NULL, NULL, NULL }

/** Fill `options` with the defaults (0).  max_new_tokens has to be set.  NULL is ignored. */
MOE_API void moe_generation_init(moe_generation *options, size_t struct_size);

/** Writes on from B prompts of any lengths.  Each sequence gets the tokens that it gets alone: their logits are
 *  moe_model_read's, bit for bit (in a cache for as many tokens, where a rotary table has a long form), and token number i of it is
 *  draw i of its seed.  A sequence that has ended is padding.
 *  Time is one reading for each step.
 *  @param prompts [in]  [offsets[B]] tokens of all prompts
 *  @param offsets [in]  [B + 1] sequence b's are prompts[offsets[b]] to prompts[offsets[b + 1] - 1], one at least; offsets[0] = 0
 *  @param tokens  [out] [B,N] and -1 behind a sequence's last
 *  @param counts  [out] [B] how many each has got
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (as moe_model_read), OUT_OF_MEMORY, NOT_FINITE (naming the sequence),
 *          CANCELLED; on an error tokens and counts have what had been drawn. */
MOE_API MOE_CHECK moe_status moe_generate(const moe_model *model, const moe_generation *options, const int32_t *prompts,
                                          const int64_t *offsets, int64_t n_sequences, int32_t *tokens, int64_t *counts);

#ifdef __cplusplus
}
#endif
#endif /* MOE_MODEL_H */
