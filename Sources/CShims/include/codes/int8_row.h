/* Integers of 8 bits under one float32 scale for a whole row of weights: bytes of 256 contraction indices, then [32] scales, again in
 * each block. */
#ifndef MOEI_CODES_INT8_ROW_H
#define MOEI_CODES_INT8_ROW_H

#include "int8.h"

#pragma clang assume_nonnull begin

enum { moei_int8_row_AHEAD = 0 };
MOEI_INLINE int64_t moei_int8_row_bytes(int64_t subs) { return subs * 1024 + 128; }

MOEI_INLINE moei_scaling moei_int8_row_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){moei_load_floats(at.block + at.subs * 1024 + at.output * 4), 0};
}
MOEI_INLINE moei_sum_floats moei_int8_row_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_int8_value(at, octet, j, scaling);
}
MOEI_INLINE moei_sum_floats moei_int8_row_add(moei_sum_floats total, moei_place at, const char *token) {
  return moei_add_scaled(total, moei_int8_row_scaling(at, 0).scale, moei_step_of(token), moei_byte_sums(at, token));
}

/* d = max |w| / 127 of the whole row, q = round(w (1 / d)). */
static inline int32_t moei_int8_row_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                           const float *_Nullable largest, void *block) {
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const float step = moei_usable(largest[first + r] / 127);
    for (int64_t k = 0; k < depth; k += 32) {
      int8_t numbers[32] = {0};
      moei_multiples(w + r * w_row + k, depth - k < 32 ? depth - k : 32, moei_inverse(step), numbers);
      moei_put_bytes((char *)block, k / 32, first + r, (const uint8_t *)numbers);
    }
    moei_put_float((char *)block + inputs * 32 + (first + r) * 4, step);
    is_finite &= moei_is_finite(step);
  }
  return is_finite;
}

/* Numbers of -127 ... 127 beside a scale for each row. */
static inline int32_t moei_int8_row_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_held = 1;
  for (int64_t r = 0; r < rows; r++) {
    const float scale = stored->scales[r * stored->scales_row];
    for (int64_t k = 0; k < depth; k += 32) {
      char *block = (char *)blocks + k / inputs * moei_int8_row_bytes(inputs / 32);
      uint8_t numbers[32] = {0};
      for (int64_t i = 0; i < 32 && k + i < depth; i++) {
        numbers[i] = stored->numbers[r * stored->row + k + i];
        is_held &= numbers[i] != 128;
      }
      moei_put_bytes(block, k % inputs / 32, r, numbers);
      moei_put_float(block + inputs * 32 + r * 4, scale);
    }
    is_held &= moei_is_finite(scale);
  }
  return is_held;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_int8_row
#include "kernels.h"

#endif
