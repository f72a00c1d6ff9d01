/* What Swift has no spelling for here: thread-local text, atomics, futexes, threads without signals, cpuid, and the
 * table through which the engine reaches the kernels of one instruction set.  Internal names start with moei_. */
#ifndef MOEI_H
#define MOEI_H

/* Vectors are passed between inlined functions only. */
#pragma clang diagnostic ignored "-Wpsabi"

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

/* ---- text of this thread's latest error -------------------------------------------------------------------- */

enum { MOEI_TEXT_SIZE = 512 };
char *moei_error_text(void);

/* ---- memory ------------------------------------------------------------------------------------------------ */

void *_Nullable moei_allocate(size_t size, size_t alignment);
void moei_deallocate(void *memory);

/* ---- atomics on plain memory ------------------------------------------------------------------------------- */

static inline int32_t moei_load(const int32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void moei_store(int32_t *p, int32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int32_t moei_add(int32_t *p, int32_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
static inline int32_t moei_exchange(int32_t *p, int32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline int32_t moei_swap_if(int32_t *p, int32_t expected, int32_t v) {
  return __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline int64_t moei_fetch_add64(int64_t *p, int64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
/* *p = max(*p, v) */
static inline void moei_raise64(int64_t *p, int64_t v) {
  int64_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < v && !__atomic_compare_exchange_n(p, &old, v, 1, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {}
}
static inline void moei_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

/* Sleep while *word == value; may return early. */
void moei_futex_wait(int32_t *word, int32_t value);
void moei_futex_wait_briefly(int32_t *word, int32_t value, int32_t milliseconds);
void moei_futex_wake(int32_t *word, int32_t count);

/* Start a thread that takes no signals (the host's handlers run in the host's threads).  0 = started. */
int32_t moei_thread_start(uint64_t *thread, void *_Nullable (*_Nonnull body)(void *_Nullable), void *argument);
void moei_thread_join(uint64_t thread);

int64_t moei_process_id(void);
/* Processors this process may use: the affinity mask, lowered by the quotas of the cgroup and of those it lies in; at
 * least 1. */
int32_t moei_available_processors(void);

/* Milliseconds of a clock that never goes back. */
int64_t moei_milliseconds(void);
int64_t moei_nanoseconds(void); /* of a clock that only goes forward */
int64_t moei_thread_id(void);

/* ---- OpenBLAS, loaded on request ---------------------------------------------------------------------------- */

/* OpenBLAS has one thread setting and one set of buffers per process, so there is one of these too. */
typedef struct moei_openblas {
  int32_t lock;         /* guards all of it */
  int32_t users;        /* calls that use it now */
  int32_t lanes;        /* threads of these calls */
  int32_t reserved;     /* threads for which it has buffers */
  int32_t host_threads; /* its setting before the first of these calls */
  int64_t process;      /* in which they are */

  const char *_Nullable config; /* what it says of itself; NULL = not loaded */
  const char *_Nullable path;
  void (*_Nullable sgemm)(int32_t order, int32_t transpose_a, int32_t transpose_b, int32_t m, int32_t n, int32_t k,
                          float alpha, const float *a, int32_t lda, const float *b, int32_t ldb, float beta, float *c,
                          int32_t ldc);
  int (*_Nullable get_num_threads)(void);
  void (*_Nullable set_num_threads)(int count);
  void *_Nullable (*_Nullable memory_alloc)(int unused);
  void (*_Nullable memory_free)(void *buffer);
} moei_openblas;

moei_openblas *moei_openblas_state(void);

enum {
  MOEI_OPENBLAS_FOUND = 0,
  MOEI_OPENBLAS_MISSING = 1,   /* the system found or opened none: `reason` */
  MOEI_OPENBLAS_OTHER = 2,     /* it lacks functions, or counts in 64 bits */
  MOEI_OPENBLAS_NO_MEMORY = 3, /* there is no room for it */
  MOEI_OPENBLAS_WIDE = 4       /* it would start threads */
};
/* Load it where it is not; with the lock held. */
int32_t moei_openblas_load(moei_openblas *state, char *reason, size_t room);
/* Have it map buffers for `count` threads at once; for how many it could. */
int32_t moei_openblas_reserve(moei_openblas *state, int32_t count);
int64_t moei_openblas_buffer_bytes(void);

/* ---- files --------------------------------------------------------------------------------------------------- */

/* Of those that return a number: 0 or an errno.  errno itself stays as it was. */

/* ENOENT, and errors that no errno stands for. */
enum {
  MOEI_FILE_ABSENT = 2,
  MOEI_FILE_ENDED = -1,      /* there are not as many bytes as there were */
  MOEI_FILE_OTHER_SIZE = -2,
  MOEI_FILE_CHANGED = -3,    /* somebody has written to it since it was opened */
  MOEI_FILE_SPECIAL = -4,    /* a device, a pipe or a socket */
  MOEI_FILE_NOT_LASTING = -5 /* it has been replaced, but its folder could not be synced, nor the old file brought back */
};

/* What a file was like when it was opened: its size, and when it was written to. */
typedef struct moei_stamp {
  int64_t size, seconds, nanoseconds;
} moei_stamp;

/* Open a regular file for reading. */
int32_t moei_file_open(const char *path, int32_t *file, moei_stamp *stamp);
int32_t moei_file_stamp(int32_t file, moei_stamp *stamp);
/* Whether the file is as it was; else MOEI_FILE_ENDED or MOEI_FILE_CHANGED. */
int32_t moei_file_check(int32_t file, moei_stamp stamp);
/* Map it for reading; of no bytes there is no memory. */
int32_t moei_file_map(int32_t file, int64_t size, const void *_Nullable *_Nonnull memory);
void moei_file_unmap(const void *memory, int64_t size);
int32_t moei_file_duplicate(int32_t file, int32_t *copy);
void moei_file_close(int32_t file);
/* Read `size` bytes from `offset` on, or MOEI_FILE_ENDED where there are not as many. */
int32_t moei_file_read(int32_t file, void *memory, int64_t size, int64_t offset);
/* The path of an open file, or "". */
void moei_file_name(int32_t file, char *path, size_t capacity);
/* Map a file for reading and writing, with all its blocks; where there is none, or an empty one, it is made, `size` zeros.
 * One of another size is MOEI_FILE_OTHER_SIZE, its own in `size`.  After an error the file is as it was. */
int32_t moei_file_share(const char *path, int64_t *size, void *_Nullable *_Nonnull memory, int32_t *file);
/* To the disk: msync, then fsync. */
int32_t moei_file_flush(void *memory, int64_t size, int32_t file);
/* 1 or 0; a link counts, wherever it leads. */
int32_t moei_file_exists(const char *path);
/* What failed, or 0; also where there is none. */
int32_t moei_file_remove(const char *path);

/* A new file beside the one whose place it will take: in the folder of the file itself, where the path is a link. */
enum { MOEI_PATH_SIZE = 4096, MOEI_NAME_SIZE = 256 };
typedef struct moei_output {
  int32_t folder, file; /* descriptors */
  int32_t replaces;     /* 1: there is a file in that place */
  int32_t waits;        /* 1: the temporary name is still there */
  int64_t size;         /* bytes so far */
  char name[MOEI_NAME_SIZE], temporary[MOEI_NAME_SIZE];
} moei_output;
/* With mode and owner of the file it replaces, or of `like` where there is none; else as new files are. */
int32_t moei_output_open(const char *path, const char *_Nullable like, moei_output *output);
int32_t moei_output_write(moei_output *output, const void *data, int64_t size);
/* fsync. */
int32_t moei_output_sync(moei_output *output);
/* Give it its name, and make that last.  After an error everything is as before, but after MOEI_FILE_NOT_LASTING. */
int32_t moei_output_place(moei_output *output);
/* Close; without its name it is removed. */
void moei_output_close(moei_output *output);

/* What the system calls an errno, and what one of the errors above is, in `text` or in static memory. */
const char *moei_error_name(int32_t error, char *text, size_t capacity);

/* Whether two stretches of memory hold the same bytes, by the C library's own way for the processor. */
static inline int32_t moei_is_same(const void *a, const void *b, int64_t bytes) {
  return __builtin_memcmp(a, b, (size_t)bytes) == 0;
}

/* ---- instructions without a spelling in Swift: these inline to one ------------------------------------------ */

typedef float moei_f32x16 __attribute__((ext_vector_type(16)));
static inline __attribute__((always_inline)) moei_f32x16 moei_square_root(moei_f32x16 v) {
  return __builtin_elementwise_sqrt(v);
}
/* bfloat16 is the upper half of a float: exact one way, to the nearest (even in a tie) the other way; a NaN stays one. */
typedef uint16_t moei_u16x16 __attribute__((ext_vector_type(16)));
typedef uint32_t moei_u32x16 __attribute__((ext_vector_type(16)));
static inline __attribute__((always_inline)) moei_f32x16 moei_from_bf16(const uint16_t *p) {
  moei_u16x16 half;
  __builtin_memcpy(&half, p, sizeof half);
  return (moei_f32x16)(__builtin_convertvector(half, moei_u32x16) << 16);
}
/* In the upper half; the lower one means nothing. */
static inline __attribute__((always_inline)) moei_u32x16 moei_round_to_bf16(moei_f32x16 v) {
  moei_u32x16 bits = (moei_u32x16)v;
  moei_u32x16 nan = (moei_u32x16)(v != v);
  return (nan & (bits | 0x400000)) | (~nan & (bits + 0x7FFF + ((bits >> 16) & 1)));
}
/* The same, but away from 0 with the probability that the lower half is of a step: `chance` is uniform below 2^16. */
static inline __attribute__((always_inline)) moei_u32x16 moei_round_to_bf16_by_chance(moei_f32x16 v, moei_u32x16 chance) {
  moei_u32x16 bits = (moei_u32x16)v;
  moei_u32x16 nan = (moei_u32x16)(v != v);
  return (nan & (bits | 0x400000)) | (~nan & (bits + chance));
}
static inline __attribute__((always_inline)) void moei_store_upper_halves(moei_u32x16 words, uint16_t *p) {
  moei_u16x16 half = __builtin_convertvector(words >> 16, moei_u16x16);
  __builtin_memcpy(p, &half, sizeof half);
}
static inline __attribute__((always_inline)) void moei_to_bf16(moei_f32x16 v, uint16_t *p) {
  moei_store_upper_halves(moei_round_to_bf16(v), p);
}
/* binary16: exact one way, to the nearest (even in a tie) the other way, beyond 65504 by a half step and more to infinity; a
 * NaN becomes a quiet one with the same payload, or as much of it as there is room for. */
#if defined(__F16C__) || defined(__aarch64__)
typedef _Float16 moei_f16x16 __attribute__((ext_vector_type(16)));
static inline __attribute__((always_inline)) moei_f32x16 moei_from_f16(moei_u16x16 half) {
  return __builtin_convertvector((moei_f16x16)half, moei_f32x16);
}
static inline __attribute__((always_inline)) moei_u16x16 moei_to_f16(moei_f32x16 v) {
  return (moei_u16x16)__builtin_convertvector(v, moei_f16x16);
}
#else
static inline __attribute__((always_inline)) moei_f32x16 moei_from_f16(moei_u16x16 half) {
  moei_u32x16 words = __builtin_convertvector(half, moei_u32x16);
  moei_u32x16 rest = (words & 0x7FFF) << 13; /* exponent and fraction where float32 has them */
  moei_u32x16 small = (moei_u32x16)((words & 0x7C00) == 0);
  moei_u32x16 special = (moei_u32x16)((words & 0x7C00) == 0x7C00);
  moei_u32x16 quiet = (moei_u32x16)((words & 0x7FFF) > 0x7C00) & 0x400000;
  /* A denormal as the fraction of 2^-14, which is then taken away: no denormal float32 comes up. */
  const moei_u32x16 least = 113 << 23;
  moei_u32x16 denormal = (moei_u32x16)((moei_f32x16)(rest + least) - (moei_f32x16)least);
  moei_u32x16 magnitude = (small & denormal) | (special & (rest | 0x7F800000 | quiet)) |
                          (~(small | special) & (rest + (112 << 23)));
  return (moei_f32x16)(magnitude | (words & 0x8000) << 16);
}
static inline __attribute__((always_inline)) moei_u16x16 moei_to_f16(moei_f32x16 v) {
  moei_u32x16 bits = (moei_u32x16)v & 0x7FFFFFFF;
  moei_u32x16 nan = (moei_u32x16)(bits > 0x7F800000);
  moei_u32x16 large = (moei_u32x16)(bits >= 0x477FF000); /* 65520 */
  moei_u32x16 small = (moei_u32x16)(bits < 0x38800000);  /* 2^-14 */
  /* Beside 2^-1 a step of float32 is the smallest number of binary16: the sum rounds. */
  const moei_u32x16 step = 126 << 23;
  moei_u32x16 denormal = (moei_u32x16)((moei_f32x16)(bits & small) + (moei_f32x16)step) - step;
  moei_u32x16 normal = (bits - (112 << 23) + 0xFFF + (bits >> 13 & 1)) >> 13;
  moei_u32x16 half = (nan & (0x7E00 | (bits >> 13 & 0x3FF))) | (~nan & large & 0x7C00) | (small & denormal) |
                     (~(large | small) & normal);
  return __builtin_convertvector(half | ((moei_u32x16)v >> 16 & 0x8000), moei_u16x16);
}
#endif
/* Words whose lower and upper halves are a and b. */
static inline __attribute__((always_inline)) moei_u32x16 moei_pair(const uint16_t *a, const uint16_t *b) {
  moei_u16x16 low, high;
  __builtin_memcpy(&low, a, sizeof low);
  __builtin_memcpy(&high, b, sizeof high);
  return __builtin_convertvector(low, moei_u32x16) | __builtin_convertvector(high, moei_u32x16) << 16;
}
#if defined(__AVX512BF16__)
/* sum + the products of the lower and of the upper halves of two words of bfloat16. */
typedef __bf16 moei_bf16x32 __attribute__((__vector_size__(64)));
typedef float moei_f32x16_gcc __attribute__((__vector_size__(64)));
static inline __attribute__((always_inline)) moei_f32x16 moei_add_products(moei_f32x16 sum, moei_u32x16 a, moei_u32x16 b) {
  return (moei_f32x16)__builtin_ia32_dpbf16ps_512((moei_f32x16_gcc)sum, (moei_bf16x32)a, (moei_bf16x32)b);
}
#endif
/* Bit i of the result is lane i of a mask, whose lanes are 0 or -1. */
typedef int32_t moei_i32x16 __attribute__((ext_vector_type(16)));
static inline __attribute__((always_inline)) uint32_t moei_bits(moei_i32x16 mask) {
  typedef _Bool moei_boolx16 __attribute__((ext_vector_type(16)));
  moei_boolx16 lanes = __builtin_convertvector(mask, moei_boolx16);
  uint16_t bits;
  __builtin_memcpy(&bits, &lanes, sizeof bits);
  return bits;
}
/* Bit i of the result: lane i of a or of b is NaN. */
static inline __attribute__((always_inline)) uint32_t moei_not_numbers(moei_f32x16 a, moei_f32x16 b) {
  return moei_bits((a != a) | (b != b));
}
/* Of each four lanes: a0 b0 a1 b1, a2 b2 a3 b3;  a0 a1 b0 b1, a2 a3 b2 b3. */
#define MOEI_SHUFFLE(name, i, j, k, l)                                                                               \
  static inline __attribute__((always_inline)) moei_f32x16 name(moei_f32x16 a, moei_f32x16 b) {                      \
    return __builtin_shufflevector(a, b, i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, \
                                   j + 12, k + 12, l + 12);                                                          \
  }
MOEI_SHUFFLE(moei_interleave_low, 0, 16, 1, 17)
MOEI_SHUFFLE(moei_interleave_high, 2, 18, 3, 19)
MOEI_SHUFFLE(moei_pairs_low, 0, 1, 16, 17)
MOEI_SHUFFLE(moei_pairs_high, 2, 3, 18, 19)
#undef MOEI_SHUFFLE
/* Quarters of four lanes: a0 a1 b0 b1, a2 a3 b2 b3;  a0 a2 b0 b2, a1 a3 b1 b3. */
#define MOEI_QUARTERS(name, i, j)                                                                                  \
  static inline __attribute__((always_inline)) moei_f32x16 name(moei_f32x16 a, moei_f32x16 b) {                    \
    return __builtin_shufflevector(a, b, i, i + 1, i + 2, i + 3, j, j + 1, j + 2, j + 3, i + 16, i + 17, i + 18,   \
                                   i + 19, j + 16, j + 17, j + 18, j + 19);                                        \
  }
MOEI_QUARTERS(moei_quarters_low, 0, 4)
MOEI_QUARTERS(moei_quarters_high, 8, 12)
MOEI_QUARTERS(moei_quarters_even, 0, 8)
MOEI_QUARTERS(moei_quarters_odd, 4, 12)
#undef MOEI_QUARTERS

/* v as it is, of which the compiler forgets how it came about: products of transposed floats it would take apart, one float
 * at a time. */
static inline __attribute__((always_inline)) moei_f32x16 moei_opaque(moei_f32x16 v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__AVX2__)
  typedef float moei_f32x8 __attribute__((ext_vector_type(8)));
  moei_f32x8 low = v.lo, high = v.hi;
  __asm__("" : "+x"(low), "+x"(high));
  v.lo = low;
  v.hi = high;
#endif
  return v;
}

/* Floats that a tile's factors are decoded to: of 16 steps of the contraction, up to 16 rows and 32 columns in pairs; and a cache
 * line, since Swift takes no types that are aligned to one. */
typedef struct moei_decoded {
  float floats[2 * 16 * 16 + 2 * 16 * 32 + 16];
} moei_decoded;

/* Memory for them. Swift would fill it with zeros. */
static inline __attribute__((always_inline)) moei_decoded moei_decoded_memory(void) {
  moei_decoded memory;
  return memory;
}

/* A copy of up to 32 rows of 32 outputs, and memory for it as above. */
typedef struct moei_outputs {
  float rows[32 * 32];
} moei_outputs;

static inline __attribute__((always_inline)) moei_outputs moei_outputs_memory(void) {
  moei_outputs memory;
  return memory;
}

/* What a product of few rows puts aside where its weights lie across cache lines: 16 columns of 16 floats, and 32 words for each of
 * eight rows. */
typedef struct moei_few {
  float columns[16 * 16];
  uint32_t words[8 * 32];
} moei_few;

static inline __attribute__((always_inline)) moei_few moei_few_memory(void) {
  moei_few memory;
  return memory;
}

/* ---- kernels ----------------------------------------------------------------------------------------------- */

/* Numbers as in moe_activation. */
typedef enum moei_activation_kind {
  MOEI_GELU = 0,
  MOEI_GELU_TANH = 1,
  MOEI_SILU = 2,
  MOEI_RELU = 3,
  MOEI_RELU2 = 4,
  MOEI_QUICK_GELU = 5
} moei_activation_kind;

/* What experts do between their products; in gated ones both projections are clamped before, see glu_limit in moe.h. */
typedef struct moei_activation {
  moei_activation_kind kind;
  float alpha;  /* of MOEI_SILU: v sigmoid(alpha v) */
  float limit;  /* infinity where there is none */
  float offset;
} moei_activation;

typedef struct moei_adamw {
  float clip;       /* what gradients are multiplied by first; 1 changes no bit */
  float decay;      /* 1 - lr * weight_decay */
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float step_size;  /* lr / (1 - beta1^t) */
  float root_scale; /* 1 / sqrt(1 - beta2^t) */
  float epsilon;
} moei_adamw;

/* Which random numbers: the key of Philox4x32-10, and words 2 and 3 of its counters. */
typedef struct moei_random {
  uint64_t key, upper;
} moei_random;

/* Moments of a tensor from one element on: float32, or bfloat16 that is rounded up or down by chance. */
typedef struct moei_moments {
  void *first;
  void *second;          /* means nothing where there is one */
  int32_t by_chance;     /* 1: bfloat16, and then */
  moei_random random;
  uint64_t tensor;       /* its number, below 2^32 */
  uint64_t element;      /* the first one's number in it, below 2^48 */
} moei_moments;

/* Weights that are wanted next: one line, `row` bytes further for each step, and `chunk` bytes for each chunk of k; and the line
 * `beside` bytes behind each, itself where that is 0. Kernels are given its parts one by one: a struct in memory is read again at
 * once, which waits until all stores before it are made. */
typedef struct moei_ahead {
  const void *first;
  int64_t row, chunk, beside;
} moei_ahead;

static inline __attribute__((always_inline)) void moei_prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }
static inline __attribute__((always_inline)) void moei_prefetch_to_write(const float *p) { __builtin_prefetch(p, 1, 2); }

/* The rows of one expert cut into tiles: `count` of them, the first `tall` with `height` rows, the others with one fewer. */
typedef struct moei_tiles {
  int32_t count, tall, height;
} moei_tiles;

/* Weights of few bits (codes/).  A panel is a row of blocks, each of so many contraction indices ("inputs") of 32 outputs: their
 * numbers, then scales.  Tokens that are multiplied as integers lie in chunks [k / 32][m] of MOEI_TOKEN_BLOCK bytes: 32 numbers
 * of -127 ... 127, a float32 that they are multiples of, their sum as int32, the product of both, the sums of either half as
 * int16, and the sum times -128 and -8 as int32. */
enum { MOEI_TOKEN_BLOCK = 64 };

/* The codes there are: numbers of moei_codes. */
enum {
  MOEI_CODE_INT8,
  MOEI_CODE_INT4,
  MOEI_CODE_MXFP4,
  MOEI_CODE_IQ4_NL,
  MOEI_CODE_Q4_K,
  MOEI_CODE_Q6_K,
  MOEI_CODE_INT8_ROW,
  MOEI_CODE_FP8,
  MOEI_CODE_NVFP4,
  MOEI_CODE_INT4_BF16,
  MOEI_CODE_INT4_ZERO,
  MOEI_CODES
};

/* Rows of a matrix as a file has them: blocks of GGUF; or, where there are scales or bytes, one number in each byte beside
 * scales for `inputs` contraction indices each (int8_row: for a row; fp8: for all rows together; nvfp4: bytes of E4M3 for 16, times
 * `factor`, divided by `divisor`; mxfp4: bytes of E8M0 for 32; int4_zero: bytes of zero points). */
typedef struct moei_stored {
  const uint8_t *numbers;
  int64_t row; /* bytes from one row to the next */
  const float *_Nullable scales;
  int64_t scales_row;
  const uint8_t *_Nullable bytes;
  int64_t bytes_row;
  float factor, divisor;
} moei_stored;

/* 32 outputs of a product: C[m, columns] = start + ... */
typedef struct moei_code_panel {
  const void *blocks;
  const float *start;
  int64_t start_stride;
  float *c;
  int64_t c_stride;
  int64_t columns; /* at most 32 */
  /* What will be wanted after this product: where many rows are multiplied by integers it is fetched on the way.  NULL where nobody has
   * fetched this panel itself */
  const void *_Nullable next;
  int64_t next_bytes;
} moei_code_panel;

typedef struct moei_code {
  /* Rows first ..< first + rows of a block of 32 rows, from `depth` <= inputs contraction indices of w; the rest is as it was.  `largest`:
   * the largest magnitude of each whole row, where the code wants it.  0 where a scale is not finite */
  int32_t (*encode)(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                    const float *_Nullable largest, void *block);
  /* A panel from what is stored, without loss, `depth` a multiple of what has a scale of its own; 0 where it is not finite */
  int32_t (*pack)(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks);
  /* panel [k][32] from contraction index `first` of the blocks on, a multiple of 32 in the first of them */
  void (*decode)(int64_t inputs, int64_t first, int64_t k, const void *blocks, float *panel);
  /* The same chains as of the decoded panels, length contraction indices of m rows in chunks [k / 32][m][32] */
  void (*product)(int64_t inputs, int64_t m, int64_t length, const void *a, int64_t count, const moei_code_panel *panels);
  /* For each of the `length` chunks of integers fma(scale of weights * scale of the token, sum, .), with sums of products of
   * integers */
  void (*_Nullable product_of_integers)(int64_t inputs, int64_t m, int64_t length, const void *a, int64_t count, const moei_code_panel *panels);
  /* panel [k / 2][32] of pairs in bfloat16, to which the decoded numbers are rounded, from the first block on; an odd k ends in a pair
   * with 0 */
  void (*decode_pairs)(int64_t inputs, int64_t k, const void *blocks, uint32_t *panel);
  /* The same chains as of these panels, by the processor's products of pairs, where it has any: length contraction indices of m rows in
   * bfloat16, chunks [k / 32][m][32] */
  void (*_Nullable product_of_pairs)(int64_t inputs, int64_t m, int64_t length, const void *a, int64_t count, const moei_code_panel *panels);
} moei_code;

typedef struct moei_codes {
  moei_code of[MOEI_CODES];
} moei_codes;

/* One chunk of a tile of m rows in a backward of experts (Sources/Kernels/InnerGradient.swift); arrays of elements are float32 or
 * bfloat16, and lie as products of features or, `tokens`, as sums over tokens read them: the same array in float32. */
typedef struct moei_inner_gradient {
  int64_t rows; /* m */
  moei_activation activation;
  const void *_Nullable gate; /* [m][32] pre-activations; NULL: a = act(up) */
  const void *up;
  const float *da;                /* [m][32] of the activations; in float32 it may be dup */
  const float *_Nullable weights; /* [m] that da is multiplied by */
  const float *_Nullable kept;    /* [m][32] 0 where dropout drops, else what it multiplies by */
  float *slopes;                  /* <da, a> of each row, without its weight */
  int64_t slopes_stride;
  void *a; /* for sums over tokens alone */
  void *_Nullable dgate;
  void *_Nullable dgate_tokens;
  void *dup;
  void *dup_tokens;
} moei_inner_gradient;

/* The gradient of attention's softmax over m queries in rows and 32 keys in columns; arrays of elements as above. */
typedef struct moei_attention_slopes {
  int64_t rows; /* m */
  float scale;
  const float *_Nullable bias; /* [m][32] */
  const float *_Nullable kept; /* [m][32] */
  const float *log_sums;       /* [m] */
  const float *means;          /* [m] */
  const float *scores;         /* [m][32] q . k */
  const float *slopes;         /* [m][32] dout . v */
  void *weights;               /* p, times kept, for sums over tokens; in float32 it may be scores */
  void *dscores;               /* scale p (kept * slope - mean); in float32 it may be slopes */
  void *dscores_tokens;
} moei_attention_slopes;

/* The functions of Sources/Kernels, compiled for one instruction set.  n counts floats; arrays of one call do not
 * overlap unless they are the same array. */
typedef struct moei_kernels {
  const char *name;

  /* a = act(v);  dv = da * act'(v), in place of da */
  void (*activate)(moei_activation activation, int64_t n, const float *v, float *a);
  void (*activate_backward)(moei_activation activation, int64_t n, const float *v, float *da);
  /* a = act(gate) * up;  dgate = da * up * act'(gate), dup = da * act(gate); dup may be da.  gate and up as clamped,
   * dgate and dup 0 where they were */
  void (*activate_gated)(moei_activation activation, int64_t n, const float *gate, const float *up, float *a);
  void (*activate_gated_backward)(moei_activation activation, int64_t n, const float *gate, const float *up,
                                  const float *da, float *dgate, float *dup);

  void (*inner_gradient)(const moei_inner_gradient *call);
  void (*inner_gradient_bf16)(const moei_inner_gradient *call);

  /* p = softmax(z), log-sum-exp of z and entropy of p in nats; z has a finite largest element */
  void (*softmax)(int64_t n, const float *z, float *p, float *lse, float *entropy);
  /* exp(z - max) in place of z;  sums: max, the exponentials' sum, its logarithm, the sum of z - max */
  void (*exponentials)(int64_t n, float *z, float *sums);
  /* s = 1 / (1 + exp(-z));  s = sqrt(ln(1 + exp z)) */
  void (*sigmoid)(int64_t n, const float *z, float *s);
  void (*sqrt_softplus)(int64_t n, const float *z, float *s);
  /* y = x^p, x and p >= 0 */
  void (*power)(int64_t n, float p, const float *x, float *y);
  /* the normal distribution:  chance = Phi(q),  density = exp(-q^2 / 2) / sqrt(2 pi) */
  void (*normal)(int64_t n, const float *q, float *chance, float *density);
  /* index of the first element that is NaN or plus infinity, or n */
  int64_t (*first_not_finite)(int64_t n, const float *z);
  /* the k largest of z, largest first, the lowest index first among equals: where they are, and what; 1 <= k <= n */
  void (*top_k)(int64_t n, int64_t k, const float *z, int32_t *indices, float *chosen);
  /* dz = p (dp - sum of dp p + dlse), with dp in dz: through p = softmax(z) and its log-sum-exp */
  void (*softmax_backward)(int64_t n, const float *p, float dlse, float *dz);

  /* Attention's softmax over tiles [rows][32] (Sources/Kernels/Attention.swift), z = scale * score + bias:
   * keys in rows, queries in columns: p = exp(z - maximum), times kept, in place of scores, or in pairs of keys; maximum, total
   * and factor are those of the queries so far [32]; of few, up to 16 queries in rows [keys / 32][queries][32], with scores [keys][16] as
   * room
   * log_sum = maximum + ln total, inverse = 1 / total of 32 queries */
  void (*attention_weights)(int64_t keys, float scale, const float *_Nullable bias, const float *_Nullable kept, float *scores, float *maximum, float *total, float *factor);
  void (*attention_weights_of_few)(int64_t queries, int64_t keys, float scale, const float *_Nullable bias, const float *_Nullable kept, float *rows, float *scores, float *maximum, float *total, float *factor);
  void (*attention_weights_bf16)(int64_t keys, float scale, const float *_Nullable bias, const float *_Nullable kept, float *scores, uint32_t *weights, float *maximum, float *total, float *factor);
  void (*attention_sums)(const float *maximum, const float *total, float *log_sum, float *inverse);
  void (*attention_gradients)(const moei_attention_slopes *call);
  void (*attention_gradients_bf16)(const moei_attention_slopes *call);
  /* Of each head, `stride` floats apart: low, high = low cos - high sin, low sin + high cos, its first n floats and the n behind them.
   * The heads at `next` are fetched */
  void (*rotate)(int64_t heads, int64_t stride, int64_t n, const float *cosines, const float *sines, float *x, const float *next);

  /* n random words, four from each counter, the first of which has `first` as words 0 and 1; `uniform` turns them into
   * values within (-bound, bound); `dropout` makes a value 0 where its word is below `threshold`, else scales it */
  void (*random_words)(int64_t n, moei_random random, uint64_t first, uint32_t *words);
  void (*uniform)(int64_t n, moei_random random, uint64_t first, float bound, float *values);
  void (*dropout)(int64_t n, moei_random random, uint64_t first, uint32_t threshold, float scale, float *values);

  float (*dot)(int64_t n, const float *x, const float *y);
  void (*scale)(int64_t n, float s, const float *x, float *y);            /* y = s x */
  void (*add_scaled)(int64_t n, float s, const float *x, float *y);       /* y = fma(s, x, y) */
  void (*add)(int64_t n, const float *x, float *y);                       /* y = y + x */
  /* y = [y +] weights[0] x[rows[0]] + weights[1] x[rows[1]] ..., a chain in this order; no weights: the sum of the rows; count > 0 */
  void (*add_rows)(int64_t n, int64_t count, const int32_t *rows, const float *_Nullable weights, const float *x,
                   int64_t x_row, int32_t goes_on, float *y);

  /* A row's norm, n = (x - mean) * scale:  sum of x;  sum of (x - mean)^2;  y = n weight + bias, y may be x */
  float (*sum)(int64_t n, const float *x);
  float (*sum_of_squares)(int64_t n, float mean, const float *x);
  void (*normalize)(int64_t n, float mean, float scale, const float *x, const float *weight, const float *_Nullable bias, float *y);
  /* with g = dy weight:  sums of g, where it is wanted, and of g n;  dx = (g - mean_g - n mean_gn) scale, dx may be dy;  dweight += dy n */
  void (*normalize_sums)(int64_t n, float mean, float scale, const float *x, const float *weight, const float *dy,
                         float *_Nullable sum_g, float *sum_gn);
  void (*normalize_backward)(int64_t n, float mean, float scale, const float *x, const float *weight, const float *dy,
                             float mean_g, float mean_gn, float *dx);
  /* Columns 0 ..< n of `rows` rows of x and dy, `x_row` and `dy_row` floats apart; statistics [rows][2] mean, scale */
  void (*add_normalized)(int64_t rows, int64_t n, const float *statistics, const float *x, int64_t x_row, const float *dy, int64_t dy_row,
                         float *dweight);

  /* C[i,j] = the chain over p = 0, 1, ... k-1 of fma(A[i,p], B[p,j], .) starting from C[i,j]; strides in elements */
  void (*matmul)(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column, const float *b,
                 int64_t b_row, int64_t b_column, float *c, int64_t c_row);

  /* The same chains, tile by tile, over A in chunks [k / 32][m][32] and B in panels [k][32] (Sources/Kernels/Tile.swift);
   * m is at most tile_height.  Without an instruction for fused multiply-adds (has_tiles 0) these are not those chains.
   *   C[m, columns] = start + A B;  start_stride 0: every row starts from the same 32 floats */
  int32_t has_tiles;
  int32_t has_pairs; /* whether one instruction multiplies pairs of bfloat16 */
  int64_t tile_height;
  void (*product)(int64_t m, int64_t columns, int64_t k, const float *a, const float *b, const float *start,
                  int64_t start_stride, float *c, int64_t c_stride, const void *ahead, int64_t ahead_row,
                  int64_t ahead_chunk, int64_t ahead_beside);
  /* The only tile of so many rows and fewer reads panels that lie one after the other faster where nothing is fetched: the core finds them
   * by itself */
  int64_t rows_unfetched;
  /* C[m,32] = start + A W^T for m <= few_rows and 32 rows of W as they lie; A has `chunks` whole chunks, k = 32 chunks.
   * While a row is read, what lies `ahead` bytes further on is fetched: behind its end, of one of the 16 rows at `next`, as far apart,
   * and while the last 16 are read, at `last_next` */
  int64_t few_rows;
  int64_t few_rows_of_pairs; /* of product_of_few_rows_of_pairs */
  void (*product_of_few_rows)(int64_t m, int64_t chunks, const float *a, const float *w, int64_t w_row, const float *start,
                              int64_t start_stride, float *c, int64_t c_stride, int64_t ahead, const void *next,
                              const void *last_next);
  /* C[m,n] += A B for few rows of A and k rows of B where they lie, n a multiple of 32. On the way [k,n] of `next` is fetched */
  void (*add_few_rows)(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, const float *b, int64_t b_row, float *c, int64_t c_row,
                       const float *next, int64_t next_row);
  /* The same of bfloat16: A has pairs of its columns in words, and in every 32 columns of C the even ones stand in front of the odd ones */
  void (*add_few_rows_of_pairs)(int64_t m, int64_t n, int64_t k, const uint32_t *a, int64_t a_row, const uint16_t *b, int64_t b_row, float *c,
                                int64_t c_row, const uint16_t *next, int64_t next_row);
  /* C[rows, columns] += sum over tokens of A^T B, for chunk number a_chunk of A [tile][chunk][token][32] and one or two of B, so
   * that columns may be up to 64; c_next is the C that will be wanted next, and `wanted` are places of 128 bytes that somebody wants
   * right after this product: they are fetched from memory on the way */
  void (*product_over_tokens)(int64_t rows, int64_t columns, moei_tiles tiles, const float *a, int64_t a_width,
                              int64_t a_chunk, const float *b, int64_t b_width, int64_t b_chunk, float *c,
                              int64_t c_stride, const float *c_next, const void *_Nonnull const *_Nullable wanted, int64_t wanted_count);
  /* panel[p][j] = w[j][p], or w[p][j], for j < columns <= 32, 0 beyond */
  void (*pack_transposed)(int64_t columns, int64_t k, const float *w, int64_t w_row, float *panel);
  void (*pack)(int64_t columns, int64_t k, const float *w, int64_t w_row, float *panel);
  /* chunks [columns / 32][m][32] of m rows of x: row tokens[r], times weights[r]; without tokens, row r */
  void (*gather)(int64_t m, int64_t columns, const int32_t *_Nullable tokens, const float *x, int64_t x_row, const float *_Nullable weights, float *chunks);

  /* The products of bfloat16 take two at a time, in words of two: A [k / 32][m][16] and B [k / 2][32] of pairs along k,
   * or both [tile][chunk][token / 2][32] of pairs of tokens.  k counts words, and so do the tiles and the widths. */
  void (*product_of_pairs)(int64_t m, int64_t columns, int64_t k, const uint32_t *a, const uint32_t *b, const float *start,
                           int64_t start_stride, float *c, int64_t c_stride, const void *ahead, int64_t ahead_row,
                           int64_t ahead_chunk, int64_t ahead_beside);
  void (*product_of_few_rows_of_pairs)(int64_t m, int64_t chunks, const uint32_t *a, const uint16_t *w, int64_t w_row,
                                       const float *start, int64_t start_stride, float *c, int64_t c_stride, int64_t ahead,
                                       const void *next, const void *last_next);
  void (*product_over_token_pairs)(int64_t rows, int64_t columns, moei_tiles tiles, const uint32_t *a, int64_t a_width,
                                   int64_t a_chunk, const uint32_t *b, int64_t b_width, int64_t b_chunk, float *c,
                                   int64_t c_stride, const float *c_next, const void *_Nonnull const *_Nullable wanted, int64_t wanted_count);
  void (*from_bf16)(int64_t n, const uint16_t *x, float *y);
  void (*to_bf16)(int64_t n, const float *x, uint16_t *y);
  void (*round_to_bf16)(int64_t n, float *x, uint16_t *y); /* x and y = x rounded */
  void (*from_f16)(int64_t n, const uint16_t *x, float *y); /* binary16 */
  void (*to_f16)(int64_t n, const float *x, uint16_t *y);
  /* panels as above, of pairs along k; an odd k ends in a pair with 0.  w_row counts bfloat16 */
  void (*pack_pairs_transposed)(int64_t columns, int64_t k, const uint16_t *w, int64_t w_row, uint32_t *panel);
  void (*pack_pairs)(int64_t columns, int64_t k, const uint16_t *w, int64_t w_row, uint32_t *panel);
  /* gather, rounded: rows, or pairs of rows [columns / 32][m / 2][32], the last one with 0 where m is odd */
  void (*gather_bf16)(int64_t m, int64_t columns, const int32_t *_Nullable tokens, const float *x, int64_t x_row, const float *_Nullable weights, uint16_t *chunks);
  void (*gather_token_pairs)(int64_t m, int64_t columns, const int32_t *_Nullable tokens, const float *x, int64_t x_row, const float *_Nullable weights, uint32_t *chunks);
  void (*add_token_pairs)(int64_t n, const uint32_t *x, float *y); /* y = y + lower half of x, then + upper half */

  moei_codes codes;
  /* For MOEI_CODE_INT8_ROW alone, at most 32 rows: floats [columns / 32][m][32] become, where they are, integers [columns / 32][m][32] under one
   * step for a row, [m] steps and [m] sums of the integers, times -128 */
  void (*row_integers)(int64_t m, int64_t chunks, float *rows);
  /* gather as integers: chunks [columns / 32][m] */
  void (*gather_integers)(int64_t m, int64_t columns, const int32_t *_Nullable tokens, const float *x, int64_t x_row, const float *_Nullable weights, void *chunks);

  /* One step.  SGD's velocity is the first moment; nesterov is v = momentum v + g, update = g + momentum v, g clipped */
  void (*adamw)(int64_t n, const moei_adamw *factors, float *parameter, const float *gradient, const moei_moments *moments);
  void (*sgd)(int64_t n, float clip, float decay, float momentum, float learning_rate, float *parameter,
              const float *gradient, const moei_moments *moments);
  void (*nesterov)(int64_t n, float clip, float momentum, const float *gradient, const moei_moments *moments,
                   float *update);
  /* SGD without a velocity; and values rounded to bfloat16 by chance, into the first moment */
  void (*plain_sgd)(int64_t n, float clip, float decay, float learning_rate, float *parameter, const float *gradient);
  void (*round_by_chance)(int64_t n, const float *values, const moei_moments *moments);
} moei_kernels;

static inline const moei_code *moei_code_of(const moei_kernels *kernels, int32_t number) { return &kernels->codes.of[number]; }

void moei_kernels_base(moei_kernels *out);
void moei_kernels_avx2(moei_kernels *out);
void moei_kernels_avx512(moei_kernels *out);
void moei_kernels_avx512_bf16(moei_kernels *out);

/* Numbers as in moe_instructions: 1 the base set, 2 AVX2 and FMA, 3 AVX-512 F, BW, VL, DQ, 4 the same and BF16. */
int32_t moei_processor_level(void);

#pragma clang assume_nonnull end

#endif
