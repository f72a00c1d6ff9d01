/* Numbers of 4 bits in blocks of 256 contraction indices: w = (d s) q - (d_min m), with s and m of 6 bits for each 32, d and d_min in
 * binary16: half bytes of 8 subs, then [8][32] pairs s, m in bytes, [32] d, [32] d_min.  GGUF's Q4_K. */
#ifndef MOEI_CODES_Q4_K_H
#define MOEI_CODES_Q4_K_H

#include "parts.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_q4_k_bytes(int64_t subs) { return subs * (512 + 64) + 128; }

MOEI_INLINE moei_scaling moei_q4_k_scaling(moei_place at, int64_t octet) {
  (void)octet;
  const char *scales = at.block + at.subs * 512;
  const moei_sums pairs = moei_load_u16(scales + at.sub * 64 + at.output * 2);
  const moei_sum_floats d = moei_load_scales(scales + at.subs * 64 + at.output * 2);
  const moei_sum_floats d_min = moei_load_scales(scales + at.subs * 64 + 64 + at.output * 2);
  return (moei_scaling){d * __builtin_convertvector(pairs & 0xFF, moei_sum_floats), d_min * __builtin_convertvector(pairs >> 8, moei_sum_floats)};
}
MOEI_INLINE moei_sum_floats moei_q4_k_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  /* The product is exact. */
  return __builtin_elementwise_fma(scaling.scale, moei_nibble(moei_nibble_words(at, octet), j), -scaling.offset);
}
MOEI_INLINE moei_sums moei_q4_k_word(moei_place at, int64_t i) { return moei_nibble_word(at, i); }
/* The offset's part goes by the token's sum. */
MOEI_INLINE moei_sum_floats moei_q4_k_end(moei_sum_floats total, moei_place at, moei_sums sums, const char *token) {
  const moei_scaling scaling = moei_q4_k_scaling(at, 0);
  total = moei_add_scaled(total, scaling.scale, moei_step_of(token), sums);
  return moei_add_product(total, moei_scaled_sum_of(token), -scaling.offset);
}

/* q = (w + offset) inverse, rounded, within 0 ... 15. */
static inline void moei_numbers_above(const float *w, float offset, float inverse, float *numbers) {
#pragma clang fp contract(off)
  for (int64_t i = 0; i < 32; i++) numbers[i] = moei_whole(moei_within((w[i] + offset) * inverse, 0, 15));
}

/* Step and offset >= 0 with which 32 values are nearest to step q - offset: numbers that reach 14 + n / 4 from the lowest value on, n
 * from 0 to 8, fitted by least squares, of these the best. */
static inline void moei_fit_above(const float *w, float *step, float *offset) {
#pragma clang fp contract(off)
  float low = 0, high = 0, numbers[32], products[32], squares[32], least = 0;
  for (int64_t i = 0; i < 32; i++) low = w[i] < low ? w[i] : low, high = w[i] > high ? w[i] : high;
  const float span = high - low;
  *step = 0, *offset = -low;
  if (!(span >= 0x1p-120f)) return;
  /* Values of 0 ... 1, so that no square is too large or too small. */
  float own[32];
  const float inverse = 1 / span, bottom = -low * inverse;
  for (int64_t i = 0; i < 32; i++) own[i] = w[i] * inverse, squares[i] = own[i] * own[i];
  const float sum = moei_sum_of_32(own), all = moei_sum_of_32(squares);
  least = 2 * all + 1;
  for (int32_t n = 0; n <= 8; n++) {
    moei_numbers_above(own, bottom, 14 + (float)n / 4, numbers);
    for (int64_t i = 0; i < 32; i++) products[i] = own[i] * numbers[i], squares[i] = numbers[i] * numbers[i];
    const float q = moei_sum_of_32(numbers), qq = moei_sum_of_32(squares), qw = moei_sum_of_32(products);
    const float determinant = 32 * qq - q * q;
    if (!(determinant > 0)) continue;
    float scale = (32 * qw - q * sum) / determinant, away = (q * qw - qq * sum) / determinant;
    if (away < 0) away = 0, scale = qw / qq;
    const float error = all - 2 * (scale * qw - away * sum) + scale * scale * qq - 2 * scale * away * q + 32 * away * away;
    if (scale > 0 && error < least) least = error, *step = scale * span, *offset = away * span;
  }
}

static inline int32_t moei_q4_k_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                       const float *_Nullable largest, void *block) {
#pragma clang fp contract(off)
  (void)largest, (void)depth;
  int32_t is_finite = 1;
  char *scales = (char *)block + inputs * 16;
  for (int64_t r = 0; r < rows; r++) {
    const float *own = w + r * w_row;
    float steps[8], offsets[8], step = 0, offset = 0;
    for (int64_t n = 0; n < 8; n++) {
      moei_fit_above(own + n * 32, &steps[n], &offsets[n]);
      step = steps[n] <= step ? step : steps[n];
      offset = offsets[n] <= offset ? offset : offsets[n];
    }
    is_finite &= moei_is_finite(moei_largest(own, 256));
    const uint16_t d = moei_half_of(step / 63), d_min = moei_half_of(offset / 63);
    const float inverse = moei_inverse(moei_usable(moei_float_of_half(d))), inverse_min = moei_inverse(moei_usable(moei_float_of_half(d_min)));
    for (int64_t n = 0; n < 8; n++) {
      float numbers[32];
      uint8_t bytes[32];
      const float s = moei_whole(moei_within(steps[n] * inverse, 0, 63)), m = moei_whole(moei_within(offsets[n] * inverse_min, 0, 63));
      moei_numbers_above(own + n * 32, moei_float_of_half(d_min) * m, moei_inverse(moei_usable(moei_float_of_half(d) * s)), numbers);
      for (int64_t i = 0; i < 32; i++) bytes[i] = (uint8_t)numbers[i];
      moei_put_nibbles((char *)block, n, first + r, bytes);
      scales[n * 64 + (first + r) * 2] = (char)s;
      scales[n * 64 + (first + r) * 2 + 1] = (char)m;
    }
    moei_put_u16(scales + 512 + (first + r) * 2, d);
    moei_put_u16(scales + 576 + (first + r) * 2, d_min);
    is_finite &= moei_half_is_finite(d) & moei_half_is_finite(d_min);
  }
  return is_finite;
}

/* Blocks of GGUF: d, d_min, 12 bytes of s and m, half bytes of two subs after the other. */
static inline int32_t moei_q4_k_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *from = stored->numbers + r * stored->row;
    char *block = (char *)blocks;
    for (int64_t k = 0; k < depth; k += 256) {
      char *scales = block + inputs * 16;
      const uint8_t *packed = from + 4;
      for (int64_t n = 0; n < 8; n++) {
        /* Of the first four the lower six bits of a byte; of the others half bytes, and the first ones' upper two bits. */
        const uint8_t s = n < 4 ? packed[n] & 63 : (packed[n + 4] & 15) | (packed[n - 4] >> 6 << 4);
        const uint8_t m = n < 4 ? packed[n + 4] & 63 : (packed[n + 4] >> 4) | (packed[n] >> 6 << 4);
        uint8_t numbers[32];
        for (int64_t i = 0; i < 32; i++) numbers[i] = from[16 + n / 2 * 32 + i] >> (n % 2 * 4) & 15;
        moei_put_nibbles(block, n, r, numbers);
        scales[n * 64 + r * 2] = (char)s;
        scales[n * 64 + r * 2 + 1] = (char)m;
      }
      moei_put_u16(scales + 512 + r * 2, moei_load_half(from));
      moei_put_u16(scales + 576 + r * 2, moei_load_half(from + 2));
      is_finite &= moei_half_is_finite(moei_load_half(from)) & moei_half_is_finite(moei_load_half(from + 2));
      from += 144;
      block += moei_q4_k_bytes(8);
    }
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_q4_k
#define MOEI_CODE_HAS_STREAMS
#define MOEI_CODE_SUMS moei_of_nibbles
#include "kernels.h"

#endif
