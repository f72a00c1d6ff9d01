/* moe.h: libmoe, a Mixture-of-Experts layer for the CPU.
 *
 * A layer of E experts reads T tokens of H features and writes T tokens of H features:
 *
 *     logits = x W_r^T + b_r                               x [T,H]   W_r [E,H]   logits [T,E]
 *     every token chooses its K best experts, with weights w [T,K]       (moe_router has the other ways)
 *     y[t]   = sum over k of  w[t,k] * expert(i[t,k])(x[t])                      y [T,H]
 *
 * The library computes it forwards and backwards and steps an optimiser.  A first program:
 *
 *     moe_context *context; moe_layer *layer; moe_tape *tape;
 *     moe_context_create(NULL, &context);
 *     moe_layer_config config = MOE_LAYER_CONFIG_INIT;
 *     config.hidden_size = 64; config.intermediate_size = 256; config.n_experts = 8; config.top_k = 2;
 *     moe_layer_create(context, &config, &layer);
 *     moe_tape_create(layer, &tape);
 *     moe_layer_forward(layer, x, n_tokens, NULL, y, tape, NULL);
 *     moe_layer_backward(layer, tape, x, dy, 1.0f, dx, NULL);
 *
 * This file is the whole contract: what is not here is not API.
 *
 * Rules that hold everywhere
 *   Arrays     are row-major without gaps, [rows, columns], aligned to their element.  They are float32, except where
 *              a moe_dtype makes them another.  What a call writes (outputs, reports, gradients, memory it was lent)
 *              shares no memory with anything else that it reads or writes, unless the comment says so: INVALID_ARGUMENT
 *              names both.  Inputs may overlap.
 *   Sizes      are int64_t counts of elements, or size_t counts of bytes.
 *   Status     every function that can fail returns a moe_status and nothing else.  On an error, handles and
 *              scalar outputs are as they were; the contents of output *arrays* are unspecified.
 *   Structs    start with struct_size.  Fill them with the MOE_..._INIT macro or the ..._init function.  A field
 *              that a later version appends has 0 as its default; a caller built against an older header keeps
 *              working, and a caller with fields this library does not know is refused if any is not 0.
 *   Ownership  what a ..._create function makes, the matching ..._free function frees; NULL is a no-op there.
 *              Handles may be freed in any order.  No pointer you pass is kept after the call returns, unless
 *              the comment says so.
 *   Threads    a layer's forward may run in several threads at once, each with its own tape and outputs (in training
 *              not with router_batch_norm or warmup_steps, which keep what they have seen).  Backward calls on one
 *              layer take turns.  Everything that changes a handle (bind, zero_grad, optimiser steps, free) wants that
 *              handle, and the tensors it changes, for itself.
 *   Stack      a call needs less than 80 KiB of its thread's stack, what your callbacks take beside.
 *   Bits       the same inputs give the same bits on every run and for every n_threads.
 *   Manners    the library never prints, exits or aborts, installs no handlers and reads no environment.
 *
 * ABI: within one SONAME (libmoe.so.0.2: until 1.0 it has the minor version too) functions are never removed or changed,
 * structs only grow at the end and enum values are never reused.
 *
 * References: [Shazeer 2017] arXiv:1701.06538 sparsely-gated MoE; [Switch 2021] arXiv:2101.03961 balance loss;
 * [ST-MoE 2022] arXiv:2202.08906 router z-loss; [GLU 2020] arXiv:2002.05202 SwiGLU and GeGLU;
 * [DeepSeek-V3 2024] arXiv:2412.19437 balance by a selection bias; [GShard 2020] arXiv:2006.16668;
 * [V-MoE 2021] arXiv:2106.05974; [Hash 2021] arXiv:2106.04426; [Expert choice 2022] arXiv:2202.09368;
 * [DeepSpeed-MoE 2022] arXiv:2201.05596; [MoE++ 2024] arXiv:2410.07348; [GELU 2016] arXiv:1606.08415;
 * [SGDR 2017] arXiv:1608.03983 cosine schedule; [1cycle 2017] arXiv:1708.07120; [ZClip 2025] arXiv:2504.02507;
 * [AdamW 2019] arXiv:1711.05101; [Muon 2024] Jordan et al., Muon: an optimizer for hidden layers in neural networks;
 * [Moonlight 2025] arXiv:2502.16982; [Philox 2011] Salmon et al., SC'11; [Zamirai 2020] arXiv:2010.06192 bfloat16 training;
 * [Wellons 2018] Prospecting for hash functions, nullprogram.com, lowbias32;
 * [ReMoE 2024] arXiv:2412.14711 ReLU routing; [Sparse upcycling 2023] arXiv:2212.05055; [MX 2023] OCP Microscaling Formats 1.0.
 */
#ifndef MOE_H
#define MOE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define MOE_API __attribute__((visibility("default")))
#define MOE_CHECK __attribute__((warn_unused_result))
#else
#define MOE_API
#define MOE_CHECK
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------
 * Version and errors
 * ---------------------------------------------------------------------------------------------------------- */

#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 2
#define MOE_VERSION_PATCH 0
#define MOE_VERSION_STRING "0.2.0"
/** MAJOR * 10000 + MINOR * 100 + PATCH of this header. */
#define MOE_VERSION (MOE_VERSION_MAJOR * 10000 + MOE_VERSION_MINOR * 100 + MOE_VERSION_PATCH)

/** What a call came to.  Values are never renumbered. */
typedef enum moe_status {
  MOE_OK = 0,
  MOE_ERROR_INVALID_ARGUMENT = 1, /**< NULL, a size, enum or option out of range, overlapping arrays */
  MOE_ERROR_OUT_OF_MEMORY = 2,    /**< the allocator gave nothing; nothing is leaked, the handles are unchanged */
  MOE_ERROR_BAD_STATE = 3,        /**< right arguments at the wrong time: backward before forward, another layer's tape */
  MOE_ERROR_NOT_FINITE = 4,       /**< NaN or +infinity where a number is needed, or too many -infinity; the message
                                       names the token */
  MOE_ERROR_CANCELLED = 5,        /**< the cancel callback said so */
  MOE_ERROR_IO = 6,               /**< the system refused a file; the message has its reason and the path */
  MOE_ERROR_COMMUNICATION = 7     /**< an exchange between ranks failed (moe_ranks.h); the message has the transport's words */
} moe_status;

/** Version of the loaded library, to compare with MOE_VERSION.  Never fails; any thread. */
MOE_API int32_t moe_version(void);

/** Version of the loaded library as text, to compare with MOE_VERSION_STRING.  Static memory; any thread. */
MOE_API const char *moe_version_string(void);

/** Name of a status ("MOE_ERROR_OUT_OF_MEMORY"; "unknown status" for other numbers).  Static memory; any thread. */
MOE_API const char *moe_status_name(moe_status status);

/** What went wrong in this thread's latest failed call, naming the argument and the values: "top_k = 9 exceeds
 *  n_experts = 8".  Empty before the first failure; success and ..._free do not clear it.  The memory belongs to
 *  the thread and is overwritten by its next failure. */
MOE_API const char *moe_last_error_message(void);

/* ------------------------------------------------------------------------------------------------------------
 * Context: threads, memory, callbacks
 * ---------------------------------------------------------------------------------------------------------- */

/** Owns the threads, the allocator and the callbacks of the layers and optimisers created in it. */
typedef struct moe_context moe_context;

/** Who computes the matrix products. */
typedef enum moe_matmul {
  MOE_MATMUL_AUTO = 0,      /**< NATIVE where the processor has fused multiply-add, otherwise OPENBLAS, or REFERENCE
                                 where OpenBLAS is not installed or cannot start */
  MOE_MATMUL_OPENBLAS = 1,  /**< OpenBLAS, which is loaded by the first context that asks for it (libopenblas.so.0, with
                                 one thread): same bits on every run and for every n_threads on one kind of processor */
  MOE_MATMUL_REFERENCE = 2, /**< plain loops, one chain of fused multiply-adds per output: slow; the bits of NATIVE */
  MOE_MATMUL_NATIVE = 3     /**< this library's kernels: the same bits on every processor with fused multiply-add, for
                                 every instruction set, every n_threads and however tokens are divided into calls;
                                 bfloat16 weights on AVX512-BF16 are the exception, see moe_layer_config */
} moe_matmul;

/** Instruction sets of x86-64.  More than the processor has means what it has; other processors have one set. */
typedef enum moe_instructions {
  MOE_INSTRUCTIONS_ALL = 0,  /**< what the processor has */
  MOE_INSTRUCTIONS_BASE = 1, /**< x86-64: no fused multiply-add, so OPENBLAS or REFERENCE computes the matrix products */
  MOE_INSTRUCTIONS_AVX2 = 2, /**< x86-64-v3: AVX2 and FMA */
  MOE_INSTRUCTIONS_AVX512 = 3, /**< x86-64-v4: AVX-512 */
  MOE_INSTRUCTIONS_AVX512_BF16 = 4 /**< the same with AVX512-BF16, which multiplies two bfloat16 at once; used for
                                        bfloat16 weights only */
} moe_instructions;

/** n_threads: as many as moe_processors says. */
#define MOE_THREADS_ALL (-1)

/** Processors that this process may use now: those of the affinity mask, but no more than the processor quotas of its
 *  cgroup and of the cgroups that one lies in (version 1 or 2), rounded up; at least 1.  Never fails; any thread. */
MOE_API int32_t moe_processors(void);

/** What kind of line a log gets. */
typedef enum moe_log_level { MOE_LOG_INFO = 0 } moe_log_level;

/** How a context is made. */
typedef struct moe_context_config {
  size_t struct_size;
  /** a number: threads a call may use, the caller's included; 0 = 1; MOE_THREADS_ALL; at most 1024.  More than 4 for each of
   *  moe_processors() are not started, nor those the system refuses: moe_context_threads, moe_build_info and the log
   *  say how many there are. */
  int32_t n_threads;
  int32_t matmul;    /**< a moe_matmul */
  /** Memory for everything the library keeps or borrows: returns `size` bytes aligned to `alignment` (a power of
   *  two, at most 64), or NULL.  Both or neither of alloc and dealloc.  Called from any thread that calls the library. */
  void *(*alloc)(void *user, size_t size, size_t alignment);
  void (*dealloc)(void *user, void *memory); /**< never called with NULL */
  void *alloc_user; /**< goes to alloc and dealloc */
  /** What the library decided, one line without a newline each.  NULL = silent. */
  void (*log)(void *user, int32_t level, const char *message);
  void *log_user; /**< goes to log */
  /** Asked in the calling thread, at the start of each stage of forward and backward and then every few milliseconds
   *  between pieces of work; a value other than 0 ends the call with MOE_ERROR_CANCELLED.  NULL = never.  It must not
   *  call the library on the same layer. */
  int32_t (*cancel)(void *user);
  void *cancel_user; /**< goes to cancel */
  int32_t instructions; /**< a moe_instructions: the most that may be used, for tests and comparisons */
  int32_t reserved;     /**< 0 */
  size_t memory_limit;  /**< bytes of scratch and tape that a call may take, see moe_layer_plan; 0 = no limit */
  /** Threads of the host in place of threads of the context's own: calls lane(argument) on up to n_threads threads at once,
   *  the calling one among them, and returns when all are back.  flags is 0.  It is called once for every stage of a call,
   *  from the calling thread; fewer threads do the same work.  A host that computes with OpenMP gives GOMP_parallel, which
   *  GNU's and LLVM's libraries have: their threads, which wait for the next region without letting go of their
   *  processors, then compute instead.  cancel must not fork.  NULL = the context starts its threads. */
  void (*host_threads)(void (*lane)(void *argument), void *argument, unsigned n_threads, unsigned flags);
} moe_context_config;

#define MOE_CONTEXT_CONFIG_INIT { sizeof(moe_context_config), 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, NULL }

/** Fill `config` with the defaults, as MOE_CONTEXT_CONFIG_INIT does.  NULL is ignored.
 *  For languages without C's macros; give sizeof of the struct as you compiled it. */
MOE_API void moe_context_config_init(moe_context_config *config, size_t struct_size);

/** Create a context.
 *  @param config  [in, nullable] NULL = the defaults: one thread, malloc, silent.
 *  @param out     [out] the new context; free it with moe_context_free.
 *  The callbacks and their user pointers are kept until the context and all that was created in it are freed.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY; where OpenBLAS is asked for: IO = there is none, BAD_STATE = it
 *          cannot start.  The message says what helps. */
MOE_API MOE_CHECK moe_status moe_context_create(const moe_context_config *config, moe_context **out);

/** Free a context.  Layers, tapes and optimisers created in it stay usable; its memory goes with the last of them. */
MOE_API void moe_context_free(moe_context *context);

/** Threads that a call in this context may use, the caller's included; 0 for NULL.  Any thread. */
MOE_API int32_t moe_context_threads(const moe_context *context);

/** Bytes that the handles created in a context hold now, and the most they have held at once: what was asked of alloc,
 *  without the 64 bytes that each block has in front, and without the context itself.  Scratch stays with the context
 *  between calls.
 *  @param current [out, nullable]   @param peak [out, nullable]
 *  @return MOE_OK, INVALID_ARGUMENT.  Any thread. */
MOE_API MOE_CHECK moe_status moe_context_memory(const moe_context *context, size_t *current, size_t *peak);

/** One line about the library: version and Swift mode; given a context also what it runs with: the kernels'
 *  instruction set, the matrix products (of OpenBLAS, which one was found) and the threads.
 *  @param context [in, nullable] NULL = the library alone.
 *  @return text that lives as long as the context (static for NULL).  Any thread. */
MOE_API const char *moe_build_info(const moe_context *context);

/* ------------------------------------------------------------------------------------------------------------
 * Profile: where the time of a context's calls goes
 * ---------------------------------------------------------------------------------------------------------- */

/** The parts of calls.  None lies within another; what is in none (conversions, copies, waiting for an offloaded layer's file)
 *  is in the caller's own total alone. */
typedef enum moe_phase {
  MOE_PHASE_ROUTE = 0,      /**< gate, choice, capacity, losses; backward: through them */
  MOE_PHASE_DISPATCH = 1,   /**< tokens grouped by expert */
  MOE_PHASE_GATE_UP = 2,    /**< the experts' first products and activations; backward: of x and of their weights */
  MOE_PHASE_DOWN = 3,       /**< the experts' last product; backward: of the activations, and of its weights */
  MOE_PHASE_COMBINE = 4,    /**< the weighted sum back to tokens */
  MOE_PHASE_PROJECTION = 5, /**< moe_linear, and attention's products with matrices */
  MOE_PHASE_ATTENTION = 6,  /**< moe_attention, moe_rotate */
  MOE_PHASE_NORM = 7,       /**< moe_norm, dropout and residual sums */
  MOE_PHASE_EMBEDDING = 8,  /**< moe_embedding */
  MOE_PHASE_LOSS = 9,       /**< moe_cross_entropy, with its product */
  MOE_PHASE_OPTIMIZER = 10  /**< steps and clipping */
} moe_phase;

#define MOE_PHASES 11

/** "route", "dispatch", "gate/up" ...; "unknown phase" for other numbers.
 *  @param phase [in] a moe_phase
 *  @return static memory; any thread. */
MOE_API const char *moe_phase_name(int32_t phase);

/** What one phase came to in one direction, over all calls since moe_profile_start. */
typedef struct moe_phase_time {
  size_t struct_size;
  int64_t calls;  /**< in which it ran */
  double seconds; /**< of the calling threads: a part that n threads share counts once */
  double flops;   /**< of matrix products, an addition and a multiplication counting as two; 0 where there are none */
  double bytes;   /**< weights and tokens, each read or written once: the least that memory had to move; 0 where it is not known */
} moe_phase_time;

#define MOE_PHASE_TIME_INIT { sizeof(moe_phase_time), 0, 0.0, 0.0, 0.0 }

/** Fill `time` with 0.  NULL is ignored. */
MOE_API void moe_phase_time_init(moe_phase_time *time, size_t struct_size);

/** One run of one phase, for a time line (Chrome's trace format, say). */
typedef struct moe_profile_event {
  int32_t phase;    /**< a moe_phase */
  int32_t backward; /**< 1 = backward */
  int64_t thread;   /**< the system's number of the calling thread */
  double start;     /**< seconds since moe_profile_start */
  double seconds;   /**< it took */
  double flops;     /**< as in moe_phase_time */
  double bytes;     /**< as in moe_phase_time */
} moe_profile_event;

/** Measure from now on, from 0; what was measured before is forgotten.  Costs two looks at a clock for each part of a call.
 *  @param max_events [in] >= 0: so many events are kept (48 bytes each), later ones count in the sums alone
 *  Wants the context for itself, as moe_profile_stop and reading do for numbers that belong together.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_profile_start(moe_context *context, int64_t max_events);

/** Measure no more; the numbers stay.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_profile_stop(moe_context *context);

/** @param phase    [in] a moe_phase
 *  @param backward [in] 0 or 1
 *  @param time     [in, out] struct_size in, the rest out
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_profile_phase(const moe_context *context, int32_t phase, int32_t backward,
                                               moe_phase_time *time);

/** The events kept so far, in the order in which they ended.
 *  @param first    [in] number of the first that is wanted
 *  @param events   [out, nullable] [capacity]
 *  @param count    [out] how many there are from `first` on; as many as fit are written
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_profile_events(const moe_context *context, int64_t first, moe_profile_event *events,
                                                int64_t capacity, int64_t *count);

/* ------------------------------------------------------------------------------------------------------------
 * Tensors: one description for parameters, gradients and the caller's own arrays
 * ---------------------------------------------------------------------------------------------------------- */

/** What the elements of a tensor are. */
typedef enum moe_dtype {
  MOE_DTYPE_F32 = 0, /**< IEEE 754 binary32 */
  MOE_DTYPE_BF16 = 1, /**< bfloat16, the upper half of a float32, as uint16_t */
  MOE_DTYPE_F16 = 2, /**< IEEE 754 binary16, as uint16_t */
  /* Of tensors in checkpoints alone: */
  MOE_DTYPE_F64 = 3, /**< IEEE 754 binary64 */
  MOE_DTYPE_I64 = 4,
  MOE_DTYPE_I32 = 5,
  MOE_DTYPE_I16 = 6,
  MOE_DTYPE_I8 = 7,
  MOE_DTYPE_U64 = 8,
  MOE_DTYPE_U32 = 9,
  MOE_DTYPE_U16 = 10,
  MOE_DTYPE_U8 = 11,
  MOE_DTYPE_BOOL = 12,    /**< one byte */
  MOE_DTYPE_F8_E4M3 = 13, /**< one byte, as the next two */
  MOE_DTYPE_F8_E5M2 = 14,
  MOE_DTYPE_F8_E8M0 = 15,
  MOE_DTYPE_OTHER = 16,   /**< a type that this library does not know: bytes under a name */
  MOE_DTYPE_F4 = 17,      /**< 4 bits, two in a byte */
  MOE_DTYPE_F6_E2M3 = 18, /**< 6 bits, four in three bytes, as the next one */
  MOE_DTYPE_F6_E3M2 = 19,
  MOE_DTYPE_C64 = 20,        /**< two F32 */
  MOE_DTYPE_F8_E4M3FNUZ = 21, /**< one byte, as the next one */
  MOE_DTYPE_F8_E5M2FNUZ = 22,
  /* Of GGUF files alone: blocks of numbers with what scales them. */
  MOE_DTYPE_Q4_0 = 23,   /**< 32 numbers in 18 bytes */
  MOE_DTYPE_Q4_1 = 24,   /**< 32 in 20 */
  MOE_DTYPE_Q5_0 = 25,   /**< 32 in 22 */
  MOE_DTYPE_Q5_1 = 26,   /**< 32 in 24 */
  MOE_DTYPE_Q8_0 = 27,   /**< 32 in 34 */
  MOE_DTYPE_Q2_K = 28,   /**< 256 in 84 */
  MOE_DTYPE_Q3_K = 29,   /**< 256 in 110 */
  MOE_DTYPE_Q4_K = 30,   /**< 256 in 144 */
  MOE_DTYPE_Q5_K = 31,   /**< 256 in 176 */
  MOE_DTYPE_Q6_K = 32,   /**< 256 in 210 */
  MOE_DTYPE_IQ4_NL = 33, /**< 32 in 18 */
  MOE_DTYPE_IQ4_XS = 34, /**< 256 in 136 */
  MOE_DTYPE_MXFP4 = 35,  /**< 32 in 17 */
  MOE_DTYPE_NVFP4 = 36   /**< 64 in 36 */
} moe_dtype;

/** A parameter or a tensor of the caller's: its name, its shape, and where its values and its gradient are. */
typedef struct moe_tensor {
  size_t struct_size;
  const char *name; /**< for messages; may be NULL in tensors of the caller's */
  int32_t dtype;    /**< MOE_DTYPE_F32, BF16 or F16 */
  int32_t rank;     /**< a number of dimensions, 1 to 4 */
  int64_t shape[4];   /**< elements per dimension; entries from `rank` on are not read */
  int64_t strides[4]; /**< in elements; this version reports and accepts row-major without gaps (or all 0) only */
  void *data; /**< the values, of `dtype` */
  void *grad; /**< same shape, float32 for every dtype, so that small terms are not lost; NULL where there is none */
  int32_t buffer;   /**< 1 = state that no gradient moves, and that optimisers are not given; not read in tensors of the
                         caller's */
  int32_t frozen;   /**< 1 = nothing trains it, and optimisers refuse it: moe_model_freeze has given up its gradient, or it is a matrix that
                         is prepared in few bits, as long as it is; 0 in tensors of the caller's */
} moe_tensor;

#define MOE_TENSOR_INIT { sizeof(moe_tensor), NULL, 0, 0, { 0, 0, 0, 0 }, { 0, 0, 0, 0 }, NULL, NULL, 0, 0 }

/** Fill `tensor` as MOE_TENSOR_INIT does.  NULL is ignored. */
MOE_API void moe_tensor_init(moe_tensor *tensor, size_t struct_size);

/* ------------------------------------------------------------------------------------------------------------
 * Layer: router and experts
 * ---------------------------------------------------------------------------------------------------------- */

/** A router, E experts and their parameters.  Keeps its context alive. */
typedef struct moe_layer moe_layer;

/** What the weights of the chosen experts are made from.  SCORES and EQUAL choose by the scores, the others by the logits;
 *  see moe_layer_config. */
typedef enum moe_router_weights {
  MOE_ROUTER_WEIGHTS_SCORES = 0,      /**< softmax over all E logits, then top-k: the chosen probabilities */
  MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX = 1, /**< top-k, then softmax over the K chosen logits */
  MOE_ROUTER_WEIGHTS_TOPK_SIGMOID = 2, /**< top-k, then the sigmoid of each chosen logit */
  MOE_ROUTER_WEIGHTS_EQUAL = 3,       /**< 1 each; divided by their sum, 1/K each */
  MOE_ROUTER_WEIGHTS_SPARSEMIXER = 4, /**< each choice's share in a softmax over the experts not chosen before it whose
                                           logits are near enough to its own, see mask_threshold; of PhiMoE in evaluation */
  MOE_ROUTER_WEIGHTS_GROUP_SOFTMAX = 5 /**< of MOE_ROUTER_HIERARCHICAL: softmax(u)_g, the coarse gate's weight of the group,
                                           times a softmax over the chosen experts of g alone; divided by their sum as
                                           router_normalize says, the chosen groups' weights add up to 1 */
} moe_router_weights;

/** How experts and tokens find each other. */
typedef enum moe_router {
  MOE_ROUTER_TOKEN_CHOICE = 0,  /**< each token takes its K best experts */
  MOE_ROUTER_EXPERT_CHOICE = 1, /**< each expert takes its C best tokens, the lowest first among equals [Expert choice
                                     2022]; a token may get 0 to E experts.  C as capacity_formula says, or
                                     ceil(T K / E) without one: K experts a token on average.  Not causal. */
  MOE_ROUTER_HIERARCHICAL = 2,  /**< a coarse gate chooses top_groups of n_groups, then each group's own gate
                                     top_k / top_groups of its experts; with u [G] and z [E] their logits, the layer's
                                     logits are  u_g + z_e - logsumexp of the z in g,  so that
                                     p_e = softmax(u)_g softmax(z in g)_e */
  MOE_ROUTER_HASH = 3,          /**< a table by token id, moe_forward_options.token_ids [Hash 2021]; the gate weighs
                                     (no gate with MOE_ROUTER_WEIGHTS_EQUAL) */
  MOE_ROUTER_SINKHORN = 4,      /**< in training the K best of the softmax after Sinkhorn's iteration towards equal loads
                                     (tolerance 1e-4, epsilon 1e-8, at most 100 times), as Megatron-Core; the
                                     iteration decides and does not weigh.  In evaluation as TOKEN_CHOICE. */
  MOE_ROUTER_EXTERNAL = 5,      /**< no gate: the caller gives indices and weights in moe_forward_options, and gets the
                                     weights' gradient from moe_backward_options */
  MOE_ROUTER_RELU = 6           /**< each token takes the experts with positive logits, the largest first and K at most,
                                     weighed by relu(z) [ReMoE 2024]; a token may get 0 to K experts.  Needs
                                     MOE_SCORE_IDENTITY and MOE_ROUTER_WEIGHTS_SCORES; the paper's weights are as they
                                     are, MOE_NORMALIZE_NONE, its K is n_experts, and a loss, MOE_LOSS_L1_BALANCED, brings
                                     the experts of a token down to the wanted number.  Memory is planned for K rows a
                                     token: a smaller K bounds it. */
} moe_router;

/** Noise on the logits, in training. */
typedef enum moe_noise {
  MOE_NOISE_NONE = 0,
  MOE_NOISE_GAUSSIAN = 1, /**< z + noise_std * N(0,1) */
  MOE_NOISE_LEARNED = 2   /**< z + N(0,1) * (softplus(x W_n^T) + 0.01), W_n the parameter router.noise.weight [E,H], 0 at
                               first [Shazeer 2017] */
} moe_noise;

/** A norm of the gate's own, on what it reads alone. */
typedef enum moe_router_norm {
  MOE_ROUTER_NORM_NONE = 0,
  MOE_ROUTER_NORM_RMS = 1,       /**< x / sqrt(mean of x^2 + router_norm_epsilon) * router_norm_scale */
  MOE_ROUTER_NORM_RMS_WEIGHT = 2 /**< the same times a trained parameter router.norm.weight [H], 1 at first (Gemma 4) */
} moe_router_norm;

/** Where router_dropout acts, in training: kept values are divided by 1 - router_dropout, others are 0. */
typedef enum moe_router_dropout {
  MOE_ROUTER_DROPOUT_INPUT = 0, /**< on the gate's input [T,H] */
  MOE_ROUTER_DROPOUT_LOGITS = 1 /**< on the logits [T,E] */
} moe_router_dropout;

/** Fewer than top_k experts for some tokens, but at least min_k.  Those that are left share the normalisation. */
typedef enum moe_dynamic_k {
  MOE_DYNAMIC_K_NONE = 0,
  MOE_DYNAMIC_K_TOP_P = 1,     /**< the fewest of the best whose scores add up to dynamic_value */
  MOE_DYNAMIC_K_THRESHOLD = 2, /**< those whose score is at least dynamic_value */
  MOE_DYNAMIC_K_COMPLEXITY = 3 /**< for all tokens of the call  floor(mean norm of x / dynamic_value) */
} moe_dynamic_k;

/** The room C of an expert, for T (valid) tokens; f is capacity_factor, 1 where nothing else is said.  int is towards 0,
 *  // rounds down.  min_capacity, where it is set, is the least C of every formula but CONSTANT. */
typedef enum moe_capacity {
  MOE_CAPACITY_NONE = 0,
  MOE_CAPACITY_CONSTANT = 1,    /**< capacity; with capacity_per_sequence as Switch in transformers */
  MOE_CAPACITY_MEGATRON = 2,    /**< ceil(T K / E * f) */
  MOE_CAPACITY_DEEPSPEED = 3,   /**< max(ceil(T K / E * f), min_capacity), min_capacity 4 */
  MOE_CAPACITY_MEGABLOCKS = 4,  /**< int(f K T / E) */
  MOE_CAPACITY_TUTEL = 5,       /**< K int(f ceil(T / E)); f 0, its own: what the fullest needs; f < 0: the smaller of both,
                                     by |f| */
  MOE_CAPACITY_FASTMOE = 6,     /**< ceil(f T) K // E; f 1.2, in evaluation 2.4 */
  MOE_CAPACITY_LUCIDRAINS = 7,  /**< max(min(T, int(T f / E)), min_capacity); f 1.25, in evaluation 2; min_capacity 4 */
  MOE_CAPACITY_NLLB = 8,        /**< 2 ceil(T / E); in evaluation, with eval_capacity_factor f, ceil(f T); capacity_factor
                                     is 0 */
  MOE_CAPACITY_FLAXFORMER = 9,  /**< max(round(f T / E), min_capacity), halves to even; f 1.25, in evaluation 2;
                                     min_capacity 4 */
  MOE_CAPACITY_CLASSIC = 10,    /**< int(f T / E); f 1.25 */
  MOE_CAPACITY_CLASSIC_TOTAL = 11 /**< int(f T); f 1.25 */
} moe_capacity;

/** Who goes first where an expert has less room than takers. */
typedef enum moe_drop {
  MOE_DROP_POSITION = 0,          /**< tokens in order, each with its K choices in turn */
  MOE_DROP_CHOICE_POSITION = 1,   /**< all first choices, tokens in order; then all second choices, and so on */
  MOE_DROP_PROBABILITY = 2,       /**< the largest weights first */
  MOE_DROP_BATCH_PRIORITIZED = 3, /**< tokens by their largest weight, else as CHOICE_POSITION [V-MoE 2021] */
  MOE_DROP_RANDOM = 4             /**< at random by seed and step; in evaluation as POSITION */
} moe_drop;

/** What becomes of a choice whose expert has no room. */
typedef enum moe_overflow {
  MOE_OVERFLOW_DROP = 0,     /**< a choice without room is dropped */
  MOE_OVERFLOW_NEXT_BEST = 1 /**< it goes to the token's next best expert that has room; dropped if there is none */
} moe_overflow;

/** Which choices share the weights of a token. */
typedef enum moe_renormalize {
  MOE_RENORMALIZE_BEFORE = 0, /**< weights are divided first, then choices dropped: the others stay as they are */
  MOE_RENORMALIZE_AFTER = 1   /**< weights of the choices that were not dropped are divided */
} moe_renormalize;

/** Of shared experts, which every token uses. */
typedef enum moe_shared_gate {
  MOE_SHARED_PLAIN = 0,   /**< y += shared(x) */
  MOE_SHARED_SIGMOID = 1, /**< y += sigmoid(x w^T) shared(x), w the parameter shared.router.weight [S,H] (Qwen2) */
  MOE_SHARED_RESIDUAL = 2 /**< y = c_0 y + c_1 shared(x), c = softmax(x W^T + b), the parameters shared.router.weight [2,H]
                               and shared.router.bias [2]; one shared expert [DeepSpeed-MoE 2022] */
} moe_shared_gate;

/** Losses for moe_loss_term.  P_e: mean probability.  f_e: share of the tokens that chose e, before dropping.  Counts are
 *  constants for the gradient.  Masked tokens count nowhere, unless moe_forward_options.loss_mask says so.  "Balanced" is the value at perfect balance. */
typedef enum moe_loss {
  MOE_LOSS_BALANCE = 0,            /**< E sum f_e P_e over all K choices, an expert once a token; balanced K */
  MOE_LOSS_BALANCE_COUNT = 1,      /**< the same, every choice counted; balanced K */
  MOE_LOSS_TRANSFORMERS = 2,       /**< of one layer, load_balancing_loss_func: f from the K largest probabilities, whatever
                                        was chosen; balanced K.  For layers together: moe_pooled_balance_loss */
  MOE_LOSS_SWITCH = 3,             /**< E sum f_e P_e of the largest probability alone; balanced 1 [Switch 2021] */
  MOE_LOSS_SWITCH_SEQUENCE = 4,    /**< the mean of that over sequences; balanced 1 (Switch in transformers) */
  MOE_LOSS_GSHARD = 5,             /**< E^2 mean over e of f_e P_e, first choices alone (with MOE_ROUTER_EXPERT_CHOICE, of the
                                        experts that took the token the most probable); balanced 1 [GShard 2020] */
  MOE_LOSS_DEEPSPEED = 6,          /**< K <= 2: as GSHARD; else E^2 / K mean over e of f_e P_e, all choices; balanced 1 */
  MOE_LOSS_MEGATRON = 7,           /**< E / K sum f_e P_e, P of the scores (not MOE_SCORE_IDENTITY), divided by their sum
                                        + 1e-20; f from the K largest scores; balanced 1 */
  MOE_LOSS_MEGATRON_SEQUENCE = 8,  /**< the mean of that over sequences; balanced 1 */
  MOE_LOSS_MEGATRON_GLOBAL = 9,    /**< E sum g_e P_e, g_e the share of e in all choices, this call's and
                                        moe_forward_options.global_counts together; balanced 1 */
  MOE_LOSS_VARIANCE = 10,          /**< unbiased variance of the counts / (T K / E)^2; no gradient; balanced 0 */
  MOE_LOSS_IMPORTANCE = 11,        /**< CV^2 of the sums of weights; CV^2(v) = unbiased variance / (mean^2 + 1e-10);
                                        balanced 0 [Shazeer 2017] */
  MOE_LOSS_LOAD = 12,              /**< CV^2 of the smooth loads, load_e = sum over t of the chance that e is among the K
                                        largest logits if its noise were drawn once more; in evaluation of the noise that
                                        training would have.  Needs TOKEN_CHOICE, MOE_NOISE_LEARNED or GAUSSIAN, and no
                                        dropout of logits; balanced 0 */
  MOE_LOSS_SHAZEER = 13,           /**< IMPORTANCE + LOAD; balanced 0 */
  MOE_LOSS_TUTEL_GSHARD = 14,      /**< sum over e of (sum p_te) (first choices of e * E / T) / T; balanced 1 */
  MOE_LOSS_TUTEL_IMPORTANCE_LOAD = 15, /**< (CV^2 of the sums of probabilities + LOAD) / 2; balanced 0 */
  MOE_LOSS_Z = 16,                 /**< mean of logsumexp^2 [ST-MoE 2022] */
  MOE_LOSS_Z_SWITCH = 17,          /**< sum of logsumexp^2 / T, T with masked tokens (Switch in transformers) */
  MOE_LOSS_BALANCE_POSITIVE = 18,  /**< as BALANCE, but f_e counts the tokens in which e has a weight above 0: not the choices
                                        that were dropped, or that weigh nothing */
  MOE_LOSS_L1 = 19,                /**< sum over e of W_e, W_e the mean over tokens of the weight of e: of MOE_ROUTER_RELU
                                        the L1 norm, which makes its experts few */
  MOE_LOSS_L1_BALANCED = 20        /**< sum over e of g_e W_e, g_e = E times the share of e in all choices with a weight above
                                        0: experts in demand are brought down harder [ReMoE 2024].  The paper divides by the
                                        wanted number of experts in place of the mean one */
} moe_loss;

/** A loss of moe_layer_config.losses. */
typedef struct moe_loss_term {
  int32_t kind;      /**< a moe_loss */
  float coefficient; /**< >= 0 */
} moe_loss_term;

/** Scores of all experts, from the token's logits z. */
typedef enum moe_score {
  MOE_SCORE_SOFTMAX = 0,       /**< exp(z_e) / sum over j of exp(z_j) */
  MOE_SCORE_SIGMOID = 1,       /**< 1 / (1 + exp(-z_e)) */
  MOE_SCORE_SQRT_SOFTPLUS = 2, /**< sqrt(ln(1 + exp(z_e))) */
  MOE_SCORE_IDENTITY = 3       /**< z_e */
} moe_score;

/** What is done to the values of the chosen experts (nothing is left to do after MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX). */
typedef enum moe_normalize {
  MOE_NORMALIZE_SUM = 0, /**< divided by their sum, so that a token's weights add up to 1 */
  MOE_NORMALIZE_NONE = 1, /**< used as they are */
  MOE_NORMALIZE_NORM1 = 2, /**< divided by the sum of their magnitudes */
  MOE_NORMALIZE_NORM2 = 3, /**< divided by the root of the sum of their squares */
  MOE_NORMALIZE_NORMP = 4  /**< divided by (sum of |v|^p)^(1/p), p = normalize_p */
} moe_normalize;

/** What normalize_epsilon does to the divisor D. */
typedef enum moe_epsilon {
  MOE_EPSILON_ADDED = 0, /**< D + epsilon */
  MOE_EPSILON_LEAST = 1  /**< max(D, epsilon) */
} moe_epsilon;

/** What takes the place of the scores of experts in groups that were not chosen. */
typedef enum moe_group_mask {
  MOE_GROUP_MASK_MINUS_INFINITY = 0, /**< they are never chosen */
  MOE_GROUP_MASK_ZERO = 1            /**< 0, which wins against negative scores, as DeepSeek-V2 has it */
} moe_group_mask;

/** Whether there are biases. */
typedef enum moe_bias {
  MOE_BIAS_DEFAULT = 0, /**< on for the router, for MLP and linear experts, off for gated experts */
  MOE_BIAS_OFF = 1,
  MOE_BIAS_ON = 2
} moe_bias;

/** What an expert computes of x; act is its activation. */
typedef enum moe_expert_kind {
  MOE_EXPERT_MLP = 0,  /**< W_down act(W_up x + b_up) + b_down */
  MOE_EXPERT_GATED = 1, /**< W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down; SwiGLU with SILU, GeGLU with GELU;
                             with clamps: see glu_limit */
  MOE_EXPERT_LINEAR = 2, /**< W x + b: no inner features, no activation, no dropout */
  MOE_EXPERT_IDENTITY = 3, /**< x, without parameters; as the next two only in expert_groups (LongCat-Flash) */
  MOE_EXPERT_ZERO = 4,     /**< 0, without parameters [MoE++ 2024] */
  MOE_EXPERT_CONSTANT = 5  /**< a trained vector experts.G.constant [n,H], 0 at first, whatever x is */
} moe_expert_kind;

/** act(v) of an expert. */
typedef enum moe_activation {
  MOE_ACTIVATION_GELU = 0,      /**< v * (1 + erf(v / sqrt(2))) / 2 */
  MOE_ACTIVATION_GELU_TANH = 1, /**< v * (1 + tanh(sqrt(2/pi) * (v + 0.044715 v^3))) / 2 */
  MOE_ACTIVATION_SILU = 2,      /**< v / (1 + exp(-v)) */
  MOE_ACTIVATION_RELU = 3,      /**< max(v, 0) */
  MOE_ACTIVATION_RELU2 = 4,     /**< max(v, 0)^2 */
  MOE_ACTIVATION_QUICK_GELU = 5 /**< v / (1 + exp(-1.702 v)) */
} moe_activation;

/** Experts of one kind and width in a layer with several.  Fields as those of the same name in moe_layer_config. */
typedef struct moe_expert_group {
  int64_t n_experts;         /**< in this group, 1 to 2^31 - 1 */
  int64_t intermediate_size; /**< 1 to 2^31 - 1; 0 for LINEAR (or H), IDENTITY, ZERO and CONSTANT */
  int32_t expert_kind;
  int32_t activation;
  int32_t expert_bias;
  float dropout;
  float glu_limit, glu_alpha, glu_offset;
  int32_t reserved; /**< 0 */
} moe_expert_group;

/** Memory that a layer goes without; a sum of these, 0 for nothing. */
typedef enum moe_unallocated {
  MOE_UNALLOCATED_EXPERT_GRADIENTS = 1, /**< gradients of the experts' weights and biases, shared experts' among them: their
                                             moe_tensor.grad is NULL.  moe_layer_backward then wants an optimizer, which it
                                             steps expert by expert, or all these gradients bound. */
  MOE_UNALLOCATED_EXPERT_WEIGHTS = 2    /**< the matrices of the routed experts (parameters experts.X of rank 3) and their
                                             gradients: moe_tensor's data and grad are NULL until you bind memory, of files
                                             mapped by moe_mapping_create for instance, or call moe_layer_offload */
} moe_unallocated;

/** n_groups of a preset's model without its groups: DeepSeek-V2-Lite, say, in this one field of moe_preset_deepseek_v2. */
#define MOE_NO_GROUPS (-1)

/** What a layer is: router, experts, shared experts, exploration, capacity and losses.  Where nothing else is said, 0 is off. */
typedef struct moe_layer_config {
  size_t struct_size;
  /* The layer. */
  int64_t hidden_size;    /**< H, 1 to 2^31 - 1 */
  int64_t n_experts;      /**< E, 1 to 2^31 - 1 */
  int64_t top_k;          /**< K, 1 to 2^31 - 1, and no more than E */
  uint64_t seed;          /**< of the initial parameters and of all that is random */
  int32_t io_dtype;       /**< MOE_DTYPE_F32 or BF16, of x, y, dy and dx; goes with any weight_dtype */
  int32_t inference_only; /**< 1 = no memory for gradients; backward is refused */
  int32_t unallocated;    /**< a sum of moe_unallocated; EXPERT_GRADIENTS not with inference_only */
  int32_t output_bias;    /**< 1 = a parameter output.bias [H], 0 at first, added to y (JetMoE) */

  /* Experts: one group of them, or several kinds and widths in the order of their numbers.  With expert_groups the fields
   * before it are 0 (but weight_dtype), and parameters are called experts.0.up.weight and so on by group. */
  int64_t intermediate_size;             /**< I, their width, 1 to 2^31 - 1; linear experts have none: 0 or H; 0 with
                                              expert_groups */
  int32_t expert_kind;                   /**< a moe_expert_kind */
  int32_t activation;                    /**< a moe_activation; 0 for linear experts */
  int32_t expert_bias;                   /**< a moe_bias */
  int32_t weight_dtype;                  /**< MOE_DTYPE_F32, BF16 or F16, of the experts' weight matrices: see below */
  float dropout;                         /**< share of the experts' inner activations dropped in training, [0, 1) */
  float glu_limit;                       /**< L of gated experts, >= 0; 0 = no clamps; see below */
  float glu_alpha;                       /**< of gated experts with SILU, >= 0; 0 = 1: act(v) = v / (1 + exp(-glu_alpha v)) */
  float glu_offset;                      /**< of gated experts, >= 0: added to the clamped up projection */
  const moe_expert_group *expert_groups; /**< [n_expert_groups], copied; their n_experts add up to n_experts */
  int64_t n_expert_groups;               /**< 0 = one group, described by the fields before; at most 16 */

  /* Shared experts, which every token uses, of the kind of the others (of the first group's). */
  int64_t n_shared_experts;         /**< S, 0 to 2^31 - 1; parameters shared.up.weight [S,I,H] and so on */
  int64_t shared_intermediate_size; /**< their width, 0 to 2^31 - 1; 0 = intermediate_size */
  int32_t shared_gate;              /**< a moe_shared_gate; they are not multiplied by routed_scale */

  /* Router: which experts a token uses, and how they weigh; each 0 is the classic router.
   *   s = score(z)                                    z [E] the token's logits
   *   chosen = the K largest of s + selection bias, within the top_groups best of n_groups
   *   v = s of the chosen, without the bias, or as router_weights says
   *   w = v / D * routed_scale * expert scale         D as router_normalize says
   * With the weights from the logits (TOPK_..., SPARSEMIXER) the choice goes by the logits too, in place of s.
   * Among equals the lowest index is first.  A logit of minus infinity means "never", whatever the bias. */
  int32_t router;            /**< a moe_router */
  int32_t score;             /**< a moe_score; SOFTMAX with TOPK_... and SPARSEMIXER weights */
  int32_t router_weights;    /**< a moe_router_weights */
  int32_t router_normalize;  /**< a moe_normalize */
  int32_t router_bias;       /**< a moe_bias */
  int32_t weight_on_input;   /**< 1 = expert(w x) in place of w expert(x) (Llama-4) */
  float normalize_epsilon;   /**< >= 0; 0 = none */
  int32_t epsilon_form;      /**< a moe_epsilon; 0 without normalize_epsilon */
  float normalize_p;         /**< >= 1, of MOE_NORMALIZE_NORMP; else 0 */
  float mask_threshold;      /**< of MOE_ROUTER_WEIGHTS_SPARSEMIXER, > 0: experts count that are within (best - z) /
                                  max(|z|, best) <= 2 mask_threshold; else 0 */
  float routed_scale;        /**< > 0; 0 = 1 */
  int32_t expert_scale;      /**< 1 = a trained parameter router.expert_scale [E], 1 at first */
  int32_t selection_bias;    /**< 1 = a parameter router.selection_bias [E], 0 at first, added for the choice alone: it
                                  has no gradient and is moved by moe_layer_update_selection_bias [DeepSeek-V3 2024] */
  int32_t n_groups;          /**< a number: groups of neighbouring experts, a divisor of n_experts; 0 = no groups;
                                  MOE_NO_GROUPS = none, whatever the next three are */
  int32_t top_groups;        /**< a number: groups of which experts may be chosen, 1 to n_groups; they must hold top_k
                                  experts */
  int32_t group_top_m;       /**< a number: a group's score is the sum of so many of its largest; 0 = 1, its largest */
  int32_t group_mask;        /**< a moe_group_mask */
  int32_t dynamic_k;         /**< a moe_dynamic_k, of TOKEN_CHOICE */
  float dynamic_value;       /**< > 0, see moe_dynamic_k; COMPLEXITY: 0 = 10 */
  int32_t min_k;             /**< a number, 0 to 2^31 - 1: the least of dynamic_k, no more than top_k; 0 = 1 */
  int32_t router_norm;       /**< a moe_router_norm, after jitter and before router_dropout; not with router_batch_norm */
  float router_norm_scale;   /**< >= 0; 0 = 1 / sqrt(H), which is Gemma 4's */
  float router_norm_epsilon; /**< >= 0; 0 = 1e-6 */
  const int32_t *hash_table; /**< [vocabulary_size, top_k] of MOE_ROUTER_HASH, copied; NULL = distinct experts at random
                                  by seed */
  int64_t vocabulary_size;   /**< of MOE_ROUTER_HASH, 1 to 2^31 - 1: token ids are below it; else 0 */

  /* Exploration, in training alone. */
  int32_t noise;             /**< a moe_noise */
  float noise_std;           /**< of MOE_NOISE_GAUSSIAN, > 0; the classic value is 0.01 */
  int32_t random_second;     /**< 1 = a second choice of weight w is kept with probability min(1, 2 w); top_k 2
                                  [GShard 2020] */
  float jitter;              /**< x is multiplied by numbers from 1 - jitter to 1 + jitter, for the gate; [0, 1) */
  int32_t jitter_experts;    /**< 1 = for the chosen and the shared experts too (Mixtral) */
  float router_dropout;      /**< share that is 0, [0, 1); the rest is divided by 1 - router_dropout */
  int32_t router_dropout_on; /**< a moe_router_dropout */
  int32_t router_batch_norm; /**< 1 = the gate reads (x - mean) / sqrt(variance + epsilon) * router.norm.weight [H] +
                                  router.norm.bias [H]: of the call's tokens in training, of router.norm.running_mean and
                                  running_var [H] (without gradients) in evaluation; 1, 0, 0 and 1 at first.  A training
                                  forward changes those, so it wants the layer for itself. */
  float batch_norm_momentum; /**< [0, 1]; 0 = 0.1 */
  float batch_norm_epsilon;  /**< > 0; 0 = 1e-5 */
  int64_t warmup_steps;      /**< 0 to 2^31 - 1: over so many steps the experts that may be chosen grow from
                                  warmup_experts to E: in step s the first  warmup_experts + (E - warmup_experts) s /
                                  warmup_steps.  A training forward notes it in router.active_experts [1] (no gradient),
                                  which evaluation follows, and so wants the layer for itself.  The others' logits are
                                  minus infinity.  0 = none */
  int64_t warmup_experts;    /**< at first, top_k to E; 0 = top_k */

  /* Capacity: room for a limited number of tokens in each expert. */
  int64_t capacity;              /**< of MOE_CAPACITY_CONSTANT, 1 to 2^31 - 1; else 0 */
  int64_t min_capacity;          /**< 0 to 2^31 - 1; 0 = as capacity_formula says, or 0; not of MOE_CAPACITY_CONSTANT */
  int32_t capacity_formula;      /**< a moe_capacity */
  int32_t capacity_per_sequence; /**< 1 = each sequence (moe_forward_options.sequence_length) has room of its own */
  double capacity_factor;        /**< finite; 0 = as capacity_formula says, or 1 */
  double eval_capacity_factor;   /**< finite, in evaluation; 0 = capacity_factor, or as capacity_formula says */
  int32_t drop;                  /**< a moe_drop */
  int32_t overflow;              /**< a moe_overflow */
  int32_t renormalize;           /**< a moe_renormalize */
  int32_t adaptive_capacity;     /**< 1 = an expert that more than adaptive_high C choices fell on has room for
                                      adaptive_high_factor C, one with fewer than adaptive_low C for adaptive_low_factor
                                      C; both rounded down */
  double adaptive_high, adaptive_high_factor; /**< >= 0; 0 = 1.5 and 1.2 */
  double adaptive_low, adaptive_low_factor;   /**< >= 0; 0 = 0.5 and 0.8 */

  /* Losses. */
  float balance_coef;          /**< weight of balance_loss in aux_loss, >= 0; the classic value is 0.01 */
  float z_coef;                /**< weight of z_loss in aux_loss, >= 0; the classic value is 0.001 */
  const moe_loss_term *losses; /**< [n_losses], copied: added to aux_loss beside balance_coef's and z_coef's */
  int64_t n_losses;            /**< at most 16 */

  int32_t shared_bias;         /**< a moe_bias, of the shared experts; MOE_BIAS_DEFAULT = as the others have it (ERNIE-4.5) */
} moe_layer_config;

/* glu_limit, glu_alpha, glu_offset: for g = W_gate x + b_gate and u = W_up x + b_up a gated expert is
 *     W_down (act(min(g, L)) * (min(max(u, -L), L) + glu_offset)) + b_down
 * (gpt-oss: SILU, L 7, alpha 1.702, offset 1; DeepSeek-V4: SILU, L 10).  The gradient is 0 for g > L, and for |u| > L.
 * With other experts all three are refused unless 0, and glu_alpha with another activation. */

/* weight_dtype BF16: the parameters of rank 3 (the experts' weights) are bfloat16; router, biases and all gradients stay
 * float32.  What is multiplied with these weights is rounded to bfloat16 too (nearest, ties to even), where it is stored:
 * rows of x, pre-activations, activations after dropout, rows of dy, those times the routing weight, gradients of
 * pre-activations.  Nothing else is: sums, biases, outputs, the router and its gradients, losses, y and dx are float32.
 * At MOE_INSTRUCTIONS_AVX512 and below, and with REFERENCE, products are chains of float32 as ever, with the same promises.
 * On a processor with AVX512-BF16, NATIVE adds two products at a step, and takes denormal numbers in products for 0.  The
 * same bits then come on every run, for every n_threads, prepared or not, and for a token's y and dx whatever other tokens
 * are in the call; but not those of the other instruction sets, and gradients of weights agree only to rounding when
 * tokens are divided into other calls.
 * weight_dtype F16: the parameters of rank 3 are binary16, and nothing else is.  Products read each weight as the float32 of
 * the same value, so that every bit is that of a layer with these values in float32, prepared or not.  Values come to it
 * rounded (nearest, ties to even), beyond 65504 by half a step and more as infinity; gradients are float32, and optimisers
 * keep the values in float32.
 * io_dtype BF16: x and dy are widened on the way in, which is exact, and y and dx are rounded on the way out. */

#define MOE_LAYER_CONFIG_INIT \
  { \
    sizeof(moe_layer_config), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0.0f, NULL, 0, 0, 0, 0, 0, 0, 0, 0, \
    0, 0, 0.0f, 0, 0.0f, 0.0f, 0.0f, 0, 0, 0, 0, 0, 0, 0, 0.0f, 0, 0, 0.0f, 0.0f, NULL, 0, 0, 0.0f, 0, 0.0f, 0, 0.0f, 0, \
    0, 0.0f, 0.0f, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0f, 0.0f, NULL, 0, 0 \
  }

/** Fill `config` with the defaults, as MOE_LAYER_CONFIG_INIT does: all 0 (softmax, top-k, divided by their sum; GELU
 *  MLP with biases; no dropout, no auxiliary loss).  The four sizes are yours to set.  NULL is ignored. */
MOE_API void moe_layer_config_init(moe_layer_config *config, size_t struct_size);

/** Create a layer with initialised parameters.
 *  Router weight: normal, standard deviation 1/sqrt(H) (Kaiming, fan in).  Expert weights: uniform within
 *  sqrt(6 / (fan_in + fan_out)) (Xavier), each expert by itself.  Biases: uniform within 1/sqrt(fan_in), as PyTorch does.
 *  The coarse gate and that of shared experts as the router; other parameters as they are described where they are turned on.
 *  Numbers come from Philox4x32-10 keyed by (seed, tensor, element): the same seed gives the same bits everywhere.
 *  Weights of other types are those numbers rounded.
 *  @param context [in] is kept alive by the layer.
 *  @param config  [in]
 *  @param out     [out] free it with moe_layer_free.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_layer_create(moe_context *context, const moe_layer_config *config, moe_layer **out);

/** Free a layer and the parameters it owns; memory bound by the caller is the caller's. */
MOE_API void moe_layer_free(moe_layer *layer);

/** Give all parameters that have memory the values of a new layer with this seed, and gradients 0: for memory that was bound.
 *  Wants the layer for itself.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_layer_initialize(moe_layer *layer);

/** Number of parameter tensors.
 *  In order, those the configuration has; those marked * are buffers (moe_tensor.buffer 1, grad NULL): leave them out of
 *  optimisers.  With MOE_UNALLOCATED_EXPERT_GRADIENTS grad is NULL for the matrices and biases of experts.X and shared.X
 *  too: optimisers take all but the buffers.
 *    router.weight [E,H]              router.bias [E]             the gate
 *    experts.gate.weight [E,I,H]      experts.gate.bias [E,I]     gated experts
 *    experts.up.weight [E,I,H]        experts.up.bias [E,I]
 *    experts.down.weight [E,H,I]      experts.down.bias [E,H]
 *    experts.weight [E,H,H]           experts.bias [E,H]          linear experts, instead of the six above
 *    experts.0.gate.weight ...        experts.1.constant [n,H]    with expert_groups, by group, in place of those
 *    shared.gate.weight [S,I,H] ...   shared experts, as those above
 *    router.selection_bias [E]*       router.expert_scale [E]
 *    router.coarse.weight [G,H]       router.coarse.bias [G]      hierarchical: the groups' gate
 *    router.noise.weight [E,H]                                    learned noise
 *    router.norm.weight [H]           router.norm.bias [H]        batch-normalised gate; ROUTER_NORM_RMS_WEIGHT: the first
 *    router.norm.running_mean [H]*    router.norm.running_var [H]*
 *    router.active_experts [1]*                                   warm-up
 *    shared.router.weight [S,H]       shared.router.bias [2]      gated shared experts; RESIDUAL: [2,H] and the bias
 *    output.bias [H]
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_layer_parameter_count(const moe_layer *layer, int64_t *count);

/** Describe parameter `index`.  `data` and `grad` point at the values themselves: read and write them there.
 *  @param tensor [in, out] struct_size in, the rest out.  Its pointers live until the layer is freed or that
 *                parameter is bound elsewhere or frozen; grad is NULL in an inference_only layer; data and grad may be
 *                with moe_unallocated.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_layer_parameter(const moe_layer *layer, int64_t index, moe_tensor *tensor);

/** Index of the parameter called `name`.
 *  @return MOE_OK, INVALID_ARGUMENT (the message lists no such name). */
MOE_API MOE_CHECK moe_status moe_layer_find_parameter(const moe_layer *layer, const char *name, int64_t *index);

/** Use the caller's memory as parameter `index`, without a copy: its values as they are from now on.
 *  @param data [in] contiguous, of the tensor's dtype and as long; kept until the layer is freed or the parameter bound
 *              again.
 *  @param grad [in, nullable] the same for the gradient, float32; NULL keeps the gradient where it is.  Must be NULL in an
 *              inference_only layer.  Must not overlap `data`.
 *  Memory that the library owned for it is freed, so fetch values you want to keep first.
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (the parameter is offloaded). */
MOE_API MOE_CHECK moe_status moe_layer_bind_parameter(moe_layer *layer, int64_t index, void *data, float *grad);

/** Set every gradient of the layer to 0.
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (inference_only). */
MOE_API MOE_CHECK moe_status moe_layer_zero_grad(moe_layer *layer);

/** Balance without a loss [DeepSeek-V3 2024]: raise router.selection_bias of experts with fewer tokens than the mean, and
 *  lower it of those with more:  d_e = rate * sign(mean(n) - n_e);  bias_e += d_e, or d_e - mean(d) where zero_sum is 1.
 *  @param layer             [in] with selection_bias
 *  @param tokens_per_expert [in] [E] n, counted since the last update: the reports' counts added up.  Once per optimiser
 *                           step, not per call.
 *  @param rate              [in] >= 0; 0.001 is usual
 *  @param zero_sum          [in] 0 or 1 (the biases' mean then stays as it is)
 *  Wants the layer for itself.
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (no selection_bias). */
MOE_API MOE_CHECK moe_status moe_layer_update_selection_bias(moe_layer *layer, const int64_t *tokens_per_expert,
                                                             float rate, int32_t zero_sum);

/** Set the coefficient of one of config.losses, for the forward calls to come.  Sparse routing [ReMoE 2024] begins with 1e-8
 *  for MOE_LOSS_L1_BALANCED and, after each optimiser step, multiplies it by 1.2 where the tokens used more experts on
 *  average than wanted (the reports' counts added up, divided by n_valid), and divides it by 1.2 where they used fewer.
 *  The number is yours to keep: neither checkpoints nor training states hold it.
 *  @param term        [in] a number, 0 to n_losses - 1
 *  @param coefficient [in] >= 0
 *  Wants the layer for itself.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_layer_set_loss_coefficient(moe_layer *layer, int32_t term, float coefficient);

/** In which form moe_layer_prepare keeps the experts' weights. */
typedef enum moe_prepared {
  MOE_PREPARED_NONE = 0, /**< no packed copy */
  MOE_PREPARED_F32 = 1,  /**< float32 or float16 weights as they are: forward gives the same bits; not for bfloat16 weights */
  MOE_PREPARED_BF16 = 2, /**< bfloat16: half the memory to read.  Forward gives the bits of a layer with weight_dtype
                              BF16: of this one, or of one with these weights rounded; then only without a tape */
  /* Weights of few bits, see below: from weights of any type, which are frozen as long.  _A8: the same, times int8 tokens; _A16: times
   * bfloat16 tokens. */
  MOE_PREPARED_INT8 = 3,          /**< 8.5 bits a weight: int8 and a float16 scale for 32 inputs, GGUF's Q8_0 */
  MOE_PREPARED_INT8_A8 = 4,       /**< times int8 tokens */
  MOE_PREPARED_INT4 = 5,          /**< 4.5 bits: int4 and a float16 scale for 32 inputs, GGUF's Q4_0 */
  MOE_PREPARED_INT4_A8 = 6,       /**< times int8 tokens */
  MOE_PREPARED_INT4_G64 = 7,      /**< 4.25 bits: int4, a float16 scale for 64 inputs */
  MOE_PREPARED_INT4_G64_A8 = 8,   /**< times int8 tokens */
  MOE_PREPARED_INT4_G128 = 9,     /**< 4.125 bits: int4, a float16 scale for 128 inputs */
  MOE_PREPARED_INT4_G128_A8 = 10, /**< times int8 tokens */
  MOE_PREPARED_MXFP4 = 11,        /**< 4.25 bits: E2M1 and a power of two for 32 inputs, GGUF's MXFP4 */
  MOE_PREPARED_MXFP4_A8 = 12,     /**< times int8 tokens */
  MOE_PREPARED_IQ4_NL = 13,       /**< 4.5 bits: sixteen values and a float16 scale for 32 inputs, GGUF's IQ4_NL */
  MOE_PREPARED_IQ4_NL_A8 = 14,    /**< times int8 tokens */
  MOE_PREPARED_Q4_K = 15,         /**< 4.625 bits: GGUF's Q4_K; of matrices with a multiple of 256 inputs */
  MOE_PREPARED_Q4_K_A8 = 16,      /**< times int8 tokens */
  MOE_PREPARED_Q6_K = 17,         /**< 6.5625 bits: GGUF's Q6_K; of matrices with a multiple of 256 inputs */
  MOE_PREPARED_Q6_K_A8 = 18,      /**< times int8 tokens */
  MOE_PREPARED_INT8_ROW = 19,     /**< 8.125 bits: int8 and a float32 scale for all inputs of an output */
  MOE_PREPARED_INT8_ROW_A8 = 20,  /**< times int8 tokens */
  MOE_PREPARED_FP8 = 21,          /**< 8.125 bits: E4M3 and a float32 scale for 128 inputs of 32 outputs */
  MOE_PREPARED_NVFP4 = 22,        /**< 4.625 bits: E2M1, E4M3 for 16 inputs, a float32 scale for 128 inputs of 32 outputs */
  MOE_PREPARED_NVFP4_A8 = 23,     /**< times int8 tokens */
  MOE_PREPARED_INT4_BF16 = 24,    /**< 4.5 bits: int4 and a bfloat16 scale for 32 inputs */
  MOE_PREPARED_INT4_BF16_A8 = 25, /**< times int8 tokens */
  MOE_PREPARED_INT4_ZERO = 26,    /**< 5.25 bits: 0 ... 15, a zero point and a float32 scale for 32 inputs */
  MOE_PREPARED_INT4_ZERO_A8 = 27, /**< times int8 tokens */
  MOE_PREPARED_INT4_ZERO_G64 = 28,     /**< 4.625 bits: the same for 64 inputs */
  MOE_PREPARED_INT4_ZERO_G64_A8 = 29,  /**< times int8 tokens */
  MOE_PREPARED_INT4_ZERO_G128 = 30,    /**< 4.3125 bits: the same for 128 inputs */
  MOE_PREPARED_INT4_ZERO_G128_A8 = 31, /**< times int8 tokens */
  /* While a model is read (moe_pretrained_options), and nowhere else: each matrix in the form above that has exactly the file's numbers. */
  MOE_PREPARED_STORED = 32,    /**< what the files hold in few bits as it is, other weights as with NONE */
  MOE_PREPARED_STORED_A8 = 33, /**< times int8 tokens, where the form has that */
  MOE_PREPARED_INT8_A16 = 34,                /**< times bfloat16 tokens */
  MOE_PREPARED_INT4_A16 = 35,                /**< times bfloat16 tokens */
  MOE_PREPARED_INT4_G64_A16 = 36,            /**< times bfloat16 tokens */
  MOE_PREPARED_INT4_G128_A16 = 37,           /**< times bfloat16 tokens */
  MOE_PREPARED_MXFP4_A16 = 38,               /**< times bfloat16 tokens */
  MOE_PREPARED_IQ4_NL_A16 = 39,              /**< times bfloat16 tokens */
  MOE_PREPARED_Q4_K_A16 = 40,                /**< times bfloat16 tokens */
  MOE_PREPARED_Q6_K_A16 = 41,                /**< times bfloat16 tokens */
  MOE_PREPARED_INT8_ROW_A16 = 42,            /**< times bfloat16 tokens */
  MOE_PREPARED_FP8_A16 = 43,                 /**< times bfloat16 tokens */
  MOE_PREPARED_NVFP4_A16 = 44,               /**< times bfloat16 tokens */
  MOE_PREPARED_INT4_BF16_A16 = 45,           /**< times bfloat16 tokens */
  MOE_PREPARED_INT4_ZERO_A16 = 46,           /**< times bfloat16 tokens */
  MOE_PREPARED_INT4_ZERO_G64_A16 = 47,       /**< times bfloat16 tokens */
  MOE_PREPARED_INT4_ZERO_G128_A16 = 48,      /**< times bfloat16 tokens */
  MOE_PREPARED_STORED_A16 = 49 /**< as STORED, times bfloat16 tokens */
} moe_prepared;

/* Of the weights w of an output that share a scale:
 *     INT8       d = max |w| / 127,                    q = round(w (1 / d)), away from 0 in a tie;  INT8_ROW too
 *     INT4       d = w / -8 of the w farthest from 0,  q = min(trunc(w (1 / d) + 8.5), 15) - 8;     INT4_BF16 too
 *     INT4_ZERO  d = highest / 15 - lowest / 15 of these w and 0, z = round(-lowest (1 / d)), q = round(w (1 / d)) + z in 0 ... 15
 *     MXFP4      d = 2^(exponent of max |w| - 2),      q the nearest of 0, 1/2, 1, 3/2, 2, 3, 4, 6 and their negatives
 *     FP8        d = max |w| / 448,                    q the nearest E4M3 of w (1 / d)
 *     NVFP4      f = max |w| / (6 * 448), of 16 d = f E4M3(max |w| / 6 / f), q as of MXFP4
 * in float32, w (1 / d) + 8.5 being rounded once; d is then rounded to float16 (INT8, INT4, IQ4_NL) or bfloat16 (INT4_BF16, before
 * q), and the weight is d q, of INT4_ZERO d (q - z), rounded to float32 where it is no float32.  IQ4_NL, Q4_K and Q6_K take scales that make the sum of squares of
 * errors small; the weights of Q4_K are round((d s) q - (d_min m)), those of Q6_K (d s) q.
 * Weight only (without _A8 or _A16): forward gives the bits of a layer with weight_dtype F32 and these weights.
 * With a tape it does so in every form, _A8 and _A16 too, and backward gives the gradients of that layer, to the bit, but those of the
 * matrices in few bits: these are frozen.
 * _A16: forward gives the bits of a layer with weight_dtype BF16, whose weights are these rounded to bfloat16, with MOE_MATMUL_NATIVE and
 * the same instructions, of any moe_matmul.  The weights of MXFP4 and FP8 with a power of two for d lose nothing by that.
 * _A8: what is multiplied with the weights (rows of x, activations) becomes integers as well, 32 features at a time: d_x =
 * max |x| / 127 in float32, 0 where that is below 2^-126; q_x as q of INT8.  Within 32 features (NVFP4: 16) products are summed as integers, exactly; of these sums an
 * output's chain is s = fma(d d_x, sum, s), from its bias on in ascending order, so that it has the same bits with all
 * instructions, products of any moe_matmul, threads, chunks and batches.  INT8_ROW: one d_x for all features, of at most 131072, and s =
 * fma(d d_x, sum of all, bias).  MXFP4 and NVFP4: d is half as large, q twice.  Q6_K: the sum
 * is that of s q q_x.  Q4_K: s = fma((d s) d_x, sum of q q_x, s), then s = fma(-(d_min m), d_x (sum of q_x), s). */

/** Prepare a layer: pack the experts' weights once, as the matrix products want them, instead of in every
 *  forward.  Few tokens gain most: their time is that of reading the weights.
 *  @param layer    [in]
 *  @param prepared [in] a moe_prepared; packs again what is packed already
 *  The copy takes 4 or 2 bytes for each weight, or the bits that stand beside its form, each matrix's outputs filled up to a
 *  multiple of 32, in forms of few bits its inputs too, to a multiple of 32, 64 (MXFP4, G64), 128 (FP8, NVFP4, G128) or 256
 *  (INT8_ROW).  It does not follow the parameters: after a change (a training step, a bind, writing through the pointers) prepare again.
 *  Forward looks at 16 values of each matrix of the experts it uses, and is refused with BAD_STATE where one has
 *  changed; a change that touches none of them it cannot see.  Backward reads the parameters themselves, but for few bits: what
 *  is packed so is frozen (see moe_tensor) until it is prepared otherwise, its gradient and an optimiser's step being refused;
 *  everything else of the layer is trained over it.
 *  An offloaded layer's slots then hold this form, as many as the limit allows, empty at first: prepare it right after
 *  moe_layer_offload, since old and new slots exist at once for a moment.
 *  F32 and BF16 are without effect where OPENBLAS or REFERENCE computes.  Wants the layer for itself.
 *  @return MOE_OK, INVALID_ARGUMENT (F32 for bfloat16 weights, for instance; Q4_K or Q6_K for sizes that are no multiples of 256; a
 *          limit too small for two slots), OUT_OF_MEMORY, BAD_STATE (a parameter has no memory), NOT_FINITE (in a form of few bits:
 *          a weight that is not finite, or too large for its scale); after an error the layer is as it was. */
MOE_API MOE_CHECK moe_status moe_layer_prepare(moe_layer *layer, int32_t prepared);

/* ------------------------------------------------------------------------------------------------------------
 * Presets: whole configurations of known models
 * ---------------------------------------------------------------------------------------------------------- */

/** Fill `config` as the named model has it, with its own sizes; then set what is different for you (sizes first of all).
 *  docs/presets.md lists what each one sets and from where.  The moe_layout that its model's files have, the published one
 *  first, stands behind each; LIBMOE holds all.  expert_groups, where a preset has them, point at static memory.
 *  NULL is ignored. */
MOE_API void moe_preset_mixtral(moe_layer_config *config, size_t struct_size);
/**< Mixtral 8x7B.  Its files: MIXTRAL, TRANSFORMERS_5 */
MOE_API void moe_preset_qwen2_moe(moe_layer_config *config, size_t struct_size);
/**< Qwen2-MoE.  Its files: QWEN2_MOE, TRANSFORMERS_5 */
MOE_API void moe_preset_qwen3_moe(moe_layer_config *config, size_t struct_size);
/**< Qwen3-MoE.  Its files: QWEN3_MOE, TRANSFORMERS_5 */
MOE_API void moe_preset_olmoe(moe_layer_config *config, size_t struct_size);
/**< OLMoE.  Its files: OLMOE, TRANSFORMERS_5 */
MOE_API void moe_preset_deepseek_v2(moe_layer_config *config, size_t struct_size);
/**< DeepSeek-V2; with n_groups = MOE_NO_GROUPS DeepSeek-V2-Lite.  Its files: DEEPSEEK, TRANSFORMERS_5 */
MOE_API void moe_preset_deepseek_v3(moe_layer_config *config, size_t struct_size);
/**< DeepSeek-V3.  Its files: DEEPSEEK, TRANSFORMERS_5 */
MOE_API void moe_preset_glm4_moe(moe_layer_config *config, size_t struct_size);
/**< GLM-4 MoE.  Its files: DEEPSEEK, TRANSFORMERS_5 */
MOE_API void moe_preset_gpt_oss(moe_layer_config *config, size_t struct_size);
/**< gpt-oss.  Its files: GPT_OSS_MXFP4, GPT_OSS */
MOE_API void moe_preset_granite_moe(moe_layer_config *config, size_t struct_size);
/**< GraniteMoE.  Its files: GRANITE_MOE */
MOE_API void moe_preset_jetmoe(moe_layer_config *config, size_t struct_size);
/**< JetMoE.  Its files: JETMOE */
MOE_API void moe_preset_phimoe(moe_layer_config *config, size_t struct_size);
/**< PhiMoE.  Its files: MIXTRAL */
MOE_API void moe_preset_dbrx(moe_layer_config *config, size_t struct_size);
/**< DBRX.  Its files: DBRX */
MOE_API void moe_preset_llama4(moe_layer_config *config, size_t struct_size);
/**< Llama-4.  Its files: LLAMA4, LLAMA4_TEXT */
MOE_API void moe_preset_minimax_m2(moe_layer_config *config, size_t struct_size);
/**< MiniMax-M2.  Its files: MINIMAX_M2 */
MOE_API void moe_preset_ernie4_5(moe_layer_config *config, size_t struct_size);
/**< ERNIE 4.5 MoE.  Its files: ERNIE4_5 */
MOE_API void moe_preset_longcat_flash(moe_layer_config *config, size_t struct_size);
/**< LongCat-Flash.  Its files: LONGCAT_FLASH */
MOE_API void moe_preset_switch(moe_layer_config *config, size_t struct_size);
/**< Switch Transformers.  Its files: SWITCH_ENCODER, SWITCH_DECODER */
MOE_API void moe_preset_jamba(moe_layer_config *config, size_t struct_size);
/**< Jamba.  Its files: JAMBA */
MOE_API void moe_preset_llama_cpp(moe_layer_config *config, size_t struct_size);
/**< llama.cpp.  Its files: MIXTRAL */
MOE_API void moe_preset_gemma4(moe_layer_config *config, size_t struct_size);
/**< Gemma 4.  Its files: GEMMA4 */
MOE_API void moe_preset_qwen3_vl_moe(moe_layer_config *config, size_t struct_size);
/**< Qwen3-VL-MoE.  Its files: QWEN3_VL_MOE */
MOE_API void moe_preset_qwen3_5_moe(moe_layer_config *config, size_t struct_size);
/**< Qwen3.5-MoE.  Its files: QWEN3_5_MOE */
MOE_API void moe_preset_dots1(moe_layer_config *config, size_t struct_size);
/**< dots.llm1.  Its files: DEEPSEEK, TRANSFORMERS_5 */
MOE_API void moe_preset_hunyuan(moe_layer_config *config, size_t struct_size);
/**< Hunyuan-A13B.  Its files: HUNYUAN */
MOE_API void moe_preset_nemotron_h(moe_layer_config *config, size_t struct_size);
/**< the MoE layers of Nemotron-H.  Its files: NEMOTRON_H */
MOE_API void moe_preset_lfm2_moe(moe_layer_config *config, size_t struct_size);
/**< LFM2-MoE.  Its files: LFM2_MOE */
MOE_API void moe_preset_afmoe(moe_layer_config *config, size_t struct_size);
/**< AFMoE.  Its files: AFMOE */
MOE_API void moe_preset_deepseek_v4(moe_layer_config *config, size_t struct_size);
/**< DeepSeek-V4.  Its files: DEEPSEEK_V4 */
MOE_API void moe_preset_nllb_moe(moe_layer_config *config, size_t struct_size);
/**< NLLB-MoE.  Its files: NLLB_ENCODER, NLLB_DECODER */

/* ------------------------------------------------------------------------------------------------------------
 * Forward and backward
 * ---------------------------------------------------------------------------------------------------------- */

/** What forward leaves for backward: the routing, probabilities and pre-activations of one call.  Belongs to one layer;
 *  reusable from step to step; grows to the largest call.  May outlive the layer. */
typedef struct moe_tape moe_tape;

/** Create an empty tape for `layer`; free it with moe_tape_free.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_tape_create(const moe_layer *layer, moe_tape **out);

/** Free a tape; NULL is a no-op. */
MOE_API void moe_tape_free(moe_tape *tape);

/** Keep what forward leaves in the caller's memory from the next forward on, in place of the library's.
 *  @param memory [in, nullable] aligned to 64 bytes, kept until the tape is freed or bound again; NULL = the library's own
 *  @param size   [in] at least moe_plan.tape_bytes of the calls to come; a call that needs more is refused
 *  Empties the tape.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_tape_bind(moe_tape *tape, void *memory, size_t size);

/** What a tape keeps beside the routing. */
typedef enum moe_tape_policy {
  MOE_TAPE_AUTO = 0, /**< FULL; or LEAN, where a memory limit is kept by it alone, or with larger chunks */
  MOE_TAPE_FULL = 1, /**< the experts' pre-activations: backward need not compute them again */
  MOE_TAPE_LEAN = 2  /**< nothing: backward computes them again from x, with the same bits */
} moe_tape_policy;

/** The experts that the tokens of one call used: recorded by one forward, replayed by others, saved and loaded.  (After
 *  MOE_OVERFLOW_NEXT_BEST these are not all those chosen: a replay has the same y, but losses count the experts used.)
 *  [T,C] as in moe_report, but a choice of expert e that was dropped is -2 - e and not -1: it is not computed in a replay
 *  either, and counts in the divisor of the others' weights as it did (see moe_renormalize). */
typedef struct moe_routing moe_routing;

/** Create an empty record; free it with moe_routing_free.  Keeps its context alive; grows to the largest call.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_routing_create(moe_context *context, moe_routing **out);

/** Free a record; NULL is a no-op. */
MOE_API void moe_routing_free(moe_routing *routing);

/** Bytes that moe_routing_save writes: 32 + 4 for each choice.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_routing_saved_size(const moe_routing *routing, size_t *size);

/** Write the record to memory, for a file: the same bytes on every machine (little-endian).
 *  @param memory [out] of `size` bytes, at least moe_routing_saved_size
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_routing_save(const moe_routing *routing, void *memory, size_t size);

/** Read what moe_routing_save wrote.  Checked whole before the record changes.
 *  @return MOE_OK, INVALID_ARGUMENT (not a record, cut off, changed, or with numbers that are neither -1, nor e, nor
 *          -2 - e of an expert e), OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_routing_load(moe_routing *routing, const void *memory, size_t size);

/** What one forward is told beside x. */
typedef struct moe_forward_options {
  size_t struct_size;
  uint64_t step;     /**< which training step this is, below 2^56: random numbers differ from step to step, and only by this
                          number */
  int32_t training;  /**< 1 = dropout, exploration and Sinkhorn's iteration act; 0 = they do not, and capacity goes by
                          eval_capacity_factor */
  int32_t reserved;  /**< 0 */
  const uint8_t *valid_mask;     /**< [T], nullable: 1 = a real token, 0 = padding, which no expert sees: its y and dx are 0,
                                      and it counts nowhere.  Its x must be finite all the same. */
  const int64_t *token_ids;      /**< [T], 0 to vocabulary_size - 1; of MOE_ROUTER_HASH, else NULL */
  const int32_t *expert_indices; /**< [T,K], nullable: the choice is this, -1 for none, and nothing is dropped; a token may
                                      name an expert twice.  Required by MOE_ROUTER_EXTERNAL, refused by
                                      MOE_ROUTER_EXPERT_CHOICE, which takes a replay. */
  const float *expert_weights;   /**< [T,K], with expert_indices: the weights too, which are then constants to the router
                                      (see moe_backward_options); NULL = as the router weighs.  Required by
                                      MOE_ROUTER_EXTERNAL. */
  int64_t sequence_length;       /**< tokens of each sequence, a divisor of T, 0 to 2^31 - 1; 0 = T, one sequence */
  const int64_t *global_counts;  /**< [E], of MOE_LOSS_MEGATRON_GLOBAL: choices counted elsewhere (earlier micro-batches,
                                      other ranks); this call's are added.  NULL = none */
  moe_routing *record;           /**< [out], nullable: gets the experts that each token chose */
  const moe_routing *replay;     /**< nullable: in place of expert_indices, a record of a call with as many tokens,
                                      choices and experts */
  size_t memory_limit;           /**< bytes of scratch and tape together, for this call and its backward; 0 = the context's */
  void *scratch;                 /**< [scratch_size], nullable, aligned to 64 bytes: used in place of the library's memory */
  size_t scratch_size;           /**< at least moe_plan.forward_bytes */
  int32_t tape_policy;           /**< a moe_tape_policy */
  int32_t reserved2;             /**< 0 */
  const uint8_t *loss_mask;      /**< [T], nullable = valid_mask: 1 = the token counts in losses and in the report, 0 = it is
                                      routed and computed, and counts in neither.  Padding that has 1 is routed for the sake
                                      of the losses alone: its probabilities and choices count (of HASH, SINKHORN in training
                                      and EXPERT_CHOICE its probabilities), no expert computes it, its y is 0, and
                                      its dx is what the losses' gradient comes to. */
  /* Numbers of yours in place of drawn ones, with training = 1 alone; gradients go through them as ever. */
  const float *noise;            /**< [T,E], nullable: the N(0,1) of moe_noise; with MOE_NOISE_NONE added to the logits as it is */
  const float *jitter;           /**< [T,H], nullable: u in  x * (1 + moe_layer_config.jitter * u) */
  const float *second;           /**< [T], nullable: random_second keeps a second choice of weight w where 2 w >= this */
  int64_t chunk_tokens;          /**< tokens that experts compute at once, 0 to 2^31 - 1, rounded up to a multiple of 256; fewer where a
                                      memory limit wants it; 0 = as moe_layer_plan says.  Changes no bit that a limit would not */
} moe_forward_options;

#define MOE_FORWARD_OPTIONS_INIT \
  { \
    sizeof(moe_forward_options), 0, 0, 0, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, 0, NULL, 0, 0, 0, NULL, NULL, NULL, \
    NULL, 0 \
  }

/** Fill `options` with the defaults (0: evaluation).  NULL is ignored. */
MOE_API void moe_forward_options_init(moe_forward_options *options, size_t struct_size);

/** Losses and statistics of one forward call.  Scalars are written; arrays are written where the caller gives memory.
 *  C choices a token: K, or E for MOE_ROUTER_EXPERT_CHOICE, whose choice number e is expert e or none.  Shared experts are
 *  in none of it. */
typedef struct moe_report {
  size_t struct_size;
  float balance_loss; /**< MOE_LOSS_BALANCE, E * sum over e of f_e P_e, where f_e is the share of the tokens that chose e, before
                           dropping, and P_e is mean_probability [Switch 2021, over all K choices]: K at perfect balance; 0 for T = 0 */
  float z_loss;       /**< MOE_LOSS_Z, the mean over tokens of logsumexp(logits)^2 [ST-MoE 2022]; 0 for T = 0 */
  float aux_loss;     /**< balance_coef * balance_loss + z_coef * z_loss + the layer's losses times their coefficients: add
                           it to the objective */
  float entropy;      /**< mean over tokens of -sum p ln p of the router's softmax, in nats: 0 to ln E */
  int64_t *tokens_per_expert; /**< [E], nullable: how many tokens e computes (dropped ones are not among them) */
  float *mean_probability;    /**< [E], nullable: P_e, the mean of the router's softmax over the valid tokens; 0 without a
                                   gate, as are entropy, balance_loss and z_loss */
  int32_t *expert_indices;    /**< [T,C], nullable: chosen experts, best first (of MOE_ROUTER_HIERARCHICAL within each group);
                                   -1 for a choice that was dropped or is none */
  float *expert_weights;      /**< [T,C], nullable: the weights of expert_indices in y; 0 where these are -1 */
  int64_t *dropped_per_expert; /**< [E], nullable: choices of e that found no room, or second ones not kept at random */
  float *losses;               /**< [n_losses], nullable: the layer's losses, without their coefficients */
  int64_t n_dropped;           /**< the sum of dropped_per_expert */
  int64_t n_valid;             /**< tokens that are no padding; with moe_forward_options.loss_mask those that count, and so
                                    is all that stands here but expert_indices and expert_weights of these */
  float max_over_mean;         /**< of tokens_per_expert: largest / mean, 1 at perfect balance */
  float variation;             /**< of tokens_per_expert: standard deviation / mean, 0 at perfect balance */
  float dead_share;            /**< share of the experts without a token */
  int32_t reserved;            /**< 0 */
  /* Of each of the B = T / sequence_length sequences by itself (B = 1 for sequence_length 0), for moe_pooled_sequence_loss; 0
   * without a gate. */
  int64_t *sequence_counts;    /**< [B,E], nullable: tokens whose most probable expert is e, the lowest among equals */
  float *sequence_probability; /**< [B,E], nullable: mean of the router's softmax over the sequence's tokens */
  int64_t *sequence_valid;     /**< [B], nullable: tokens of the sequence that count */
} moe_report;

#define MOE_REPORT_INIT \
  { \
    sizeof(moe_report), 0.0f, 0.0f, 0.0f, 0.0f, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0.0f, 0.0f, 0.0f, 0, NULL, NULL, \
    NULL \
  }

/** Fill `report` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_report_init(moe_report *report, size_t struct_size);

/** Memory of a call, in bytes: exactly what forward and backward will ask for. */
typedef struct moe_plan {
  size_t struct_size;
  size_t forward_bytes;  /**< scratch of forward */
  size_t backward_bytes; /**< scratch of backward with dx; 0 without a tape */
  size_t tape_bytes;     /**< what the tape holds from forward to backward; 0 without */
  size_t total_bytes;    /**< tape and the larger of both scratches: what a memory limit bounds */
  int64_t chunk_tokens;  /**< tokens that experts compute at once */
  int32_t tape_policy;   /**< MOE_TAPE_FULL or LEAN, as chosen */
  int32_t reserved;      /**< 0 */
  int64_t n_tokens;      /**< T */
} moe_plan;

#define MOE_PLAN_INIT { sizeof(moe_plan), 0, 0, 0, 0, 0, 0, 0, 0 }

/** Fill `plan` with 0.  NULL is ignored. */
MOE_API void moe_plan_init(moe_plan *plan, size_t struct_size);

/** What a forward of n_tokens tokens with these options will take, and the backward after it; nothing is allocated.
 *  A memory limit (of the options, or else of the context) is kept in this order: everything at once with a FULL tape; in
 *  as few chunks of tokens as fit; with a LEAN tape, where that allows larger chunks.  Chunks and tape policies do not change a bit of any
 *  result, with float32 weights (with bfloat16 weights, gradients of weights: see moe_layer_config).
 *  @param layer    [in]
 *  @param n_tokens [in] T
 *  @param options  [in, nullable] as for the forward: the limit and the policy count, and what changes the sizes
 *  @param taped    [in] 1 = forward will have a tape
 *  @param plan     [in, out] struct_size in, the rest out
 *  @return MOE_OK, INVALID_ARGUMENT (also where the limit is too small: the message says what would do), OUT_OF_MEMORY
 *          (no address space holds it), NOT_FINITE (options.expert_weights).  Any thread. */
MOE_API MOE_CHECK moe_status moe_layer_plan(const moe_layer *layer, int64_t n_tokens, const moe_forward_options *options,
                                            int32_t taped, moe_plan *plan);

/** A plan as a line of text for people, such as "16384 tokens in 32 chunks of 512, lean tape; scratch 41.2 MiB forward,
 *  42.0 MiB backward; tape 1.5 MiB; 43.5 MiB in all".  Its words may change from version to version.
 *  @param plan   [in]  as moe_layer_plan has filled it
 *  @param text   [out] [size], nullable where size is 0: cut off where it is full, and always terminated
 *  @param size   [in]  bytes of text; 160 are enough for what fits in memory
 *  @param length [out, nullable] bytes of the whole line without its end, as snprintf returns it
 *  @return MOE_OK, INVALID_ARGUMENT (text NULL with a size; a plan that is not filled).  Any thread. */
MOE_API MOE_CHECK moe_status moe_plan_describe(const moe_plan *plan, char *text, size_t size, size_t *length);

/** y = layer(x).
 *  @param layer    [in]
 *  @param x        [in]  [T,H] of the layer's io_dtype; may be NULL when T = 0
 *  @param n_tokens [in]  T >= 0, T * (C + S) < 2^31, C the choices of a token (see moe_report), S the shared experts
 *  @param options  [in, nullable] NULL = evaluation
 *  @param y        [out] [T,H] of the same dtype; overlaps neither x nor a parameter
 *  @param tape     [out, nullable] filled for moe_layer_backward; NULL when there will be none
 *  @param report   [out, nullable]
 *  A logit of minus infinity (a router bias may be, and a weight that meets nothing but numbers above 0) means "never": the
 *  expert gets no gradient by it and passes none on to x.  A NaN or plus infinity is an error naming the token, and so are
 *  fewer than K experts above minus infinity, and weights whose divisor is 0.
 *  Thread-safe with distinct tapes, outputs, reports and records; in training not with router_batch_norm or warmup_steps.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BAD_STATE (another layer's tape; the weights have changed
 *          since moe_layer_prepare; a tape, and weights prepared as BF16 that are not, or an offloaded layer; a parameter
 *          has no memory), NOT_FINITE, CANCELLED, IO (an offloaded layer's file).  After an error this layer's tape is
 *          empty. */
MOE_API MOE_CHECK moe_status moe_layer_forward(const moe_layer *layer, const void *x, int64_t n_tokens,
                                               const moe_forward_options *options, void *y, moe_tape *tape,
                                               moe_report *report);

/** Steps parameters by their gradients; see Optimisers below. */
typedef struct moe_optimizer moe_optimizer;

/** What one backward is told beside dy. */
typedef struct moe_backward_options {
  size_t struct_size;
  const float *d_mean_probability; /**< [E], nullable: gradient of the objective with respect to mean_probability, for losses
                                        of your own and moe_pooled_balance_loss; without a gate it goes nowhere */
  float *d_expert_weights;         /**< [out] [T,K], nullable: gradient with respect to the weights that forward was given, 0
                                        where there was no expert; overwritten; refused after any other forward */
  void *scratch;                   /**< [scratch_size], nullable, aligned to 64 bytes: used in place of the library's memory */
  size_t scratch_size;             /**< at least moe_plan.backward_bytes */
  moe_optimizer *optimizer;        /**< nullable: backward and step in one, see moe_layer_backward; of a layer with
                                        MOE_UNALLOCATED_EXPERT_GRADIENTS.  Made for exactly the layer's parameters but
                                        those marked * at moe_layer_parameter_count, in their order. */
  float clip_factor;               /**< of optimizer, > 0: what every gradient is multiplied by; 0 = 1 */
  int32_t frozen_experts;          /**< 1 = gradients of the experts' matrices and their biases (shared experts' too) are neither
                                        computed nor written, and need no memory: a third of backward's products less */
  const float *d_sequence_probability; /**< [B,E], nullable: gradient of the objective with respect to
                                            moe_report.sequence_probability */
} moe_backward_options;

#define MOE_BACKWARD_OPTIONS_INIT { sizeof(moe_backward_options), NULL, NULL, NULL, 0, NULL, 0.0f, 0, NULL }

/** Fill `options` with the defaults (NULL).  NULL is ignored. */
MOE_API void moe_backward_options_init(moe_backward_options *options, size_t struct_size);

/** Gradients of  L = <dy, y> + d_aux_loss * aux_loss  for the call that filled `tape`.
 *  @param layer      [in]  parameters must be as they were in forward; their gradients are added to (+=)
 *  @param tape       [in]  stays filled: a second backward adds the same gradients again
 *  @param x          [in]  [T,H] of the layer's io_dtype, the same as in forward
 *  @param dy         [in]  [T,H] of the same dtype, gradient of the objective with respect to y
 *  @param d_aux_loss [in]  gradient of the objective with respect to aux_loss: 1 when it is simply added
 *  @param dx         [out, nullable] [T,H] of the same dtype, overwritten; overlaps neither x, dy, a parameter nor a gradient
 *  @param options    [in, nullable]
 *  The routing is replayed, not decided again, and random numbers are drawn again as they were.  Choices and counts are
 *  constants: the router learns through the weights of the chosen experts and through the losses.
 *  Calls on one layer take turns.
 *
 *  With options.optimizer the call also makes one step: the bits of moe_layer_zero_grad, this function and
 *  moe_optimizer_step with gradients times clip_factor, but the gradient of an expert exists only until its step, and the
 *  next expert's takes its place.  Experts without a token are stepped too.  Other gradients, of the router for instance,
 *  are kept until the next call; gradients bound for experts are left alone.  The call wants the layer and the optimiser
 *  for itself.  The cancel callback is asked until the first expert is stepped, and no more after that: CANCELLED means
 *  that no parameter has changed and no step was counted.  After a step the tape is of no more use: parameters have moved.
 *  In several chunks of tokens (see moe_plan) the experts' inner gradients are computed twice.
 *  @return MOE_OK, INVALID_ARGUMENT (also an optimizer for other tensors), OUT_OF_MEMORY, BAD_STATE (empty or another
 *          layer's tape, inference_only; no optimizer, and no memory for some gradient; an optimizer and a layer without
 *          MOE_UNALLOCATED_EXPERT_GRADIENTS, or with weights in few bits, or whose state has no memory; weights that have been
 *          prepared in few bits since forward, or no longer are), CANCELLED (gradients are then partly added: zero them). */
MOE_API MOE_CHECK moe_status moe_layer_backward(moe_layer *layer, const moe_tape *tape, const void *x, const void *dy,
                                                float d_aux_loss, void *dx, const moe_backward_options *options);

/** transformers' load_balancing_loss_func over several layers together:  E sum over e of f_e P_e  with f and P pooled over
 *  the layers' tokens before they are multiplied; balanced K.
 *  @param n_layers           [in] L >= 0
 *  @param n_experts          [in] E
 *  @param tokens_per_expert  [in] [L,E] of the layers' reports
 *  @param n_valid            [in] [L] of the layers' reports
 *  @param mean_probability   [in] [L,E] of the layers' reports
 *  @param loss               [out] 0 where there are no tokens
 *  @param d_mean_probability [out, nullable] [L,E] its gradient, for each layer's moe_backward_options (times the
 *                            coefficient)
 *  @return MOE_OK, INVALID_ARGUMENT.  Any thread. */
MOE_API MOE_CHECK moe_status moe_pooled_balance_loss(int64_t n_layers, int64_t n_experts, const int64_t *tokens_per_expert,
                                                     const int64_t *n_valid, const float *mean_probability, float *loss,
                                                     float *d_mean_probability);

/** The same for each sequence by itself, then the mean over sequences:  1/B sum over b of E sum over e of f_be P_be.  With the
 *  reports' sequence_counts it is the loss of Switch in transformers, whose layers' tokens stand one behind the other in
 *  each sequence; balanced 1.
 *  @param n_layers           [in] L >= 0
 *  @param n_sequences        [in] B >= 1; one without tokens counts as 0
 *  @param n_experts          [in] E
 *  @param counts             [in] [L,B,E] sequence_counts of the layers' reports
 *  @param n_valid            [in] [L,B] sequence_valid
 *  @param mean_probability   [in] [L,B,E] sequence_probability
 *  @param loss               [out] 0 where there are no tokens
 *  @param d_mean_probability [out, nullable] [L,B,E] its gradient, for each layer's moe_backward_options.d_sequence_probability
 *  @return MOE_OK, INVALID_ARGUMENT.  Any thread. */
MOE_API MOE_CHECK moe_status moe_pooled_sequence_loss(int64_t n_layers, int64_t n_sequences, int64_t n_experts,
                                                      const int64_t *counts, const int64_t *n_valid,
                                                      const float *mean_probability, float *loss,
                                                      float *d_mean_probability);

/* ------------------------------------------------------------------------------------------------------------
 * Running statistics
 * ---------------------------------------------------------------------------------------------------------- */

/** Sums of reports over many calls. */
typedef struct moe_statistics moe_statistics;

/** Create empty statistics for layers with n_experts experts; free them with moe_statistics_free.  Keep the context alive.
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_statistics_create(moe_context *context, int64_t n_experts, moe_statistics **out);

/** Free statistics; NULL is a no-op. */
MOE_API void moe_statistics_free(moe_statistics *statistics);

/** Add a report.  tokens_per_expert must be set in it; mean_probability and dropped_per_expert count where they are.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_statistics_add(moe_statistics *statistics, const moe_report *report);

/** Forget all reports.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_statistics_reset(moe_statistics *statistics);

/** The reports so far as if they had been one call: counts added up, means by tokens, max_over_mean, variation and
 *  dead_share of the sums; losses are means by tokens.
 *  @param report [in, out] struct_size and arrays ([E]; expert_indices, expert_weights and losses are not written)
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_statistics_read(const moe_statistics *statistics, moe_report *report);

/* ------------------------------------------------------------------------------------------------------------
 * Optimisers: over any tensors, the layer's and the caller's own
 * ---------------------------------------------------------------------------------------------------------- */

/* moe_optimizer: moments and step count for a list of tensors.  Keeps its context alive; keeps no pointer to the tensors.
 *  Of BF16 and F16 tensors it keeps the values in float32 as well, 4 bytes for each: a step goes on from these and writes them to
 *  `data`, rounded, so that steps add up which are smaller than the type resolves.  A value in `data` that is not the one
 *  the last step wrote (you have set it since) is taken over first.  With stochastic_rounding BF16 tensors have no such copy: a step
 *  computes in float32 from `data`, and rounds the new values up or down by chance, with the mean right [Zamirai 2020].
 *
 *  Memory: 4 bytes for each moment of each element (AdamW has two moments, Muon one, SGD one with momentum and none without).  With state_dtype MOE_DTYPE_BF16 it is 2,
 *  half of it; a step computes in float32 and rounds the new moments up or down by chance, with the mean right
 *  [Zamirai 2020]: the nearest bfloat16 of v would mostly be the old one, since beta2 v differs from v by less than half a
 *  step.  Each moment then has a relative error of up to 2^-7 (AdamW's updates, of some 0.3 %, which average out).
 *  Chance is a function of (seed, step, tensor, element), so that bits depend neither on n_threads nor on the processor: 16
 *  bits are added below those that stay, and the rest is cut off.  They are the lower half of a word for the first moment,
 *  the upper half for the second.  The word of element i of tensor number n of the list, in arithmetic of 32 bits, is
 *    x = 0x9E3779B9 (i mod 2^16) ^ k0;   x = 0x7FEB352D (x ^ x >> 16);   x = 0x846CA68B (x ^ x >> 15 ^ k1);   x ^ x >> 16
 *  the hash of [Wellons 2018], with k0 and k1 the first two words of Philox4x32-10 [Philox 2011] for the key `seed` and the
 *  counter (i / 2^16 rounded down, n, t mod 2^32, t / 2^32 rounded down * 2^8 + 25), t = 1 being the first step; values of tensors have
 *  words of their own, with 26 in place of 25, of which the lower half counts.  Making it takes
 *  little time: where memory is the limit AdamW moves 20 bytes for an element in place of 28; in the cache it takes a quarter longer. */

/** AdamW [AdamW 2019], as torch.optim.AdamW:
 *    p -= lr * weight_decay * p;   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
 *    p -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon) */
typedef struct moe_adamw_config {
  size_t struct_size;
  double learning_rate;      /**< >= 0 */
  double beta1;              /**< [0, 1) */
  double beta2;              /**< [0, 1) */
  double epsilon;            /**< > 0 */
  double weight_decay;       /**< >= 0, decoupled */
  int32_t state_dtype;       /**< of m and v: MOE_DTYPE_F32 or BF16, see moe_optimizer */
  int32_t unallocated_state; /**< 1 = the state's memory is yours, see moe_optimizer_bind_state */
  uint64_t seed;             /**< of BF16's rounding; any, another one for another optimiser */
  int32_t stochastic_rounding; /**< 1 = BF16 tensors have no copy in float32, see moe_optimizer */
  int32_t reserved;            /**< 0 */
} moe_adamw_config;

#define MOE_ADAMW_CONFIG_INIT { sizeof(moe_adamw_config), 1e-3, 0.9, 0.999, 1e-8, 0.01, MOE_DTYPE_F32, 0, 0, 0, 0 }

/** SGD with momentum and decoupled weight decay:
 *    p -= lr * weight_decay * p;   v = momentum v + g;   p -= lr * v
 *  (torch.optim.SGD adds weight_decay * p to the gradient instead; with weight_decay = 0 they agree.) */
typedef struct moe_sgd_config {
  size_t struct_size;
  double learning_rate;      /**< >= 0 */
  double momentum;           /**< [0, 1); 0: there is no v, nor can be later */
  double weight_decay;       /**< >= 0, decoupled */
  int32_t state_dtype;       /**< of v: MOE_DTYPE_F32 or BF16, see moe_optimizer */
  int32_t unallocated_state; /**< 1 = the state's memory is yours, see moe_optimizer_bind_state */
  uint64_t seed;             /**< of BF16's rounding; any, another one for another optimiser */
  int32_t stochastic_rounding; /**< 1 = BF16 tensors have no copy in float32, see moe_optimizer */
  int32_t reserved;            /**< 0 */
} moe_sgd_config;

#define MOE_SGD_CONFIG_INIT { sizeof(moe_sgd_config), 1e-3, 0.0, 0.0, MOE_DTYPE_F32, 0, 0, 0, 0 }

/** Muon [Muon 2024], with the update's size of [Moonlight 2025], for matrices; AdamW for all else.  Of each matrix by itself,
 *  with r rows and c columns:
 *    v = momentum v + g;   u = g + momentum v;   p -= lr * weight_decay * p;   p -= lr * 0.2 sqrt(max(r, c)) * O(u)
 *  O(u) is u with all its singular values brought near 1: X = u / (|u| + 1e-7) in the 2-norm of all elements, transposed if
 *  r > c, then five times, in float32,
 *    A = X X^T;   X = 3.4445 X + (-4.7750 A + 2.0315 A A) X
 *  A tensor [E,r,c] is E matrices, one of [a,b,r,c] a * b.  A matrix has one moment, v; other tensors have AdamW's two, with
 *  the same lr and weight_decay.  The iteration has memory of its own, made with the optimiser: with m the smaller of r
 *  and c, 8 (r c + m^2) bytes of its largest matrix, and some for each thread.  Its products are the library's own, and
 *  have the same bits in every context. */
typedef struct moe_muon_config {
  size_t struct_size;
  double learning_rate;      /**< >= 0, of both */
  double momentum;           /**< [0, 1), of matrices */
  double beta1;              /**< [0, 1), of AdamW */
  double beta2;              /**< [0, 1), of AdamW */
  double epsilon;            /**< > 0, of AdamW */
  double weight_decay;       /**< >= 0, decoupled, of both */
  const uint8_t *by_adamw;   /**< nullable, [count] one for each tensor: 1 = AdamW's, 0 = Muon's, with two dimensions at least.
                                  NULL = AdamW's are tensors of one dimension; those whose names end with bias or constant;
                                  and embed.weight, positions.weight and output.weight, a model's ends */
  int32_t state_dtype;       /**< of the moments: MOE_DTYPE_F32 or BF16, see moe_optimizer */
  int32_t unallocated_state; /**< 1 = the state's memory is yours, see moe_optimizer_bind_state */
  uint64_t seed;             /**< of BF16's rounding; any, another one for another optimiser */
  int32_t stochastic_rounding; /**< 1 = BF16 tensors have no copy in float32, see moe_optimizer */
  int32_t reserved;            /**< 0 */
} moe_muon_config;

#define MOE_MUON_CONFIG_INIT { sizeof(moe_muon_config), 1e-3, 0.95, 0.9, 0.95, 1e-8, 0.1, NULL, MOE_DTYPE_F32, 0, 0, 0, 0 }

/** Fill with the defaults of PyTorch, those of Muon with [Moonlight 2025]'s, as the macros do.  NULL is ignored. */
MOE_API void moe_adamw_config_init(moe_adamw_config *config, size_t struct_size);
MOE_API void moe_sgd_config_init(moe_sgd_config *config, size_t struct_size);
MOE_API void moe_muon_config_init(moe_muon_config *config, size_t struct_size);

/** Create an optimiser for `count` tensors, its moments 0.
 *  @param context [in] is kept alive
 *  @param config  [in, nullable] NULL = the defaults
 *  @param tensors [in] [count], of which shapes and dtypes are remembered and no pointer is kept; data and grad may be NULL.
 *                 Each is listed once: tensors that share memory are refused here, in every step and in clipping
 *  @param count   [in] >= 0
 *  @param out     [out] free it with moe_optimizer_free
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_adamw_create(moe_context *context, const moe_adamw_config *config,
                                              const moe_tensor *tensors, int64_t count, moe_optimizer **out);
MOE_API MOE_CHECK moe_status moe_sgd_create(moe_context *context, const moe_sgd_config *config,
                                            const moe_tensor *tensors, int64_t count, moe_optimizer **out);
MOE_API MOE_CHECK moe_status moe_muon_create(moe_context *context, const moe_muon_config *config,
                                             const moe_tensor *tensors, int64_t count, moe_optimizer **out);

/** Free an optimiser; NULL is a no-op. */
MOE_API void moe_optimizer_free(moe_optimizer *optimizer);

/** Bytes of an optimiser's state: its moments and float32 copies.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_optimizer_state_size(const moe_optimizer *optimizer, size_t *size);

/** Use the caller's memory as an optimiser's state, as it is: bytes of 0, a new file's for instance, are the state of a new
 *  optimiser; others go on from there.  The step count is not among it: moe_training_load restores that.
 *  @param optimizer [in] created with unallocated_state = 1; without memory its steps are refused
 *  @param memory    [in] aligned to 4 bytes; kept until the optimiser is freed or bound again
 *  @param size      [in] at least moe_optimizer_state_size
 *  Wants the optimiser for itself.
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (it has memory of its own). */
MOE_API MOE_CHECK moe_status moe_optimizer_bind_state(moe_optimizer *optimizer, void *memory, size_t size);

/** One step: reads each tensor's grad, changes its data.
 *  @param tensors [in] [count], the same list in the same order as at creation (pointers may differ, sizes and dtypes may
 *                 not); every data and grad set.  Checked whole before anything changes.
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (the state has no memory), OUT_OF_MEMORY (a list of more than 16 tensors is
 *          sorted in scratch; nothing is changed). */
MOE_API MOE_CHECK moe_status moe_optimizer_step(moe_optimizer *optimizer, const moe_tensor *tensors, int64_t count);

/** One step with clipped gradients: the bits of moe_clip_grad_norm followed by moe_optimizer_step, in one pass over the
 *  gradients less.  They are multiplied by min(1, max_norm / (norm + 1e-6)) while they are read, and stay as they are.
 *  @param tensors  [in] [count], as in moe_optimizer_step
 *  @param max_norm [in] > 0; INFINITY only measures, and steps
 *  @param norm     [out, nullable] the 2-norm over all gradients together, before scaling
 *  @return as moe_optimizer_step; NOT_FINITE (some gradient is not; nothing is changed and no step counted, the message names
 *          the tensor). */
MOE_API MOE_CHECK moe_status moe_optimizer_step_clipped(moe_optimizer *optimizer, const moe_tensor *tensors,
                                                        int64_t count, double max_norm, double *norm);

/** Set the learning rate of the steps to come, for schedules.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_optimizer_set_learning_rate(moe_optimizer *optimizer, double learning_rate);

/** Set AdamW's beta1, or the momentum of SGD or Muon, of the steps to come, for schedules.  AdamW divides m by 1 - beta1^t with the beta1 of
 *  step t, as torch.optim.AdamW does.
 *  @param momentum [in] [0, 1); of SGD that was created with momentum 0 it stays 0
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (SGD without a velocity). */
MOE_API MOE_CHECK moe_status moe_optimizer_set_momentum(moe_optimizer *optimizer, double momentum);

/** How the learning rate goes with the number t of steps taken before, 0, 1, 2, ...; lr is the peak, n = total_steps. */
typedef enum moe_schedule_kind {
  /* First, while t < warmup_steps, lr t / warmup_steps; then with w = (t - warmup_steps) / (n - warmup_steps), at most 1,
   * and f = final_fraction */
  MOE_SCHEDULE_CONSTANT = 0,        /**< lr */
  MOE_SCHEDULE_LINEAR = 1,          /**< lr (f + (1 - f) (1 - w)); transformers' linear schedule */
  MOE_SCHEDULE_COSINE = 2,          /**< lr (f + (1 - f) (1 + cos(pi w)) / 2); [SGDR 2017], transformers' cosine schedule */
  /* [1cycle 2017], torch.optim.lr_scheduler.OneCycleLR: from lr / div_factor up to lr at step top = pct_start n - 1,
   * then down to lr / div_factor / final_div_factor at step n - 1, and so on from there.  Each way from a to b is */
  MOE_SCHEDULE_ONE_CYCLE = 3,       /**< b + (a - b) (1 + cos(pi w)) / 2, w from 0 to 1 */
  MOE_SCHEDULE_ONE_CYCLE_LINEAR = 4 /**< a + (b - a) w */
} moe_schedule_kind;

/** A learning rate for every step. */
typedef struct moe_schedule {
  size_t struct_size;
  int32_t kind;            /**< a moe_schedule_kind */
  int32_t reserved;        /**< 0 */
  double learning_rate;    /**< the peak lr, >= 0 */
  int64_t warmup_steps;    /**< >= 0; 0 for one cycle */
  int64_t total_steps;     /**< n >= 1, >= warmup_steps; 0 with CONSTANT, which does not read it */
  double final_fraction;   /**< [0, 1], of LINEAR and COSINE */
  double pct_start;        /**< [0, 1], the share of steps in which one cycle rises */
  double div_factor;       /**< > 0 of one cycle, else 0 or more */
  double final_div_factor; /**< > 0 of one cycle, else 0 or more */
  double base_momentum;    /**< [0, 1), of one cycle: the momentum at the top, */
  double max_momentum;     /**< [0, 1), and at both ends; see moe_momentum */
} moe_schedule;

#define MOE_SCHEDULE_INIT { sizeof(moe_schedule), MOE_SCHEDULE_CONSTANT, 0, 1e-3, 0, 0, 0.0, 0.3, 25.0, 1e4, 0.85, 0.95 }

/** Fill `schedule` as MOE_SCHEDULE_INIT does.  NULL is ignored. */
MOE_API void moe_schedule_init(moe_schedule *schedule, size_t struct_size);

/** The learning rate of a step, for moe_optimizer_set_learning_rate.  A pure function, any thread; its cosine is the library's
 *  own, and the bits are the same on every processor.
 *  @param schedule [in]
 *  @param step     [in] >= 0, steps taken before
 *  @param out      [out]
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_learning_rate(const moe_schedule *schedule, int64_t step, double *out);

/** The momentum of a step of one cycle, for moe_optimizer_set_momentum: from max_momentum down to base_momentum while the rate
 *  rises, and back while it falls, in the same way; as torch.optim.lr_scheduler.OneCycleLR cycles beta1, or SGD's momentum.
 *  @param schedule [in] MOE_SCHEDULE_ONE_CYCLE or ONE_CYCLE_LINEAR: the others leave momentum alone
 *  @param step     [in] >= 0, steps taken before
 *  @param out      [out]
 *  @return MOE_OK, INVALID_ARGUMENT.  Any thread. */
MOE_API MOE_CHECK moe_status moe_momentum(const moe_schedule *schedule, int64_t step, double *out);

/** Make some tensors a group of their own: their learning rate is learning_rate_scale times the optimiser's, and their weight
 *  decay is this one.  (Decay 0 is usual for biases, norms and gains.)  A tensor in no group has 1 and the config's weight_decay.
 *  Training states keep groups.
 *  @param indices             [in] [count], places in the list of tensors at creation
 *  @param count               [in] >= 0
 *  @param learning_rate_scale [in] >= 0; 0 leaves the values as they are and moves the moments
 *  @param weight_decay        [in] >= 0, decoupled: p -= learning_rate_scale * lr * weight_decay * p
 *  @return MOE_OK, INVALID_ARGUMENT (nothing is changed). */
MOE_API MOE_CHECK moe_status moe_optimizer_set_group(moe_optimizer *optimizer, const int64_t *indices, int64_t count,
                                                     double learning_rate_scale, double weight_decay);

/** Scale all gradients by min(1, max_norm / (norm + 1e-6)), norm = the 2-norm over all of them together, as
 *  torch.nn.utils.clip_grad_norm_.
 *  @param context  [in]
 *  @param tensors  [in] [count], every grad set
 *  @param max_norm [in] > 0; INFINITY only measures
 *  @param norm     [out, nullable] the norm before scaling
 *  @return MOE_OK, INVALID_ARGUMENT, NOT_FINITE (some gradient is not; the message names the tensor), OUT_OF_MEMORY (as
 *          moe_optimizer_step); after an error nothing is scaled. */
MOE_API MOE_CHECK moe_status moe_clip_grad_norm(moe_context *context, const moe_tensor *tensors, int64_t count,
                                                double max_norm, double *norm);

/** A clipping threshold that follows the norms it sees, after [ZClip 2025]: losses of balance, and training itself, move the
 *  norms, and a fixed threshold then cuts always or never.  It is yours, and is saved by saving it.
 *    The first warmup_steps norms pass; mean and variance are theirs.  Then with z = (norm - mean) / sqrt(variance)
 *      max_norm = mean + sqrt(variance) threshold^2 / z   where z > threshold and variance > 0;   else INFINITY
 *      g = min(norm, mean + threshold sqrt(variance)) (norm, where variance is 0)
 *      mean = decay mean + (1 - decay) g;   variance = decay variance + (1 - decay) (g - mean)^2
 *  The further a norm is beyond the threshold, the nearer to the mean it is brought.  (The paper has g = min(norm, max_norm),
 *  which makes the variance smaller the more there is to clip: after a rise of the norms to another level it would clip for
 *  ever.  Here the variance grows until the new level is none to clip, as long as decay * threshold > 1.) */
typedef struct moe_clip_state {
  size_t struct_size;
  double decay;         /**< [0, 1) */
  double threshold;     /**< > 1, in standard deviations */
  int64_t warmup_steps; /**< >= 1 */
  double mean;          /**< >= 0, of the norms; written, 0 at first */
  double variance;      /**< >= 0; written, 0 at first */
  int64_t count;        /**< norms seen, at least 0 and up to warmup_steps; written, 0 at first */
} moe_clip_state;

#define MOE_CLIP_STATE_INIT { sizeof(moe_clip_state), 0.97, 2.5, 25, 0.0, 0.0, 0 }

/** Fill `state` with the paper's numbers, as MOE_CLIP_STATE_INIT does.  NULL is ignored. */
MOE_API void moe_clip_state_init(moe_clip_state *state, size_t struct_size);

/** What this step's norm may be at most, for moe_optimizer_step_clipped; the state takes note of the norm.  No state but yours,
 *  which the call wants for itself.
 *  @param state    [in, out]
 *  @param norm     [in] >= 0, of all gradients of this step: moe_clip_grad_norm with INFINITY measures it
 *  @param max_norm [out] > 0; INFINITY where nothing is to be clipped
 *  @return MOE_OK, INVALID_ARGUMENT, NOT_FINITE (the norm is not, or its square is not; the state is as it was). */
MOE_API MOE_CHECK moe_status moe_adaptive_clip(moe_clip_state *state, double norm, double *max_norm);

/** moe_optimizer_step_clipped with what moe_adaptive_clip makes of the norm; it is measured once.
 *  @param tensors [in] [count], as in moe_optimizer_step
 *  @param state   [in, out]
 *  @param norm    [out, nullable] before scaling
 *  @return as moe_optimizer_step_clipped; NOT_FINITE (as those two; nothing is changed, the state neither). */
MOE_API MOE_CHECK moe_status moe_optimizer_step_adaptive(moe_optimizer *optimizer, const moe_tensor *tensors,
                                                         int64_t count, moe_clip_state *state, double *norm);

/* ------------------------------------------------------------------------------------------------------------
 * Checkpoints: safetensors files, layers in the layouts of known models, training states
 * ---------------------------------------------------------------------------------------------------------- */

/* Files are written whole or not at all: into a new file beside `path`, which is fsynced, checked and renamed, and then the
 * folder is fsynced.  Killed at any moment, `path` holds the old file or the new one; what may be left over is a file
 * NAME.<process>-<time>.tmp, NAME being the first 60 bytes of the file's.  Where `path` is a link, the file behind it is
 * replaced; a new file has mode and owner of the one it replaces, as far as the system lets us.  Other names of the old file
 * (hard links) keep the old one.  Devices, pipes, sockets and folders are refused, and never replaced.
 *
 * Nothing in a file is believed before it has been checked, and what has been checked is read once, into memory.  All that
 * is copied is read with pread: a file that was cut short, or written to since it was opened, is MOE_ERROR_IO.  (It is told
 * by its size and the time of its last change, so that a change within one tick of the clock is not seen.)  What cannot be
 * guarded is memory that is the file itself, `data` of moe_checkpoint_tensor and moe_mapping_data: who cuts such a file
 * short while it is open makes reading there a SIGBUS, and who overwrites it changes it.  Replacing a file, as the functions
 * here do, is harmless. */

/** An open safetensors file, or several that an index file names, or a GGUF file: read-only.  Keeps its context alive. */
typedef struct moe_checkpoint moe_checkpoint;

/** A tensor in a checkpoint: row-major without gaps. */
typedef struct moe_stored_tensor {
  size_t struct_size;
  const char *name; /**< of the tensor in its file */
  int32_t dtype;    /**< a moe_dtype */
  int32_t rank;     /**< a number of dimensions, 0 to 8; 0 is one element */
  int64_t shape[8]; /**< entries from `rank` on: 0 where given, not read where taken */
  const void *data; /**< at any address, which need not be a multiple of the element's size: published files have such
                         tensors.  moe_checkpoint_read_tensor makes an aligned copy */
  size_t size;      /**< bytes; 0 where taken = what dtype and shape come to.  Of MOE_DTYPE_OTHER it is always read */
  const char *dtype_name; /**< as the file has it, "BF16" or "F8_E4M3"; taken with MOE_DTYPE_OTHER alone, which wants it */
} moe_stored_tensor;

#define MOE_STORED_TENSOR_INIT { sizeof(moe_stored_tensor), NULL, 0, 0, { 0, 0, 0, 0, 0, 0, 0, 0 }, NULL, 0, NULL }

/** Fill `tensor` as MOE_STORED_TENSOR_INIT does.  NULL is ignored. */
MOE_API void moe_stored_tensor_init(moe_stored_tensor *tensor, size_t struct_size);

/** Open a safetensors file, or, where `path` ends in ".json", an index file {"weight_map": {tensor: file}} and the files
 *  beside it that it names.  Or a GGUF file, of version 2 or 3, or the first of several NAME-00001-of-0000N.gguf: what begins so
 *  is one.  A tensor's shape is that of row-major memory, the last extent the fastest.
 *  @param context [in] is kept alive
 *  @param path    [in]
 *  @param out     [out] free it with moe_checkpoint_free
 *  Refused: a header of more than 100 MB or beyond the file's end, JSON that is not as the format has it, more than 8
 *  dimensions, sizes beyond 63 bits, tensors that overlap, leave gaps or have one name.  A tensor of a dtype that this
 *  library does not know is listed as MOE_DTYPE_OTHER, and refused where its numbers are wanted.
 *  @return MOE_OK, INVALID_ARGUMENT (the file is none, or damaged; the message names the tensor or the byte, or says what
 *          the file is instead), IO, OUT_OF_MEMORY. */
MOE_API MOE_CHECK moe_status moe_checkpoint_open(moe_context *context, const char *path, moe_checkpoint **out);

/** Free a checkpoint; NULL is a no-op. */
MOE_API void moe_checkpoint_free(moe_checkpoint *checkpoint);

/** Number of tensors.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_checkpoint_tensor_count(const moe_checkpoint *checkpoint, int64_t *count);

/** Describe tensor `index`; they stand in the order of their names' bytes.
 *  @param tensor [in, out] struct_size in, the rest out.  Its pointers live until the checkpoint is freed; the memory must
 *                not be written to.
 *  @return MOE_OK, INVALID_ARGUMENT, IO (the file has been cut short or changed since it was opened). */
MOE_API MOE_CHECK moe_status moe_checkpoint_tensor(const moe_checkpoint *checkpoint, int64_t index,
                                                   moe_stored_tensor *tensor);

/** Index of the tensor called `name`.
 *  @return MOE_OK, INVALID_ARGUMENT (there is none; the message has the nearest name, or the same under another prefix). */
MOE_API MOE_CHECK moe_status moe_checkpoint_find_tensor(const moe_checkpoint *checkpoint, const char *name,
                                                        int64_t *index);

/** Copy the elements of tensor `index` into memory of yours, wherever they lie in the file.
 *  @param dtype [in] a moe_dtype: the tensor's own: its bytes as they are.  Or MOE_DTYPE_F32, for F16, BF16, F8_E4M3, F8_E5M2 and F8_E8M0:
 *               its numbers, exactly; and for blocks: their numbers, each product and sum rounded to float32 by itself
 *  @param data  [out] aligned to an element of `dtype`; NULL where there are none
 *  @param size  [in] bytes of them, in `dtype`
 *  @return MOE_OK, INVALID_ARGUMENT, IO (also where the file has been cut short or changed since it was opened; `data` may
 *          hold some of it then).  Any thread. */
MOE_API MOE_CHECK moe_status moe_checkpoint_read_tensor(const moe_checkpoint *checkpoint, int64_t index, int32_t dtype,
                                                        void *data, size_t size);

/** Write tensors of yours to a safetensors file.
 *  @param context [in]
 *  @param path    [in]
 *  @param tensors [in] [count], each with a name of its own in UTF-8
 *  @param count   [in] >= 0
 *  @return MOE_OK, INVALID_ARGUMENT, IO, OUT_OF_MEMORY, CANCELLED (asked between tensors); after an error `path` is as it was.  (Where the folder cannot be
 *          synced the old file is brought back; on file systems that cannot exchange two files the message says that `path`
 *          has been replaced, but may not last.) */
MOE_API MOE_CHECK moe_status moe_checkpoint_write(moe_context *context, const char *path,
                                                  const moe_stored_tensor *tensors, int64_t count);

/** The same in several files, as transformers has them: `path` is the index, NAME.safetensors.index.json, with
 *  metadata.total_size and weight_map, and beside it stand the shards, NAME-00001-of-0000N.safetensors.
 *  @param path           [in] ends in ".safetensors.index.json" behind a name
 *  @param max_shard_size [in] >= 1: bytes of tensors in one file at most, but for a file of one tensor that has more
 *  Tensors go into shards in their order.  Each shard is written whole, under a name that no file has (NAME.1-00001-of- ...,
 *  NAME.2- ... where there are such shards already), and the index last.  Killed at any moment, `path` is the old index with
 *  all its shards or the new one with all of its own.  When the new index is in place, the shards of this NAME that the
 *  old one named are removed.  A killed process may leave shards behind that no index names, and .tmp files.  One writer
 *  for an index at a time; a reader that has opened the old index, but not yet its shards, may find them gone.
 *  @return as moe_checkpoint_write; INVALID_ARGUMENT also for another ending, and for more than 99999 shards. */
MOE_API MOE_CHECK moe_status moe_checkpoint_write_sharded(moe_context *context, const char *path,
                                                          const moe_stored_tensor *tensors, int64_t count,
                                                          size_t max_shard_size);

/** Names and forms of a layer's tensors; docs/checkpoints.md lists them.  L is the layer's number.  A layout is never guessed:
 *  the same shapes may mean different things.  Where a tensor is missing, the message says which layout the file looks like. */
typedef enum moe_layout {
  MOE_LAYOUT_LIBMOE = 0,        /**< layers.L. and the parameter's name; any layer */
  MOE_LAYOUT_MIXTRAL = 1,       /**< Mixtral, PhiMoE: block_sparse_moe.experts.N.w1.weight */
  MOE_LAYOUT_QWEN2_MOE = 2,     /**< mlp.experts.N.gate_proj.weight, mlp.shared_expert, its gate */
  MOE_LAYOUT_QWEN3_MOE = 3,     /**< mlp.experts.N.gate_proj.weight */
  MOE_LAYOUT_OLMOE = 4,         /**< the same names */
  MOE_LAYOUT_DEEPSEEK = 5,      /**< DeepSeek-V2 and V3, GLM-4.5: the same, mlp.shared_experts, e_score_correction_bias */
  MOE_LAYOUT_GPT_OSS = 6,       /**< mlp.experts.gate_up_proj [E,H,2I], gate and up columns in turn */
  MOE_LAYOUT_GPT_OSS_MXFP4 = 7, /**< the same in MXFP4 [MX 2023], as published: gate_up_proj_blocks [E,2I,H/32,16]; loading only */
  MOE_LAYOUT_LLAMA4 = 8,        /**< language_model.model.layers.L.feed_forward.experts.gate_up_proj [E,H,2I], gate columns first */
  MOE_LAYOUT_GRANITE_MOE = 9,   /**< block_sparse_moe.input_linear.weight [E,2I,H] */
  MOE_LAYOUT_DBRX = 10,         /**< ffn.experts.mlp.w1 [E I,H], w2 not transposed */
  MOE_LAYOUT_SWITCH_ENCODER = 11, /**< encoder.block.L.layer.1.mlp.experts.expert_N.wi.weight */
  MOE_LAYOUT_SWITCH_DECODER = 12, /**< decoder.block.L.layer.2.mlp.experts.expert_N.wi.weight */
  MOE_LAYOUT_TRANSFORMERS_5 = 13, /**< transformers 5 in memory: mlp.experts.gate_up_proj [E,2I,H]; a shared expert with a gate
                                       as Qwen2's, without one as DeepSeek's */
  MOE_LAYOUT_LLAMA4_TEXT = 14,    /**< as LLAMA4, model.layers.L: the language model by itself */
  MOE_LAYOUT_JETMOE = 15,         /**< mlp.input_linear.weight [E,2I,H], mlp.bias */
  MOE_LAYOUT_MINIMAX_M2 = 16,     /**< as MIXTRAL, block_sparse_moe.e_score_correction_bias */
  MOE_LAYOUT_ERNIE4_5 = 17,       /**< ERNIE-4.5: as DEEPSEEK, mlp.moe_statics.e_score_correction_bias [1,E] */
  MOE_LAYOUT_LONGCAT_FLASH = 18,  /**< LongCat-Flash: mlp.router.classifier.weight [E + identities,H] */
  MOE_LAYOUT_JAMBA = 19,          /**< feed_forward.router.weight, feed_forward.experts.N.gate_proj.weight */
  MOE_LAYOUT_HUNYUAN = 20,        /**< HunYuan-A13B: mlp.gate.wg.weight, mlp.shared_mlp */
  MOE_LAYOUT_NEMOTRON_H = 21,     /**< Nemotron-H: backbone.layers.L.mixer.experts.N.up_proj.weight */
  MOE_LAYOUT_LFM2_MOE = 22,       /**< LFM2-MoE: feed_forward.experts.N.w1.weight, feed_forward.expert_bias */
  MOE_LAYOUT_AFMOE = 23,          /**< AFMoE: mlp.router.gate.weight, mlp.expert_bias */
  MOE_LAYOUT_DEEPSEEK_V4 = 24,    /**< DeepSeek-V4: layers.L.ffn.experts.N.w1.weight, ffn.gate.bias for the choice alone */
  MOE_LAYOUT_NLLB_ENCODER = 25,   /**< model.encoder.layers.L.ffn.experts.expert_N.fc1.weight */
  MOE_LAYOUT_NLLB_DECODER = 26,   /**< model.decoder.layers.L.ffn.experts.expert_N.fc1.weight */
  MOE_LAYOUT_QWEN3_VL_MOE = 27,   /**< model.language_model.layers.L.mlp.experts.gate_up_proj [E,H,2I], as published, or [E,2I,H] */
  MOE_LAYOUT_QWEN3_5_MOE = 28,    /**< Qwen3.5-MoE: as QWEN2_MOE, model.language_model.layers.L; or gate_up_proj [E,2I,H] */
  MOE_LAYOUT_GEMMA4 = 29,         /**< Gemma 4: model.language_model.layers.L.router.proj.weight, experts.gate_up_proj [E,2I,H] */
  MOE_LAYOUT_GGUF = 30            /**< GGUF files, of all models: blk.L.ffn_gate_exps.weight [E,I,H]; loading only */
} moe_layout;

/** layer_number of MOE_LAYOUT_LIBMOE: names as they are, without layers.L. */
#define MOE_NO_LAYER_NUMBER (-1)

/** Overwrite a layer's parameters with a checkpoint's.
 *  @param layer        [in] as the model has it (a preset with the model's sizes)
 *  @param checkpoint   [in]
 *  @param layout       [in] a moe_layout
 *  @param layer_number [in] >= 0, or MOE_NO_LAYER_NUMBER
 *  F32, F16 and BF16 tensors, and MXFP4 where the layout has it, become the parameters' type: exactly, or rounded
 *  (nearest, ties to even).  All of the layer's parameters must be there with its dimensions.  What the checkpoint
 *  has for this layer beyond them is refused by name, so that nothing is lost without a word: an expert more, a bias, a
 *  shared expert, a scale of quantised weights, an adapter, or what the layout does not know; the message says what would
 *  use it.  Gradients stay as they are.  Wants the layer for itself; prepare it again afterwards.  Takes memory for one
 *  expert's matrices while it reads.
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (a parameter has no memory), OUT_OF_MEMORY, IO; after an error the layer is as
 *          it was, but after an IO in the middle of reading (a disk that fails, a file cut short meanwhile), which the
 *          message says. */
MOE_API MOE_CHECK moe_status moe_layer_load(moe_layer *layer, const moe_checkpoint *checkpoint, int32_t layout,
                                            int64_t layer_number);

/** The same for names that begin in another way than the layout says.
 *  @param prefix [in] what stands before the layer's own names, with the last dot: "model.language_model.layers.3.mlp."; at
 *                most 160 bytes
 *  @return as moe_layer_load. */
MOE_API MOE_CHECK moe_status moe_layer_load_prefix(moe_layer *layer, const moe_checkpoint *checkpoint, int32_t layout,
                                                   const char *prefix);

/** Experts larger than memory: leave the routed experts' matrices in a checkpoint's files, with room for some of them; load
 *  all other parameters as moe_layer_load does.  Forward then computes first with the experts that are there, while a
 *  thread of its own (and the calling one, when it has nothing to compute) reads the missing ones in place of those that are not needed any more and were used least, late uses
 *  counting more [LRFU, Lee et al. 2001].  The bits are those of the layer in memory.
 *  @param layer          [in] with unallocated = MOE_UNALLOCATED_EXPERT_WEIGHTS, nothing bound to them, of whose expert_groups
 *                        at most one has matrices
 *  @param checkpoint     [in] may be freed afterwards: the layer keeps the files open that it needs, one descriptor each.
 *                        F32, F16, BF16 and MXFP4, converted as moe_layer_load does where an expert is read
 *  @param layout         [in] a moe_layout
 *  @param layer_number   [in] >= 0, or MOE_NO_LAYER_NUMBER
 *  @param resident_limit [in] bytes of memory for experts: two of them at least, and what reading takes where a file does
 *                        not hold matrices as they are used (transposed, of another type, prepared).  More than all need
 *                        is not taken.  moe_layer_plan counts none of it
 *  A layer stays offloaded.  It is for inference: a tape is refused.  Forward calls on it take turns; in moe_layer_prepare's
 *  forms a slot holds packed matrices.  Files must not be changed in place; replacing them is harmless.
 *  Wants the layer for itself.
 *  @return MOE_OK, INVALID_ARGUMENT (also a limit too small: the message says what would do), OUT_OF_MEMORY, IO, BAD_STATE
 *          (the matrices have memory, or are offloaded already); after an error the layer is as it was. */
MOE_API MOE_CHECK moe_status moe_layer_offload(moe_layer *layer, const moe_checkpoint *checkpoint, int32_t layout,
                                               int64_t layer_number, size_t resident_limit);

/** The same with a prefix, as moe_layer_load_prefix has it.
 *  @return as moe_layer_offload. */
MOE_API MOE_CHECK moe_status moe_layer_offload_prefix(moe_layer *layer, const moe_checkpoint *checkpoint, int32_t layout,
                                                      const char *prefix, size_t resident_limit);

/** What an offloaded layer's forward calls have found since moe_layer_offload. */
typedef struct moe_offload_statistics {
  size_t struct_size;
  int64_t hits;       /**< experts that were needed (once for each chunk of tokens) and there */
  int64_t misses;     /**< those that were not */
  int64_t bytes_read; /**< from the files, in the files' types */
  int64_t n_slots;    /**< experts for which there is room */
} moe_offload_statistics;

#define MOE_OFFLOAD_STATISTICS_INIT { sizeof(moe_offload_statistics), 0, 0, 0, 0 }

/** Fill `statistics` with 0.  NULL is ignored. */
MOE_API void moe_offload_statistics_init(moe_offload_statistics *statistics, size_t struct_size);

/** Read them; a call that is running counts as far as it is.
 *  @param statistics [in, out] struct_size in, the rest out
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (the layer is not offloaded).  Any thread. */
MOE_API MOE_CHECK moe_status moe_layer_offload_statistics(const moe_layer *layer, moe_offload_statistics *statistics);

/** Write a layer's parameters to a safetensors file.
 *  @param layer        [in]
 *  @param path         [in]
 *  @param layout       [in] a moe_layout
 *  @param layer_number [in] >= 0, or MOE_NO_LAYER_NUMBER
 *  @param dtype        [in] MOE_DTYPE_F32, BF16 or F16 (rounded), of all but parameters without a gradient, which stay F32
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (a parameter has no memory), IO, OUT_OF_MEMORY, CANCELLED; after an error `path` is as
 *          it was, see moe_checkpoint_write. */
MOE_API MOE_CHECK moe_status moe_layer_save(const moe_layer *layer, const char *path, int32_t layout,
                                            int64_t layer_number, int32_t dtype);

/** The same in several files, see moe_checkpoint_write_sharded.
 *  @return as moe_layer_save and moe_checkpoint_write_sharded. */
MOE_API MOE_CHECK moe_status moe_layer_save_sharded(const moe_layer *layer, const char *path, int32_t layout,
                                                    int64_t layer_number, int32_t dtype, size_t max_shard_size);

/** The same with a prefix, as moe_layer_load_prefix has it.
 *  @param max_shard_size [in] 0: one file, as moe_layer_save writes
 *  @return as moe_layer_save, or moe_layer_save_sharded. */
MOE_API MOE_CHECK moe_status moe_layer_save_prefix(const moe_layer *layer, const char *path, int32_t layout,
                                                   const char *prefix, int32_t dtype, size_t max_shard_size);

/** Make every expert a copy of one dense network [Sparse upcycling 2023]; router and shared experts stay as they are.  Where
 *  the weights of a token add up to 1, y is then what the dense network gives.
 *  @param layer [in] without expert_groups
 *  @param dense [in] [count], one for each of the layer's parameters experts.X, called X, with the dimensions of one expert:
 *               up.weight [I,H] and so on; F32, BF16 or F16
 *  @param count [in]
 *  Wants the layer for itself.
 *  @return MOE_OK, INVALID_ARGUMENT, BAD_STATE (a parameter has no memory); after an error the layer is as it was. */
MOE_API MOE_CHECK moe_status moe_layer_upcycle(moe_layer *layer, const moe_tensor *dense, int64_t count);

/** What a training run goes on from: with the same layers, optimisers and inputs, a run that was stopped, saved and loaded
 *  gives the bits of one that was not.  In the file:
 *    step [1] U64
 *    layers.N.X              every parameter X of layer N, in its own dtype; with them warm-up, running statistics of
 *                            normalisation and selection biases
 *    layers.N.seed [1] U64   the key of its random numbers; loading wants a layer with the same
 *    optimizers.N.adamw, .sgd [7], .muon [8] F64   its config's numbers in order, then beta1^t and beta2^t; or 0
 *    optimizers.N.groups [count,2] F64  of each of its tensors, learning_rate_scale and weight_decay
 *    optimizers.N.random [2] U64        seed, and steps taken
 *    optimizers.N.I.master [count] F32  of its tensor I, where that is not F32: its values in float32
 *    optimizers.N.I.moments [1 or 2,count]  m and v, or v, in state_dtype
 *    statistics.N.counts, .dropped [E] I64, .probability [E] F64, .tokens [2] I64, .sums [5] F64
 *    tensors.N               the data of your own tensor N */
typedef struct moe_training {
  size_t struct_size;
  uint64_t step;                 /**< yours: the number of the next step; written by loading */
  moe_layer **layers;            /**< [n_layers] */
  int64_t n_layers;              /**< how many layers, 0 to 2^31 - 1 */
  moe_optimizer **optimizers;    /**< [n_optimizers] */
  int64_t n_optimizers;          /**< how many optimizers, 0 to 2^31 - 1 */
  moe_statistics **statistics;   /**< [n_statistics] */
  int64_t n_statistics;          /**< how many statistics, 0 to 2^31 - 1 */
  const moe_tensor *tensors;     /**< [n_tensors]: parameters of yours, whose data is saved and loaded */
  int64_t n_tensors;             /**< how many tensors */
  int32_t without_unallocated;   /**< 1 = parameters of MOE_UNALLOCATED_EXPERT_WEIGHTS and states of optimisers with
                                      unallocated_state are left out: they are in memory of yours, a moe_mapping for
                                      instance, which keeps them */
  int32_t reserved;              /**< 0 */
} moe_training;

#define MOE_TRAINING_INIT { sizeof(moe_training), 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, 0, 0 }

/** Fill `training` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_training_init(moe_training *training, size_t struct_size);

/** Write a training state to a safetensors file.
 *  @return MOE_OK, INVALID_ARGUMENT, IO, OUT_OF_MEMORY, CANCELLED, BAD_STATE (something of it has no memory); after an error `path` is
 *          as it was. */
MOE_API MOE_CHECK moe_status moe_training_save(moe_context *context, const moe_training *training, const char *path);

/** Read a training state into handles and tensors made as those that were saved, in the same order.  Wants all of them for
 *  itself, and each once.  Prepared weights are to be prepared again.
 *  @param training [in, out] step is written
 *  @return MOE_OK, INVALID_ARGUMENT (the file has other tensors, sizes, types or seeds), BAD_STATE (something of it has no
 *          memory), IO, OUT_OF_MEMORY; after an error everything is as it was, but after an IO in the middle of reading, which
 *          the message says. */
MOE_API MOE_CHECK moe_status moe_training_load(moe_context *context, moe_training *training, const char *path);

/* ------------------------------------------------------------------------------------------------------------
 * Files as memory: parameters and optimiser states larger than memory, in training
 * ---------------------------------------------------------------------------------------------------------- */

/** A file mapped for reading and writing.  The system brings its pages in as they are used and writes them back when it
 *  needs room.  Keeps its context alive. */
typedef struct moe_mapping moe_mapping;

/** Map a file of exactly `size` bytes; one that is not there, or empty, is made, filled with zeros.  It gets all its blocks
 *  here, also where it had holes, so that a full disk is an error now and not a fault when the memory is written to.
 *  @param context [in] is kept alive
 *  @param path    [in]
 *  @param size    [in] >= 1
 *  @param out     [out] free it with moe_mapping_free
 *  What is written is in the file after moe_mapping_flush, or some time later.  A file is not written whole or not at all,
 *  as checkpoints are: after a crash it is a mixture of old and new, so go on from a copy that was made after a flush.  Two
 *  processes that write to one file are the caller's mistake.
 *  @return MOE_OK, INVALID_ARGUMENT (a file of another size), IO, OUT_OF_MEMORY; after an error the file is as it
 *          was, or not there. */
MOE_API MOE_CHECK moe_status moe_mapping_create(moe_context *context, const char *path, size_t size, moe_mapping **out);

/** Unmap.  Nothing may use the memory any more: free or bind elsewhere what was bound to it first. */
MOE_API void moe_mapping_free(moe_mapping *mapping);

/** The memory, aligned to a page; it lives until the mapping is freed.
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_mapping_data(const moe_mapping *mapping, void **data);

/** Bring what was written to the disk; returns when it is there.
 *  @return MOE_OK, INVALID_ARGUMENT, IO.  Any thread. */
MOE_API MOE_CHECK moe_status moe_mapping_flush(const moe_mapping *mapping);

#ifdef __cplusplus
}
#endif

#endif /* MOE_H */
