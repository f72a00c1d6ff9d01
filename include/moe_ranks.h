/* moe_ranks.h: a layer, or a model, whose experts are spread over several processes, with the bits of one.
 *
 * Every rank of a moe_communicator makes the layer with the same configuration, and then every call of it with tokens of its
 * own.  Experts are owned in contiguous blocks, one owner each; the router and all else are on every rank.
 *
 *     moe_communicator communicator;                            of rank r of R
 *     moe_layer_create_distributed(context, &config, &communicator, NULL, &layer);
 *     moe_layer_forward(layer, x, n_tokens, NULL, y, tape, NULL);          x, y [T_r,H], T_r any number, also 0
 *     moe_layer_backward(layer, tape, x, dy, 1.0f, dx, NULL);
 *
 * The tokens of a call are those of all ranks, rank by rank: with T = T_0 + T_1 + ... rank r has the T_r after those of the
 * ranks before it.  y, dx, every gradient and every loss have the bits of one process with these T tokens, for any number of
 * ranks and any division of tokens and experts.  Gradients are sums over all tokens, for experts and all else alike: no factor
 * of the number of ranks is in them.
 *
 * Rules beside those of moe.h
 *   Together   all ranks make the same calls of the layer in the same order, those without tokens too.  Calls of one layer, and of
 *              all layers that share a communicator, are made one at a time.
 *   Errors     what one rank finds wrong ends the call on all ranks with the same status and the same text, which names the rank.
 *              The layer can be used again after it.
 *   Transport  MOE_ERROR_COMMUNICATION: an exchange failed.  That layer cannot exchange any more; free it, and make it again
 *              over another communicator.  Buffers that the transport may still write to are never freed.
 *   Reports    losses, counts, mean_probability and n_valid are of all tokens, the same on every rank; expert_indices,
 *              expert_weights and the arrays by sequence are of the rank's own.
 *   Options    training, step, sequence_length and global_counts are the same on all ranks, arrays [T,...] are of the rank's own
 *              tokens.  A sequence lies on one rank: give sequence_length where losses or capacity go by sequence.
 *
 * A model over ranks (moe_model_create_distributed) is a model whose MoE layers are such layers, and every rank calls it with
 * sequences of its own, n_sequences of them, any number, also 0.  These rules hold for moe_model_forward, moe_model_backward,
 * moe_model_clip_grad_norm and moe_model_read; what they say of a layer's tokens is then said of sequences and of targets.
 */
#ifndef MOE_RANKS_H
#define MOE_RANKS_H

#include "moe.h"
#include "moe_communicator.h"
#include "moe_experts.h"
#include "moe_model.h"
#include "moe_pretrained.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------
 * Layers over several ranks
 * ---------------------------------------------------------------------------------------------------------- */

/** Over which tokens experts choose, room is counted and loads are evened out. */
typedef enum moe_choice_scope {
  MOE_CHOICE_GLOBAL = 0, /**< those of all ranks; what cannot be so is refused when the layer is made */
  MOE_CHOICE_LOCAL = 1   /**< each rank's own, as if they were a call by themselves: results then depend on the division of tokens */
} moe_choice_scope;

/** How a layer's chosen experts are divided among ranks. */
typedef enum moe_strategy {
  MOE_STRATEGY_EXCLUSIVE = 0, /**< each expert has one owner, to which the rows of all ranks travel */
  MOE_STRATEGY_REPLICATED = 1, /**< data-parallel experts: every rank has all of them, and no row travels; gradients do, from rank to
                                  rank, so that the parameters stay the same everywhere */
  MOE_STRATEGY_SLICED = 2 /**< expert slicing (arXiv:2201.05596): every rank has a slice of the inner features of all experts, I / size
                               of them and one more on the first I % size ranks.  Every row goes to all ranks, and what their slices
                               come to is added up in the order of the ranks: bits depend on the number of ranks, and on nothing else */
} moe_strategy;

/** Where experts are, and how far choices look. */
typedef struct moe_placement {
  size_t struct_size;
  const int64_t *experts_per_rank; /**< [size], nullable, copied: how many experts each rank owns, 0 or more, E in all; NULL = E / size
                                        each, and one more on the first E % size ranks; NULL unless
                                        strategy is EXCLUSIVE */
  int32_t choice_scope;            /**< a moe_choice_scope */
  int32_t strategy;                /**< a moe_strategy */
  const int32_t *hot_indices;      /**< [hot_experts], nullable, copied: these experts are hot in every call, each of 0 to E - 1 and
                                        named once; NULL = those whose weights and gradients are fewer bytes than the rows that then stay */
  int32_t hot_experts;             /**< a number, 0 to E: of experts that may be hot at once; 0 unless strategy is EXCLUSIVE and all
                                        chosen experts are of one kind with matrices */
  int32_t reserved;                /**< 0 */
} moe_placement;

#define MOE_PLACEMENT_INIT { sizeof(moe_placement), NULL, 0, 0, NULL, 0, 0 }

/** Fill `placement` with the defaults (0: equal blocks, choices over all tokens).  NULL is ignored. */
MOE_API void moe_placement_init(moe_placement *placement, size_t struct_size);

/** Create one rank's part of a layer.  Its parameters are those of moe_layer_create with E_r in place of E in experts.X, E_r the
 *  experts of rank r, which begin with the values that the same experts of a whole layer have; all others, and with
 *  MOE_STRATEGY_REPLICATED all, are whole, the same on every rank, and stay so.  A group of moe_layer_config.expert_groups of which a rank owns no expert has no parameters there.
 *  Nothing is exchanged: that ranks made different layers is found by their first call.
 *
 *  The weights of a hot expert (shadowed experts: He et al., FasterMoE, PPoPP 2022) go from its owner to all ranks in every forward
 *  and backward, and each rank computes its own tokens' rows of it, which then do not travel; its gradient goes from rank to rank,
 *  and ends at the owner.  Bits are the same.  Where experts are prepared (moe_layer_prepare) none is hot.
 *
 *  With MOE_CHOICE_GLOBAL these are refused, since they compare all tokens: MOE_ROUTER_EXPERT_CHOICE, MOE_ROUTER_SINKHORN, capacity
 *  with MOE_DROP_PROBABILITY, BATCH_PRIORITIZED or RANDOM or with MOE_OVERFLOW_NEXT_BEST (unless capacity_per_sequence is 1), and
 *  MOE_DYNAMIC_K_COMPLEXITY.  router_batch_norm is refused in any case, and so are constant experts with MOE_STRATEGY_REPLICATED.  With
 *  moe_unallocated memory is bound: such a layer is not offloaded, and backward takes no optimiser.  MOE_STRATEGY_SLICED wants experts of
 *  the kinds MLP and GATED without dropout, and I of at least size; experts.down.bias is on rank 0 alone, and moe_training_save refuses
 *  such a layer.
 *  @param context      [in] is kept alive by the layer.
 *  @param config       [in] of the whole layer, the same on all ranks
 *  @param communicator [in] copied; user and the functions have to live as long as the layer.  Its functions are called in the
 *                      thread that calls the layer.
 *  @param placement    [in, nullable] the same on all ranks; NULL = the defaults
 *  @param out          [out] free it with moe_layer_free.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_layer_create_distributed(moe_context *context, const moe_layer_config *config,
                                                          const moe_communicator *communicator,
                                                          const moe_placement *placement, moe_layer **out);

/** Scale all gradients of a layer by min(1, max_norm / (norm + 1e-6)), norm = the 2-norm over all of them together: the bits of
 *  moe_clip_grad_norm of the layer's parameters, of a layer over ranks those of the whole layer's.  Then any optimiser steps each
 *  rank's parameters.
 *  @param layer    [in]
 *  @param max_norm [in] > 0, the same on all ranks; INFINITY only measures
 *  @param norm     [out, nullable] the norm before scaling
 *  Wants the layer for itself.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BAD_STATE (inference_only, or no memory for a gradient), NOT_FINITE (some
 *          gradient is not; the message names the tensor), COMMUNICATION; after an error nothing is scaled. */
MOE_API MOE_CHECK moe_status moe_layer_clip_grad_norm(moe_layer *layer, double max_norm, double *norm);

/* ------------------------------------------------------------------------------------------------------------
 * Experts by call over several ranks
 * ---------------------------------------------------------------------------------------------------------- */

/** Say which experts are where, for calls of moe_experts.h that several ranks make together: give it as moe_experts_call.ranks.
 *
 *      moe_experts_ranks_create(context, &communicator, n_experts, NULL, &ranks);
 *      config.n_experts = those of this rank;                 its weights [E_r,...]
 *      call.ranks = ranks;                                    n_tokens T_r, any number, also 0; expert_indices 0 to E - 1
 *      moe_experts_plan(context, &config, &call, NULL, 1, &plan);
 *      moe_experts_forward(context, &config, &call, x, y, saved, plan.tape_bytes, NULL);
 *      moe_experts_backward(context, &config, &call, saved, plan.tape_bytes, x, dy, &gradients);
 *
 *  y, dx, d_expert_weights and every gradient of weights have the bits of one process with the tokens of rank 0, then those of rank 1,
 *  and so on, and all experts.  A gradient of weights is complete on the rank that owns them, and is exchanged with nobody.
 *  All ranks make the same calls, with the same config but for n_experts and the weights, the same top_k, and `saved` on all or on none;
 *  in backward dx, d_expert_weights and gradients of weights may be wanted on some ranks alone.  The rules at the top of this file hold:
 *  what one rank finds wrong is the same error on all.  What rows take on their way is kept for the next call.
 *  @param context          [in] is kept alive; calls may be made in another one
 *  @param communicator     [in] as in moe_layer_create_distributed
 *  @param n_experts        [in] E, of all ranks together, 1 to 2^31 - 1
 *  @param experts_per_rank [in, nullable] [size], copied: how many experts each rank owns, 0 or more, E in all; NULL = E / size
 *                          each, and one more on the first E % size ranks
 *  @param out              [out] free it with moe_experts_ranks_free.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_experts_ranks_create(moe_context *context, const moe_communicator *communicator,
                                                      int64_t n_experts, const int64_t *experts_per_rank,
                                                      moe_experts_ranks **out);

/** Free it, when no call uses it any more; NULL is a no-op. */
MOE_API void moe_experts_ranks_free(moe_experts_ranks *ranks);

/* ------------------------------------------------------------------------------------------------------------
 * Models over several ranks
 * ---------------------------------------------------------------------------------------------------------- */

/** Create one rank's part of a model: its MoE layers are those of moe_layer_create_distributed, all else is whole on every rank and
 *  stays the same there.  The sequences of a call are those of all ranks, rank by rank, and so are their targets: loss, objective,
 *  reports, dropout and gradients have the bits of one process with all of them, and backward's d_objective is that of one process.
 *  hidden, logits, token_losses and dinput are of the rank's own sequences.
 *
 *  sequence_length, step, training, label_smoothing, whether there are targets and a tape, d_objective and what is frozen are the same
 *  on all ranks.  A memory limit or chunk_tokens of any rank divides the call of all, by the smallest chunk that one asks for: chunks are
 *  then of the tokens of all ranks, and MoE layers compute again what backward wants.  Under a limit moe_model_plan_memory counts in
 *  total_bytes what other ranks' rows take at most, where every rank has as many sequences as this one; without one it leaves that out.
 *  moe_model_read and moe_generate want the same calls on all ranks, which write the same; sequences may differ.
 *  So do moe_pretrained_load and moe_model_save: every rank reads the folder, of experts its own; rank 0 alone writes one, the bytes of
 *  one process, and gets experts' tensors from their owners in pieces of 1 MiB.  Its progress is told there alone.  Every rank owns an expert
 *  of each layer then.  Packed weights are not written, and calibrations refuse such a model.
 *
 *  A gradient of what every rank has whole is one chain over all tokens, which goes on from rank to rank: that part of the
 *  time does not become less with more ranks (docs/ranks.md).
 *  @param context      [in] is kept alive by the model
 *  @param config       [in] of the whole model, the same on all ranks; with moe
 *  @param communicator [in] as in moe_layer_create_distributed
 *  @param placement    [in, nullable] of every MoE layer; NULL = the defaults
 *  @param out          [out] free it with moe_model_free.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_model_create_distributed(moe_context *context, const moe_model_config *config,
                                                          const moe_communicator *communicator,
                                                          const moe_placement *placement, moe_model **out);

/** moe_model_load over ranks: every rank opens the folder, or GGUF file, as it finds it, and reads its own experts and all that is whole.
 *  What one rank finds wrong with its copy, a missing file too, is the error of all.  Weights that are whole are compared at the end.
 *  @param context      [in] as of moe_model_create_distributed
 *  @param folder       [in] its path on this rank
 *  @param options      [in, nullable] as of moe_model_load, the same on all ranks but for progress, which counts what all ranks read.
 *                      resident_limit below the parameters' bytes, calibration and unallocated are refused
 *  @param communicator [in] as in moe_layer_create_distributed
 *  @param placement    [in, nullable] as of moe_model_create_distributed; every rank owns an expert of each layer
 *  @param out          [out] free it with moe_model_free.
 *  @return as moe_model_load and moe_model_create_distributed, COMMUNICATION; the same on all ranks. */
MOE_API MOE_CHECK moe_status moe_model_load_distributed(moe_context *context, const char *folder,
                                                        const moe_pretrained_options *options,
                                                        const moe_communicator *communicator,
                                                        const moe_placement *placement, moe_model **out);

/** moe_layer_clip_grad_norm of a model: the bits of moe_clip_grad_norm of all that is trained of the whole model.
 *  @param model    [in]
 *  @param max_norm [in] > 0, the same on all ranks; INFINITY only measures
 *  @param norm     [out, nullable] the norm before scaling
 *  Wants the model for itself.
 *  @return as moe_layer_clip_grad_norm. */
MOE_API MOE_CHECK moe_status moe_model_clip_grad_norm(moe_model *model, double max_norm, double *norm);

/* ------------------------------------------------------------------------------------------------------------
 * Training states of several ranks
 * ---------------------------------------------------------------------------------------------------------- */

/** moe_training_save where experts are spread over ranks: the file has the bytes that one process writes, so that any number of
 *  ranks reads it, and one process too.  Rank 0 writes it; parts of experts come from their owners in pieces of 1 MiB, so that
 *  no rank ever has all of one.  Every rank owns one expert of each group at least.
 *  @param context      [in]
 *  @param training     [in] as of moe_training_save, of this rank: layers may be spread over ranks, all else is whole
 *  @param communicator [in] of the ranks that save together; it may be that of the layers.  Used in this call alone
 *  @param spread       [in, nullable] for each tensor of the optimisers, those of the first one first: 1 = it belongs to experts that are
 *                      spread, 0 = it is whole; the same on all ranks.  NULL: all are whole
 *  @param path         [in] of rank 0; the others do not touch it
 *  @return as moe_training_save, COMMUNICATION; the same on all ranks. */
MOE_API MOE_CHECK moe_status moe_training_save_distributed(moe_context *context, const moe_training *training,
                                                           const moe_communicator *communicator, const uint8_t *spread,
                                                           const char *path);

/** moe_training_load of a file that one process or any number of ranks has saved: every rank reads it, and of experts its own.
 *  @param context      [in]
 *  @param training     [in, out] step is written
 *  @param communicator [in] as of moe_training_save_distributed
 *  @param spread       [in, nullable] likewise
 *  @param path         [in] of the file as this rank finds it
 *  @return as moe_training_load, COMMUNICATION; the same on all ranks.  Unless a disk fails on the way, nothing has changed on any. */
MOE_API MOE_CHECK moe_status moe_training_load_distributed(moe_context *context, moe_training *training,
                                                           const moe_communicator *communicator, const uint8_t *spread,
                                                           const char *path);

#ifdef __cplusplus
}
#endif

#endif
