/* The words that kernels of weights of few bits are written in: vectors, tables, sums of integers. */
#ifndef MOEI_CODES_WORDS_H
#define MOEI_CODES_WORDS_H

#include "../moei.h"

#pragma clang assume_nonnull begin

/* Vectors of integers of 8, 16 and 32 bits, and of floats. */
typedef int8_t moei_i8x16 __attribute__((ext_vector_type(16)));
typedef int8_t moei_i8x32 __attribute__((ext_vector_type(32)));
typedef uint8_t moei_u8x32 __attribute__((ext_vector_type(32)));
typedef int16_t moei_i16x16 __attribute__((ext_vector_type(16)));
typedef int16_t moei_i16x32 __attribute__((ext_vector_type(32)));
typedef int32_t moei_i32x8 __attribute__((ext_vector_type(8)));
typedef uint16_t moei_u16x32 __attribute__((ext_vector_type(32)));
typedef uint16_t moei_u16x8 __attribute__((ext_vector_type(8)));
typedef float moei_f32x8 __attribute__((ext_vector_type(8)));
/* Rounded towards 0; they fit. */
static inline __attribute__((always_inline)) moei_i32x16 moei_to_i32(moei_f32x16 v) {
  return __builtin_convertvector(v, moei_i32x16);
}
static inline __attribute__((always_inline)) void moei_store_i8(moei_i32x16 v, void *p) {
  moei_i8x16 bytes = __builtin_convertvector(v, moei_i8x16);
  __builtin_memcpy(p, &bytes, sizeof bytes);
}

/* So many bytes ahead blocks are fetched into the second cache, which has more places for lines on their way than the first one. */
enum { MOEI_AHEAD = 8192 };
/* Whether a core finds a stream of numbers and scales by itself: with AVX-512 one row of integers, which waits for memory alone, is 5 to 15 %
 * faster where nobody else fetches; with AVX2 up to 1.8 times slower. */
#if defined(__AVX512F__)
enum { moei_finds_streams = 1 };
#else
enum { moei_finds_streams = 0 };
#endif
#define MOEI_INLINE static inline __attribute__((always_inline))
/* Loops that become single instructions.  Where fused multiply-add is a function of libm they may as well stay loops. */
#if defined(__FMA__) || defined(__aarch64__)
#define MOEI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MOEI_UNROLL _Pragma("clang loop unroll(disable)")
#endif

/* Of as many outputs as are taken at once: words of their integers, or sums of products of these; floats.  A register, and
 * the widest where there are instructions for sums. */
#if defined(__AVX512VNNI__)
typedef moei_i32x16 moei_sums;
typedef moei_f32x16 moei_sum_floats;
#else
typedef moei_i32x8 moei_sums;
typedef moei_f32x8 moei_sum_floats;
#endif
enum { MOEI_LANES = sizeof(moei_sums) / 4 };
/* Whether there are registers for the sums of two panels at once. */
enum { moei_pairs_panels = MOEI_LANES == 16 };
MOEI_INLINE moei_sums moei_repeat(int32_t x) {
  moei_sums all = x;
  return all;
}

/* ---- where things lie -------------------------------------------------------------------------------------- */

/* 32 contraction indices of a block, and the first of the outputs that are taken at once. */
typedef struct moei_place {
  const char *block;
  int64_t sub, subs, output;
} moei_place;

MOEI_INLINE moei_sums moei_load_words(const char *p) {
  moei_sums words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
}
/* Row `row` of words of half bytes, or of bytes. */
MOEI_INLINE moei_sums moei_nibble_words(moei_place at, int64_t row) {
  return moei_load_words(at.block + at.sub * 512 + row * 128 + at.output * 4);
}
MOEI_INLINE moei_sums moei_byte_words(moei_place at, int64_t row) {
  return moei_load_words(at.block + at.sub * 1024 + row * 128 + at.output * 4);
}
/* Scales of binary16. */
MOEI_INLINE moei_sum_floats moei_load_scales(const char *p) {
#if defined(__AVX512VNNI__)
  moei_u16x16 halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  return moei_from_f16(halves);
#else
  moei_u16x8 halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  moei_u16x16 filled = __builtin_shufflevector(halves, (moei_u16x8)0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return moei_from_f16(filled).lo;
#endif
}
/* Two numbers of a byte in the lower half of each lane. */
MOEI_INLINE moei_sums moei_load_u16(const char *p) {
  typedef uint16_t halves __attribute__((ext_vector_type(MOEI_LANES)));
  halves own;
  __builtin_memcpy(&own, p, sizeof own);
  return __builtin_convertvector(own, moei_sums);
}
/* A number of a byte in each lane. */
MOEI_INLINE moei_sums moei_load_u8(const char *p) {
  typedef uint8_t bytes __attribute__((ext_vector_type(MOEI_LANES)));
  bytes own;
  __builtin_memcpy(&own, p, sizeof own);
  return __builtin_convertvector(own, moei_sums);
}
MOEI_INLINE moei_sum_floats moei_load_bf16_scales(const char *p) { return (moei_sum_floats)(moei_load_u16(p) << 16); }
MOEI_INLINE moei_sum_floats moei_load_floats(const char *p) {
  moei_sum_floats own;
  __builtin_memcpy(&own, p, sizeof own);
  return own;
}

/* 32 features of a token in MOEI_TOKEN_BLOCK bytes: four of its integers; their step; their sum; the product of both; the
 * sums of the first and of the last sixteen; the sum times -128 and -8. */
MOEI_INLINE int32_t moei_four(const char *token, int64_t i) {
  int32_t four;
  __builtin_memcpy(&four, token + i * 4, 4);
  return four;
}
MOEI_INLINE float moei_token_float(const char *token, int64_t offset) {
  float own;
  __builtin_memcpy(&own, token + offset, 4);
  return own;
}
MOEI_INLINE float moei_step_of(const char *token) { return moei_token_float(token, 32); }
MOEI_INLINE int32_t moei_sum_of(const char *token) { return moei_four(token, 9); }
MOEI_INLINE moei_sums moei_less_8_of(const char *token) { return moei_repeat(moei_four(token, 13)); }
MOEI_INLINE float moei_scaled_sum_of(const char *token) { return moei_token_float(token, 40); }
MOEI_INLINE int32_t moei_half_sums_of(const char *token) { return moei_four(token, 11); }

/* ---- numbers as floats ------------------------------------------------------------------------------------- */

/* sum + x v with one rounding, also where there is no instruction for it. */
MOEI_INLINE moei_sum_floats moei_add_product(moei_sum_floats sum, float x, moei_sum_floats v) {
  moei_sum_floats all = x;
  return __builtin_elementwise_fma(all, v, sum);
}
/* The same of integers: sum + (scales scale) n. */
MOEI_INLINE moei_sum_floats moei_add_scaled(moei_sum_floats sum, moei_sum_floats scales, float scale, moei_sums n) {
  return __builtin_elementwise_fma(scales * scale, __builtin_convertvector(n, moei_sum_floats), sum);
}
/* Signed byte i of words. */
MOEI_INLINE moei_sum_floats moei_byte(moei_sums words, int32_t i) {
  return __builtin_convertvector(words << (24 - 8 * i) >> 24, moei_sum_floats);
}
/* Where half byte j of a word begins: the lower halves of its bytes, then the upper ones. */
MOEI_INLINE int32_t moei_nibble_bit(int32_t j) { return j < 4 ? 8 * j : 8 * j - 28; }
MOEI_INLINE moei_sum_floats moei_nibble(moei_sums words, int32_t j) {
  return __builtin_convertvector((words >> moei_nibble_bit(j)) & 15, moei_sum_floats);
}
#if defined(__AVX512VNNI__)
/* Two entries of a table of 32 numbers of 16 bits, by the lowest five bits of each half of a word. */
MOEI_INLINE moei_u16x32 moei_pick_in_pairs(moei_u16x32 table, moei_u16x32 indices) {
  typedef short shorts __attribute__((__vector_size__(64)));
  return (moei_u16x32)(shorts)__builtin_ia32_permvarhi512((shorts)table, (shorts)indices);
}
/* Entry of a table of sixteen floats. */
MOEI_INLINE moei_sum_floats moei_pick(moei_f32x16 table, moei_sums indices) {
  typedef float floats __attribute__((__vector_size__(64)));
  typedef int integers __attribute__((__vector_size__(64)));
  return (moei_sum_floats)(floats)__builtin_ia32_permvarsf512((floats)table, (integers)indices);
}
#endif
/* Half byte j less 8. */
MOEI_INLINE moei_sum_floats moei_signed_nibble(moei_sums words, int32_t j) {
#if defined(__AVX512VNNI__)
  const moei_f32x16 values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  return moei_pick(values, words >> moei_nibble_bit(j));
#else
  return __builtin_convertvector((words ^ (int32_t)0x88888888) << (28 - moei_nibble_bit(j)) >> 28, moei_sum_floats);
#endif
}
/* Two floats of each output rounded to bfloat16, in the lower and in the upper half of a word.  The instruction takes denormal numbers
 * for 0, as that for products does. */
MOEI_INLINE moei_sums moei_rounded_pair(moei_sum_floats low, moei_sum_floats high) {
#if defined(__AVX512BF16__)
  typedef float floats __attribute__((__vector_size__(64)));
  moei_u16x32 both = (moei_u16x32)__builtin_ia32_cvtne2ps2bf16_512((floats)high, (floats)low);
  return (moei_sums)__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11,
                                            27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
  typedef uint32_t words __attribute__((ext_vector_type(MOEI_LANES)));
  const moei_sum_floats own[2] = {low, high};
  words rounded[2];
  MOEI_UNROLL for (int i = 0; i < 2; i++) {
    const words bits = (words)own[i], is_nan = (words)(own[i] != own[i]);
    rounded[i] = (is_nan & (bits | 0x400000)) | (~is_nan & (bits + 0x7FFF + (bits >> 16 & 1)));
  }
  return (moei_sums)(rounded[0] >> 16 | (rounded[1] & 0xFFFF0000));
#endif
}
/* Numbers in bfloat16, by which those of 32 contraction indices are looked up, and whether they can be (pairs.h). */
typedef struct moei_pair_tables {
  moei_u16x32 of[8];
  int hold;
} moei_pair_tables;
#if defined(__AVX512BF16__)
/* Two numbers of each output, of each word the lower half's and the upper half's: bytes 2 p and 2 p + 1 twice; half bytes number p of
 * four pairs, whatever lies above them; entries of a table of 32, by the lowest five bits. */
MOEI_INLINE moei_u16x32 moei_bytes_in_pairs(moei_sums words, int32_t p) {
  typedef char bytes __attribute__((__vector_size__(64)));
  const moei_sums order = {0, 0x04040404, 0x08080808, 0x0C0C0C0C, 0, 0x04040404, 0x08080808, 0x0C0C0C0C,
                           0, 0x04040404, 0x08080808, 0x0C0C0C0C, 0, 0x04040404, 0x08080808, 0x0C0C0C0C};
  return (moei_u16x32)(bytes)__builtin_ia32_pshufb512((bytes)words, (bytes)(order + (p ? 0x03030202 : 0x01010000)));
}
MOEI_INLINE moei_u16x32 moei_nibbles_in_pairs(moei_sums words, int32_t p) {
  const moei_u16x32 both = moei_bytes_in_pairs(words, p & 1);
  return p < 2 ? both : both >> 4;
}
#endif
/* A byte of E4M3 in the lowest bits, without a sign: (bits << 20) has its exponent and fraction, 120 too small in the former. */
MOEI_INLINE moei_sum_floats moei_e4m3(moei_sums bytes) { return (moei_sum_floats)((bytes & 0x7F) << 20) * 0x1p120f; }

/* Of each byte, whose upper half is 0, the entry of a table of sixteen. */
typedef struct moei_table {
  int8_t of[16];
} moei_table;
MOEI_INLINE moei_sums moei_look_up(moei_sums nibbles, moei_table table) {
#if defined(__AVX512VNNI__)
  typedef char bytes __attribute__((__vector_size__(64)));
  typedef int64_t two __attribute__((ext_vector_type(2)));
  two own;
  __builtin_memcpy(&own, &table, sizeof own);
  return (moei_sums)(bytes)__builtin_ia32_pshufb512((bytes)__builtin_shufflevector(own, own, 0, 1, 0, 1, 0, 1, 0, 1), (bytes)nibbles);
#elif defined(__AVX2__)
  typedef char bytes __attribute__((__vector_size__(32)));
  typedef int64_t two __attribute__((ext_vector_type(2)));
  two own;
  __builtin_memcpy(&own, &table, sizeof own);
  return (moei_sums)(bytes)__builtin_ia32_pshufb256((bytes)__builtin_shufflevector(own, own, 0, 1, 0, 1), (bytes)nibbles);
#elif defined(__aarch64__)
  typedef __attribute__((neon_vector_type(16))) signed char bytes;
  bytes own;
  __builtin_memcpy(&own, &table, sizeof own);
  moei_i8x32 numbers = (moei_i8x32)nibbles, values;
  values.lo = (moei_i8x16)__builtin_neon_vqtbl1q_v(own, (bytes)numbers.lo, 32);
  values.hi = (moei_i8x16)__builtin_neon_vqtbl1q_v(own, (bytes)numbers.hi, 32);
  return (moei_sums)values;
#else
  /* From step to step. */
  moei_i8x32 numbers = (moei_i8x32)nibbles, values = table.of[0];
  MOEI_UNROLL for (int8_t i = 1; i < 16; i++) values += (moei_i8x32)(numbers >= i) & (int8_t)(table.of[i] - table.of[i - 1]);
  return (moei_sums)values;
#endif
}
MOEI_INLINE moei_sums moei_low_halves(moei_sums words) { return words & 0x0F0F0F0F; }
MOEI_INLINE moei_sums moei_high_halves(moei_sums words) { return (words >> 4) & 0x0F0F0F0F; }
/* The entry for half byte j of words. */
MOEI_INLINE moei_sum_floats moei_table_value(moei_sums words, int32_t j, moei_table table) {
#if defined(__AVX512VNNI__)
  moei_i8x16 own;
  __builtin_memcpy(&own, &table, sizeof own);
  return moei_pick(__builtin_convertvector(own, moei_f32x16), words >> moei_nibble_bit(j));
#else
  return moei_byte(moei_look_up(j < 4 ? moei_low_halves(words) : moei_high_halves(words), table), j & 3);
#endif
}

/* ---- products of integers ---------------------------------------------------------------------------------- */

/* Bytes as moei_add_bytes takes them: with VNNI 128 more than they are, without a sign. */
MOEI_INLINE moei_sums moei_as_factors(moei_sums words) {
#if defined(__AVX512VNNI__)
  return words ^ (int32_t)0x80808080;
#else
  return words;
#endif
}
/* sum + the products of the four bytes of words and of x, of which the latter has none of -128. */
MOEI_INLINE moei_sums moei_add_bytes(moei_sums sum, moei_sums words, int32_t x) {
#if defined(__AVX512VNNI__)
  typedef int integers __attribute__((__vector_size__(64)));
  return (moei_sums)(integers)__builtin_ia32_vpdpbusd512((integers)sum, (integers)words, (integers)moei_repeat(x));
#elif defined(__AVX2__)
  typedef char bytes __attribute__((__vector_size__(32)));
  typedef short shorts __attribute__((__vector_size__(32)));
  typedef int integers __attribute__((__vector_size__(32)));
  const shorts ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  bytes signs = __builtin_ia32_psignb256((bytes)moei_repeat(x), (bytes)words);
  shorts pairs = __builtin_ia32_pmaddubsw256((bytes)__builtin_elementwise_abs((moei_i8x32)words), signs);
  return sum + (moei_sums)(integers)__builtin_ia32_pmaddwd256(pairs, ones);
#else
  typedef int32_t moei_i32x32 __attribute__((ext_vector_type(32)));
  moei_i16x32 products = __builtin_convertvector((moei_i8x32)words, moei_i16x32) * __builtin_convertvector((moei_i8x32)moei_repeat(x), moei_i16x32);
  moei_i32x32 wide = __builtin_convertvector(products, moei_i32x32);
  moei_i32x16 pairs = wide.even + wide.odd;
  return sum + pairs.even + pairs.odd;
#endif
}
/* What the first sum of moei_add_bytes is, with -128 times the sum of all numbers that words are multiplied by. */
MOEI_INLINE moei_sums moei_no_bytes(int32_t less_128) {
#if defined(__AVX512VNNI__)
  return moei_repeat(less_128);
#else
  (void)less_128;
  return moei_repeat(0);
#endif
}
/* Sums of products of small numbers without a sign: in 16 bits but with VNNI, so that so many products of two fit as numbers
 * of 0 ... 15 (eight), of 0 ... 31 (four) or of 0 ... 63 (two) times 127 allow. */
#if defined(__AVX512VNNI__)
typedef moei_i32x16 moei_small_sums;
#else
typedef moei_i16x16 moei_small_sums;
#endif
MOEI_INLINE moei_small_sums moei_no_small(void) { return (moei_small_sums)0; }
MOEI_INLINE moei_small_sums moei_add_small(moei_small_sums sum, moei_sums numbers, int32_t x) {
#if defined(__AVX512VNNI__)
  typedef int integers __attribute__((__vector_size__(64)));
  return (moei_sums)(integers)__builtin_ia32_vpdpbusd512((integers)sum, (integers)numbers, (integers)moei_repeat(x));
#elif defined(__AVX2__)
  typedef char bytes __attribute__((__vector_size__(32)));
  typedef short shorts __attribute__((__vector_size__(32)));
  return sum + (moei_i16x16)(shorts)__builtin_ia32_pmaddubsw256((bytes)numbers, (bytes)moei_repeat(x));
#else
  moei_i16x32 products = __builtin_convertvector((moei_i8x32)numbers, moei_i16x32) * __builtin_convertvector((moei_i8x32)moei_repeat(x), moei_i16x32);
  return sum + products.even + products.odd;
#endif
}
MOEI_INLINE moei_sums moei_sum_small(moei_small_sums sum) {
#if defined(__AVX512VNNI__)
  return sum;
#elif defined(__AVX2__)
  typedef short shorts __attribute__((__vector_size__(32)));
  typedef int integers __attribute__((__vector_size__(32)));
  const shorts ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return (moei_sums)(integers)__builtin_ia32_pmaddwd256((shorts)sum, ones);
#else
  moei_i32x16 wide = __builtin_convertvector(sum, moei_i32x16);
  return wide.even + wide.odd;
#endif
}
/* factors of 0 ... 255 times a number of 16 bits. */
MOEI_INLINE moei_sums moei_times(moei_sums factors, int32_t number) {
#if defined(__AVX512VNNI__)
  typedef short shorts __attribute__((__vector_size__(64)));
  typedef int integers __attribute__((__vector_size__(64)));
  return (moei_sums)(integers)__builtin_ia32_pmaddwd512((shorts)factors, (shorts)moei_repeat(number));
#elif defined(__AVX2__)
  typedef short shorts __attribute__((__vector_size__(32)));
  typedef int integers __attribute__((__vector_size__(32)));
  return (moei_sums)(integers)__builtin_ia32_pmaddwd256((shorts)factors, (shorts)moei_repeat(number));
#else
  return factors * number;
#endif
}
/* Half bytes of four contraction indices, number i of eight. */
MOEI_INLINE moei_sums moei_nibble_word(moei_place at, int64_t i) {
  const moei_sums words = moei_nibble_words(at, i / 2);
  return i % 2 ? moei_high_halves(words) : moei_low_halves(words);
}

/* How the eight words of 32 contraction indices are summed (kernels.h): NAME_begin, NAME_add(sums, number of the word, word, four
 * integers of the token), then NAME_all, or NAME_half of the first and last sixteen.
 * Bytes with a sign, as moei_as_factors makes them. */
typedef moei_sums moei_of_bytes;
MOEI_INLINE moei_of_bytes moei_of_bytes_begin(const char *token) { return moei_no_bytes(moei_four(token, 12)); }
MOEI_INLINE moei_of_bytes moei_of_bytes_add(moei_of_bytes sums, int i, moei_sums word, int32_t x) {
  (void)i;
  return moei_add_bytes(sums, word, x);
}
MOEI_INLINE moei_sums moei_of_bytes_all(moei_of_bytes sums) { return sums; }

/* Numbers of 0 ... 15. */
typedef moei_small_sums moei_of_nibbles;
MOEI_INLINE moei_of_nibbles moei_of_nibbles_begin(const char *token) {
  (void)token;
  return moei_no_small();
}
MOEI_INLINE moei_of_nibbles moei_of_nibbles_add(moei_of_nibbles sums, int i, moei_sums word, int32_t x) {
  (void)i;
  return moei_add_small(sums, word, x);
}
MOEI_INLINE moei_sums moei_of_nibbles_all(moei_of_nibbles sums) { return moei_sum_small(sums); }

/* Numbers of 0 ... 31: four words' sums fit. */
typedef struct moei_of_halves {
  moei_small_sums half[2];
} moei_of_halves;
MOEI_INLINE moei_of_halves moei_of_halves_begin(const char *token) {
  (void)token;
  return (moei_of_halves){{moei_no_small(), moei_no_small()}};
}
MOEI_INLINE moei_of_halves moei_of_halves_add(moei_of_halves sums, int i, moei_sums word, int32_t x) {
  sums.half[i / 4] = moei_add_small(sums.half[i / 4], word, x);
  return sums;
}
MOEI_INLINE moei_sums moei_of_halves_half(moei_of_halves sums, int h) { return moei_sum_small(sums.half[h]); }
MOEI_INLINE moei_sums moei_of_halves_all(moei_of_halves sums) { return moei_sum_small(sums.half[0]) + moei_sum_small(sums.half[1]); }

/* Numbers of 0 ... 63: two words' sums fit. */
typedef struct moei_of_quarters {
  moei_small_sums quarter[4];
} moei_of_quarters;
MOEI_INLINE moei_of_quarters moei_of_quarters_begin(const char *token) {
  (void)token;
  return (moei_of_quarters){{moei_no_small(), moei_no_small(), moei_no_small(), moei_no_small()}};
}
MOEI_INLINE moei_of_quarters moei_of_quarters_add(moei_of_quarters sums, int i, moei_sums word, int32_t x) {
  sums.quarter[i / 2] = moei_add_small(sums.quarter[i / 2], word, x);
  return sums;
}
MOEI_INLINE moei_sums moei_of_quarters_half(moei_of_quarters sums, int h) {
  return moei_sum_small(sums.quarter[2 * h]) + moei_sum_small(sums.quarter[2 * h + 1]);
}
/* Where sums have 32 bits, all fit. */
#if defined(__AVX512VNNI__)
#define MOEI_OF_FIVE_BITS moei_of_nibbles
#define MOEI_OF_SIX_BITS moei_of_halves
#else
#define MOEI_OF_FIVE_BITS moei_of_halves
#define MOEI_OF_SIX_BITS moei_of_quarters
#endif

#pragma clang assume_nonnull end

#endif
