/* Integers of 6 bits in blocks of 256 contraction indices: w = (d s) q, with an s of 8 bits for each 16 and d in binary16: half bytes of
 * 8 subs, then their upper two bits, [8][2] rows of words with those of 16 contraction indices, four in each byte; then [8][32] pairs of s, and
 * [32] d.  GGUF's Q6_K. */
#ifndef MOEI_CODES_Q6_K_H
#define MOEI_CODES_Q6_K_H

#include "parts.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_q6_k_bytes(int64_t subs) { return subs * (512 + 256 + 64) + 64; }

/* Four contraction indices as bytes of 0 ... 63: number `four` of the eight. */
MOEI_INLINE moei_sums moei_six_bits(moei_place at, int64_t four) {
  const moei_sums words = moei_nibble_words(at, four / 2);
  const moei_sums more = moei_load_words(at.block + at.subs * 512 + at.sub * 256 + four / 4 * 128 + at.output * 4);
  const int64_t place = four % 4 * 2;
  const moei_sums upper = place < 4 ? more << (4 - place) : more >> (place - 4);
  return (four % 2 ? moei_high_halves(words) : moei_low_halves(words)) | (upper & 0x30303030);
}
/* s of the first or last 16 contraction indices. */
MOEI_INLINE moei_sums moei_q6_k_s(moei_place at, int32_t half) {
  const moei_sums pairs = moei_load_u16(at.block + at.subs * 768 + at.sub * 64 + at.output * 2);
  return pairs << (half ? 16 : 24) >> 24;
}
MOEI_INLINE moei_sum_floats moei_q6_k_d(moei_place at) { return moei_load_scales(at.block + at.subs * 832 + at.output * 2); }

MOEI_INLINE moei_scaling moei_q6_k_scaling(moei_place at, int64_t octet) {
  return (moei_scaling){moei_q6_k_d(at) * __builtin_convertvector(moei_q6_k_s(at, octet >= 2), moei_sum_floats), 0};
}
MOEI_INLINE moei_sum_floats moei_q6_k_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  const moei_sums words = moei_six_bits(at, octet * 2 + j / 4) ^ 0x20202020;
  return __builtin_convertvector(words << (26 - 8 * (j & 3)) >> 26, moei_sum_floats) * scaling.scale;
}

MOEI_INLINE moei_sums moei_q6_k_word(moei_place at, int64_t i) { return moei_six_bits(at, i); }
/* Both sums times their s are below 2^24 together, and so exact. */
MOEI_INLINE moei_sum_floats moei_q6_k_end(moei_sum_floats total, moei_place at, moei_sums first, moei_sums last, const char *token) {
  const int32_t first_sum = (int16_t)moei_half_sums_of(token), last_sum = moei_half_sums_of(token) >> 16;
  const moei_sums sums = moei_q6_k_s(at, 0) * (first - 32 * first_sum) + moei_q6_k_s(at, 1) * (last - 32 * last_sum);
  return moei_add_scaled(total, moei_q6_k_d(at), moei_step_of(token), sums);
}

/* q = w inverse, rounded, within -32 ... 31; what 16 of them have in common with w. */
static inline void moei_numbers_around(const float *w, float inverse, float *numbers, float *common, float *own) {
#pragma clang fp contract(off)
  float products[32] = {0}, squares[32] = {0};
  for (int64_t i = 0; i < 16; i++) {
    numbers[i] = moei_whole(moei_within(w[i] * inverse, -32, 31));
    products[i] = w[i] * numbers[i];
    squares[i] = numbers[i] * numbers[i];
  }
  *common = moei_sum_of_32(products);
  *own = moei_sum_of_32(squares);
}

/* The step with which 16 values are nearest to its multiples: the w that is farthest from 0 becomes -32 + n / 4, n from -2 to 6, and of the
 * steps fitted to that the best one stays.  The largest magnitude is known, so that no square is too large or too small. */
static inline float moei_fit_around(const float *w) {
#pragma clang fp contract(off)
  const float largest = moei_largest(w, 16);
  if (!(largest >= 0x1p-120f)) return 0;
  float own[16], numbers[16], best = 0, step = 0, common, squares, outermost = 0;
  for (int64_t i = 15; i >= 0; i--) {
    own[i] = w[i] / largest;
    if (__builtin_fabsf(own[i]) == 1) outermost = own[i];
  }
  for (int32_t n = -2; n <= 6; n++) {
    moei_numbers_around(own, (-32 + (float)n / 4) * outermost, numbers, &common, &squares);
    const float gain = common * (common / squares);
    if (gain > best) best = gain, step = common / squares;
  }
  return step * largest;
}

static inline void moei_q6_k_put(char *block, int64_t sub, int64_t row, const uint8_t *numbers) {
  uint8_t low[32], high[32] = {0};
  for (int64_t i = 0; i < 32; i++) {
    low[i] = numbers[i] & 15;
    high[i / 16 * 4 + i % 4] |= (uint8_t)(numbers[i] >> 4 << (i / 4 % 4 * 2));
  }
  moei_put_nibbles(block, sub, row, low);
  for (int64_t i = 0; i < 2; i++) __builtin_memcpy(block + 8 * 512 + sub * 256 + i * 128 + row * 4, high + i * 4, 4);
}

static inline int32_t moei_q6_k_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                       const float *_Nullable largest, void *block) {
#pragma clang fp contract(off)
  (void)largest, (void)depth;
  int32_t is_finite = 1;
  char *scales = (char *)block + inputs * 24;
  for (int64_t r = 0; r < rows; r++) {
    const float *own = w + r * w_row;
    float steps[16], outermost = 0;
    for (int64_t n = 0; n < 16; n++) {
      steps[n] = moei_fit_around(own + n * 16);
      if (__builtin_fabsf(steps[n]) > __builtin_fabsf(outermost)) outermost = steps[n];
    }
    const uint16_t d = moei_half_of(outermost / -128);
    const float scale = moei_float_of_half(d), inverse = moei_inverse(moei_usable(scale));
    for (int64_t n = 0; n < 8; n++) {
      uint8_t bytes[32];
      for (int64_t half = 0; half < 2; half++) {
        float numbers[16], common, squares;
        const float s = moei_whole(moei_within(steps[n * 2 + half] * inverse, -128, 127));
        moei_numbers_around(own + n * 32 + half * 16, moei_inverse(moei_usable(scale * s)), numbers, &common, &squares);
        for (int64_t i = 0; i < 16; i++) bytes[half * 16 + i] = (uint8_t)(numbers[i] + 32);
        scales[n * 64 + (first + r) * 2 + half] = (char)(int8_t)s;
      }
      moei_q6_k_put((char *)block, n, first + r, bytes);
    }
    moei_put_u16(scales + 512 + (first + r) * 2, d);
    is_finite &= moei_half_is_finite(d) & moei_is_finite(moei_largest(own, 256));
  }
  return is_finite;
}

/* Blocks of GGUF, of which either half has 128 contraction indices: 128 bytes with lower half bytes, those of 64 beside those of the next
 * 64; 64 with upper bits, 32 beside the three next 32; s; d. */
static inline int32_t moei_q6_k_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *from = stored->numbers + r * stored->row;
    char *block = (char *)blocks;
    for (int64_t k = 0; k < depth; k += 256) {
      char *scales = block + inputs * 24;
      for (int64_t n = 0; n < 8; n++) {
        const uint8_t *low = from + n / 4 * 64 + n % 2 * 32, *high = from + 128 + n / 4 * 32;
        uint8_t numbers[32];
        for (int64_t i = 0; i < 32; i++) {
          numbers[i] = (uint8_t)((low[i] >> (n % 4 / 2 * 4) & 15) | (high[i] >> (n % 4 * 2) & 3) << 4);
        }
        moei_q6_k_put(block, n, r, numbers);
        for (int64_t half = 0; half < 2; half++) scales[n * 64 + r * 2 + half] = (char)from[192 + n * 2 + half];
      }
      moei_put_u16(scales + 512 + r * 2, moei_load_half(from + 208));
      is_finite &= moei_half_is_finite(moei_load_half(from + 208));
      from += 210;
      block += moei_q6_k_bytes(8);
    }
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_q6_k
#define MOEI_CODE_HAS_STREAMS
#define MOEI_CODE_SUMS MOEI_OF_SIX_BITS
#define MOEI_CODE_HAS_HALVES
#include "kernels.h"

#endif
