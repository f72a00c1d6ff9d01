/* moe_experts.h: the experts alone, over the caller's routing and the caller's weights.
 *
 *     y[t] = sum over k of  w[t,k] * expert(i[t,k])(x[t])          x, y [T,H]   i, w [T,K]
 *
 * A layer of moe.h routes, and keeps its parameters.  These functions do neither: whose tokens go to which experts, and where
 * the weights lie, is said in every call, and nothing of it is kept.  They compute with the layer's own experts: the bits are
 * those of a layer with MOE_ROUTER_EXTERNAL, for every layout of the weights, n_threads and instruction set.
 *
 *     moe_expert_tensor weights[] = {                       gate and up fused in one array [E,2I,H]
 *         { MOE_EXPERT_PART_GATE, MOE_DTYPE_F32, gate_up, NULL, { 2 * I * H, H, 1 } },
 *         { MOE_EXPERT_PART_UP, MOE_DTYPE_F32, gate_up + I * H, NULL, { 2 * I * H, H, 1 } },
 *         { MOE_EXPERT_PART_DOWN, MOE_DTYPE_F32, down, NULL, { H * I, I, 1 } } };
 *     moe_experts_config config = MOE_EXPERTS_CONFIG_INIT;
 *     config.n_experts = E; config.hidden_size = H; config.intermediate_size = I;
 *     config.expert_kind = MOE_EXPERT_GATED; config.activation = MOE_ACTIVATION_SILU;
 *     config.weights = weights; config.n_weights = 3;
 *     moe_experts_call call = MOE_EXPERTS_CALL_INIT;
 *     call.n_tokens = T; call.top_k = K; call.expert_indices = i; call.expert_weights = w;
 *     moe_experts_forward(context, &config, &call, NULL, x, y, NULL, 0, NULL);
 *
 * examples/c/experts.c is a whole program, with a plan, saved bytes and a backward.
 *
 * The rules of moe.h hold.  Scratch comes from the context.  Every function is thread-safe with distinct outputs.
 */
#ifndef MOE_EXPERTS_H
#define MOE_EXPERTS_H

#include "moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------
 * Experts by call: given routing, given weights
 * ---------------------------------------------------------------------------------------------------------- */

/** What a tensor of experts is; the letters are those of moe_expert_kind. */
typedef enum moe_expert_part {
  MOE_EXPERT_PART_GATE = 0,      /**< W_gate, outputs I, inputs H; gated experts */
  MOE_EXPERT_PART_UP = 1,        /**< W_up, outputs I, inputs H; gated experts and MLPs */
  MOE_EXPERT_PART_DOWN = 2,      /**< W_down, outputs H, inputs I; W of linear experts */
  MOE_EXPERT_PART_GATE_BIAS = 3, /**< b_gate, outputs I */
  MOE_EXPERT_PART_UP_BIAS = 4,   /**< b_up, outputs I */
  MOE_EXPERT_PART_DOWN_BIAS = 5, /**< b_down, outputs H; b of linear experts */
  MOE_EXPERT_PART_CONSTANT = 6   /**< the vectors of constant experts, outputs H */
} moe_expert_part;

/** One part of all experts where the caller has it: weights, or their gradients.  Element (e, o, i) lies at
 *      data + e * strides[0] + o * strides[1] + i * strides[2],    or at    experts[e] + o * strides[1] + i * strides[2],
 *  e an expert, o an output, i an input; biases and vectors have no inputs.  So [E,out,in] row after row, its transpose, a half of a
 *  fused array or every other column of one are all read and written where they lie. */
typedef struct moe_expert_tensor {
  int32_t part;       /**< a moe_expert_part */
  int32_t dtype;      /**< MOE_DTYPE_F32, BF16 or F16; GATE, UP and DOWN of one call have the same, gradients each their own */
  void *data;         /**< element (0, 0, 0), aligned to its element; NULL where `experts` is not */
  void **experts;     /**< nullable, [E]: where each expert's element (0, 0) is, in place of data and strides[0] */
  int64_t strides[3]; /**< elements from one expert, output and input to the next, at least 0.  Of gradients no two elements
                           are in one place. */
} moe_expert_tensor;

/** What the experts are, all of one kind and width, and where their weights lie. */
typedef struct moe_experts_config {
  size_t struct_size;
  int64_t n_experts;         /**< E, 0 to 2^31 - 1; of a call over ranks those of this rank, else 1 or more */
  int64_t hidden_size;       /**< H, 1 to 2^31 - 1 */
  int64_t intermediate_size; /**< I, 1 to 2^31 - 1; 0 for LINEAR (or H), IDENTITY, ZERO and CONSTANT */
  int32_t expert_kind;       /**< a moe_expert_kind */
  int32_t activation;        /**< a moe_activation; 0 for experts without inner features */
  float glu_limit;           /**< L > 0: clamps of a gated expert, see moe_layer_config; 0 = none */
  float glu_alpha;           /**< >= 0: what a gated expert's SILU multiplies its argument by; 0 = 1 */
  float glu_offset;          /**< >= 0: added to what a gate multiplies */
  int32_t weight_on_input;   /**< 1 = the routing weights multiply what experts read: expert(w x) in place of w expert(x) */
  int32_t io_dtype;          /**< MOE_DTYPE_F32 or BF16: of x, y, rows, dy and dx, as in moe_layer_config */
  int32_t reserved;          /**< 0 */
  /** [n_weights] each part that the experts have, once: GATE, UP and DOWN of gated experts, UP and DOWN of MLPs, DOWN of linear ones,
   *  CONSTANT of constant ones.  Biases are optional, each by itself.  NULL where n_weights = 0. */
  const moe_expert_tensor *weights;
  int64_t n_weights; /**< 0 to 7 */
} moe_experts_config;

#define MOE_EXPERTS_CONFIG_INIT { sizeof(moe_experts_config), 0, 0, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0, 0, 0, NULL, 0 }

/** Fill `config` with 0 (MLP experts with GELU, float32, no weights yet).  NULL is ignored. */
MOE_API void moe_experts_config_init(moe_experts_config *config, size_t struct_size);

/** The experts' weights packed once for many calls: see moe_experts_prepare. */
typedef struct moe_experts_prepared moe_experts_prepared;

/** The ranks that the experts of calls are spread over: see moe_experts_ranks_create of moe_ranks.h. */
typedef struct moe_experts_ranks moe_experts_ranks;

/** One call's tokens and their experts. */
typedef struct moe_experts_call {
  size_t struct_size;
  int64_t n_tokens;           /**< T, at least 0, T * K < 2^31 */
  int64_t top_k;              /**< K, 1 to 2^31 - 1, in each call another if you like; more than E is allowed */
  const void *expert_indices; /**< [T,K]: 0 to E - 1; any other number is none: nothing is computed, and nothing added */
  const void *expert_weights; /**< [T,K]: taken as they are, NaN and infinity too */
  int32_t index_dtype;        /**< of expert_indices: MOE_DTYPE_I32 or I64 */
  int32_t routing_dtype;      /**< of expert_weights and their gradient: MOE_DTYPE_F32, BF16 or F16 */
  /** Nullable: packed weights that are used in place of GATE, UP and DOWN.  Of those that are given all the same, 16 values of each
   *  matrix in use are compared with what was packed.
   *  With a form of few bits (INT8 and on) these are frozen weights to train over: what is saved, and the gradients, are those of
   *  experts whose weights are the packed values, in float32; tokens stay float32 too where something is saved, with _A8 and _A16 as well.
   *  Gradients of GATE, UP and DOWN there are none then.  Other forms that change the values are for forward alone. */
  const moe_experts_prepared *prepared;
  /** Nullable: the experts are spread over these ranks, which make the call together, each with tokens of its own.  config and the
   *  gradients are then of this rank's experts, and expert_indices are numbers among those of all ranks. */
  moe_experts_ranks *ranks;
} moe_experts_call;

#define MOE_EXPERTS_CALL_INIT { sizeof(moe_experts_call), 0, 0, NULL, NULL, MOE_DTYPE_I32, 0, NULL, NULL }

/** Fill `call` as MOE_EXPERTS_CALL_INIT does: int32_t indices, float32 weights.  NULL is ignored. */
MOE_API void moe_experts_call_init(moe_experts_call *call, size_t struct_size);

/** Where a backward writes: what is NULL or not listed is not computed. */
typedef struct moe_experts_gradients {
  size_t struct_size;
  void *dx;               /**< nullable, [T,H] of config.io_dtype, overwritten */
  void *d_expert_weights; /**< nullable, [T,K] of call.routing_dtype, overwritten; 0 where there is no expert */
  /** [n_tensors] where gradients of weights are written, in strides and a dtype of their own: of parts that config.weights has,
   *  each at most once.  Sums over tokens are float32, and are rounded once.  NULL where n_tensors = 0. */
  const moe_expert_tensor *tensors;
  int64_t n_tensors; /**< 0 to 7 */
  int32_t overwrite; /**< 1 = tensors are overwritten, with 0 for experts without a token; 0 = added to what is there */
  int32_t reserved;  /**< 0 */
} moe_experts_gradients;

#define MOE_EXPERTS_GRADIENTS_INIT { sizeof(moe_experts_gradients), NULL, NULL, NULL, 0, 0, 0 }

/** Fill `gradients` with 0: none is wanted.  NULL is ignored. */
MOE_API void moe_experts_gradients_init(moe_experts_gradients *gradients, size_t struct_size);

/** What a forward with these arguments, and the backward after it, take.  Nothing is allocated or computed.
 *  @param context     [in]
 *  @param config      [in] the weights' memory is not looked at
 *  @param call        [in] expert_indices may be NULL: then for T * K choices that all have an expert, the most there can be
 *  @param gradients   [in, nullable] as for the backward, its memory is not looked at; NULL where no gradient of weights is wanted
 *  @param saves       [in] 1 = forward saves for a backward; 0: backward computes again what forward would have saved
 *  @param plan        [in, out] struct_size in, the rest out: tape_bytes is what forward saves, to the byte; chunk_tokens is T
 *  Over ranks all of them plan together, with their expert_indices: what a rank saves and computes is of the tokens that come to its
 *  experts.  Where `saves` is 1 on any rank tape_bytes is above 0 on all, and all of them save.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY (more bytes than any address space has), COMMUNICATION. */
MOE_API MOE_CHECK moe_status moe_experts_plan(const moe_context *context, const moe_experts_config *config,
                                              const moe_experts_call *call, const moe_experts_gradients *gradients,
                                              int32_t saves, moe_plan *plan);

/** y[t] = sum over k of w[t,k] * expert(i[t,k])(x[t]), in the order of k.
 *  @param context    [in]
 *  @param config     [in]
 *  @param call       [in]
 *  @param x          [in]  [T,H] of config.io_dtype; may be NULL when T = 0
 *  @param y          [out] [T,H] of the same dtype; nullable where rows are wanted
 *  @param saved      [out, nullable] aligned to 8 bytes: for moe_experts_backward.  Plain bytes, the same on every run, that hold no
 *                    address and may be moved and copied
 *  @param saved_size [in]  at least moe_plan.tape_bytes; what lies beyond becomes 0, up to those of T * K choices that all have an expert
 *                    (over ranks it is left alone)
 *  @param rows       [out, nullable] [T,K,H] of io_dtype: expert(i[t,k])(x[t]) before it is weighted and summed up; 0 where there
 *                    is none
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BAD_STATE (call.prepared: of other experts, the weights have changed since, or
 *          BF16 in place of other weights where something is saved), CANCELLED, COMMUNICATION. */
MOE_API MOE_CHECK moe_status moe_experts_forward(moe_context *context, const moe_experts_config *config,
                                                 const moe_experts_call *call, const void *x, void *y, void *saved,
                                                 size_t saved_size, void *rows);

/** Gradients of <dy, y>: without any of weights their products are left out.
 *  @param context    [in]
 *  @param config     [in] as in forward; of weights that are prepared as F32 or BF16 the matrices have to be there
 *  @param call       [in] as in forward
 *  @param saved      [in, nullable] what forward saved, or a copy of it; NULL: it is computed again, to the same bits
 *  @param saved_size [in] as in forward
 *  @param x          [in] [T,H] as in forward
 *  @param dy         [in] [T,H] of io_dtype
 *  @param gradients  [in] where they are written
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BAD_STATE (saved by another call, or by other kernels; call.prepared as in
 *          forward), CANCELLED (gradients are then partly written), COMMUNICATION. */
MOE_API MOE_CHECK moe_status moe_experts_backward(moe_context *context, const moe_experts_config *config,
                                                  const moe_experts_call *call, const void *saved, size_t saved_size,
                                                  const void *x, const void *dy, const moe_experts_gradients *gradients);

/** Pack GATE, UP and DOWN once, as the matrix products want them: few tokens gain most, as with moe_layer_prepare.
 *  @param context   [in]
 *  @param config    [in] expert_kind, the sizes and the weights count; nothing of them is kept, and the weights may be freed
 *  @param form      [in] a moe_prepared but NONE, which says how many bytes a weight takes
 *  @param out       [out] any number of calls and threads may use it at the same time, also in other contexts; F32 and BF16 where
 *                   products are NATIVE;
 *                   free it with moe_experts_prepared_free
 *  It does not follow the weights: after they have changed, prepare again.
 *  @return MOE_OK, INVALID_ARGUMENT (F32 for bfloat16 weights, experts without matrices), OUT_OF_MEMORY, BAD_STATE (OPENBLAS and REFERENCE
 *          have no use for F32 and BF16), NOT_FINITE (in a form of few bits, as moe_layer_prepare). */
MOE_API MOE_CHECK moe_status moe_experts_prepare(moe_context *context, const moe_experts_config *config,
                                                 int32_t form, moe_experts_prepared **out);

/** Bytes that it holds.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_experts_prepared_size(const moe_experts_prepared *prepared, size_t *size);

/** Free packed weights; NULL is a no-op. */
MOE_API void moe_experts_prepared_free(moe_experts_prepared *prepared);

#ifdef __cplusplus
}
#endif
#endif /* MOE_EXPERTS_H */
