/* Integers of 8 bits under a scale of binary16 for 32 contraction indices: 1024 bytes, then [32] scales.  GGUF's Q8_0. */
#ifndef MOEI_CODES_INT8_H
#define MOEI_CODES_INT8_H

#include "parts.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_int8_bytes(int64_t subs) { return subs * 1024 + 64; }

MOEI_INLINE moei_scaling moei_int8_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){moei_load_scales(at.block + at.subs * 1024 + at.output * 2), 0};
}
MOEI_INLINE moei_sum_floats moei_int8_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_byte(moei_byte_words(at, octet * 2 + j / 4), j & 3) * scaling.scale;
}
MOEI_INLINE moei_sums moei_int8_word(moei_place at, int64_t i) { return moei_as_factors(moei_byte_words(at, i)); }
MOEI_INLINE moei_sum_floats moei_int8_end(moei_sum_floats total, moei_place at, moei_sums sums, const char *token) {
  return moei_add_scaled(total, moei_int8_scaling(at, 0).scale, moei_step_of(token), sums);
}

/* Multiples of a step, those away from 0 in a tie, within -127 ... 127; what is no number is left to the scale. */
static inline void moei_multiples(const float *w, int64_t count, float inverse, int8_t *numbers) {
#pragma clang fp contract(off)
  for (int64_t i = 0; i < count; i++) {
    const float product = w[i] * inverse, size = __builtin_fabsf(product);
    const float cut = size <= 127 ? size : 127;
    const int32_t whole = (int32_t)cut;
    const int32_t rounded = whole + (cut - (float)whole >= 0.5f);
    numbers[i] = (int8_t)(product < 0 ? -rounded : rounded);
  }
}

/* d = max |w| / 127, q = round(w (1 / d)). */
static inline int32_t moei_int8_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                       const float *_Nullable largest, void *block) {
  (void)largest;
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const float step = moei_usable(moei_largest(w + r * w_row, depth) / 127);
    const uint16_t half = moei_half_of(step);
    int8_t numbers[32] = {0};
    moei_multiples(w + r * w_row, depth, moei_inverse(step), numbers);
    moei_put_bytes((char *)block, 0, first + r, (const uint8_t *)numbers);
    moei_put_u16((char *)block + inputs * 32 + (first + r) * 2, half);
    is_finite &= moei_half_is_finite(half);
  }
  return is_finite;
}

/* Blocks of Q8_0: scale, 32 numbers. */
static inline int32_t moei_int8_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *from = stored->numbers + r * stored->row;
    char *block = (char *)blocks;
    for (int64_t k = 0; k < depth; k += 32) {
      moei_put_bytes(block, 0, r, from + 2);
      moei_put_u16(block + inputs * 32 + r * 2, moei_load_half(from));
      is_finite &= moei_half_is_finite(moei_load_half(from));
      from += 34;
      block += moei_int8_bytes(1);
    }
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_int8
#define MOEI_CODE_SUMS moei_of_bytes
#include "kernels.h"

#endif
