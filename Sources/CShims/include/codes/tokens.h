/* Tokens as integers of 8 bits, which weights of few bits are multiplied by. */
#ifndef MOEI_CODES_TOKENS_H
#define MOEI_CODES_TOKENS_H

#include "parts.h"

#pragma clang assume_nonnull begin

/* The larger bits of two times sixteen magnitudes, and so the largest of them, or a NaN where one is. */
MOEI_INLINE moei_i32x16 moei_larger_bits(moei_f32x16 a, moei_f32x16 b) {
  return __builtin_elementwise_max((moei_i32x16)a & 0x7FFFFFFF, (moei_i32x16)b & 0x7FFFFFFF);
}
/* Multiples of a step, those away from 0 in a tie, within -127 ... 127; what is no number is left to the scale.  With the float below 1/2
 * a sum reaches the next whole number from halves on, and not from the float below them. */
MOEI_INLINE moei_i32x16 moei_nearest_multiples(moei_f32x16 v, float inverse) {
  const moei_f32x16 product = v * inverse, size = __builtin_elementwise_abs(product), most = 127;
  const moei_i32x16 fits = size <= most;
  const moei_f32x16 cut = (moei_f32x16)((fits & (moei_i32x16)size) | (~fits & (moei_i32x16)most));
  const moei_i32x16 rounded = moei_to_i32(cut + 0x1.fffffep-2f), is_negative = product < 0;
  return (rounded ^ is_negative) - is_negative;
}
MOEI_INLINE float moei_step_of_largest(moei_i32x16 bits) {
  return moei_usable(moei_float_of((uint32_t)__builtin_reduce_max(bits)) / 127);
}

/* 32 features of a row as MOEI_TOKEN_BLOCK bytes. */
MOEI_INLINE void moei_put_token(moei_f32x16 low, moei_f32x16 high, void *block) {
  char *out = (char *)block;
  const float step = moei_step_of_largest(moei_larger_bits(low, high)), inverse = moei_inverse(step);
  const moei_i32x16 first = moei_nearest_multiples(low, inverse), last = moei_nearest_multiples(high, inverse);
  moei_store_i8(first, out);
  moei_store_i8(last, out + 16);
  const int32_t sums[2] = {__builtin_reduce_add(first), __builtin_reduce_add(last)}, sum = sums[0] + sums[1];
  const int32_t times[2] = {sum * -128, sum * -8};
  moei_put_float(out + 32, step);
  __builtin_memcpy(out + 36, &sum, 4);
  moei_put_float(out + 40, step * (float)sum);
  moei_put_u16(out + 44, (uint16_t)sums[0]);
  moei_put_u16(out + 46, (uint16_t)sums[1]);
  __builtin_memcpy(out + 48, times, 8);
}

/* Tokens that have one step for a whole row, at most 32 rows: floats [chunk][m][32] become, where they are, numbers [chunk][m][32], a quarter
 * as long, and behind these [m] steps and [m] sums of a row's numbers, times -128. */
static inline void moei_row_integers(int64_t m, int64_t chunks, float *rows) {
  moei_i32x16 sums[32];
  float steps[32], inverses[32];
  for (int64_t r = 0; r < m; r++) {
    moei_i32x16 largest = 0;
    for (int64_t c = 0; c < chunks; c++) {
      moei_f32x16 own[2];
      __builtin_memcpy(own, rows + (c * m + r) * 32, sizeof own);
      largest = __builtin_elementwise_max(largest, moei_larger_bits(own[0], own[1]));
    }
    steps[r] = moei_step_of_largest(largest);
    inverses[r] = moei_inverse(steps[r]);
    sums[r] = 0;
  }
  /* Numbers never reach floats that are still to be read. */
  char *numbers = (char *)rows;
  for (int64_t c = 0; c < chunks; c++) {
    for (int64_t r = 0; r < m; r++, rows += 32, numbers += 32) {
      moei_f32x16 own[2];
      __builtin_memcpy(own, rows, sizeof own);
      MOEI_UNROLL for (int i = 0; i < 2; i++) {
        const moei_i32x16 multiples = moei_nearest_multiples(own[i], inverses[r]);
        moei_store_i8(multiples, numbers + 16 * i);
        sums[r] += multiples;
      }
    }
  }
  for (int64_t r = 0; r < m; r++) {
    const int32_t sum = __builtin_reduce_add(sums[r]) * -128;
    moei_put_float(numbers + r * 4, steps[r]);
    __builtin_memcpy(numbers + (m + r) * 4, &sum, 4);
  }
}

#pragma clang assume_nonnull end

#endif
