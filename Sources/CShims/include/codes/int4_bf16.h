/* Integers of 4 bits, 8 more than they are, under a scale of bfloat16 for 32, 64 or 128 contraction indices: half bytes, then [32] scales.
 * What checkpoints of compressed-tensors without zero points have. */
#ifndef MOEI_CODES_INT4_BF16_H
#define MOEI_CODES_INT4_BF16_H

#include "int4.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_int4_bf16_bytes(int64_t subs) { return subs * 512 + 64; }

MOEI_INLINE moei_scaling moei_int4_bf16_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){moei_load_bf16_scales(at.block + at.subs * 512 + at.output * 2), 0};
}
MOEI_INLINE moei_sum_floats moei_int4_bf16_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_int4_value(at, octet, j, scaling);
}
MOEI_INLINE moei_sums moei_int4_bf16_word(moei_place at, int64_t i) { return moei_nibble_word(at, i); }
MOEI_INLINE moei_sum_floats moei_int4_bf16_end(moei_sum_floats total, moei_place at, moei_sums sums, const char *token) {
  return moei_add_scaled(total, moei_int4_bf16_scaling(at, 0).scale, moei_step_of(token), sums + moei_less_8_of(token));
}

/* d = bfloat16(w / -8) of the w that is farthest from 0, q = min(trunc(w (1 / d) + 8.5), 15) - 8. */
static inline int32_t moei_int4_bf16_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                            const float *_Nullable largest, void *block) {
  (void)largest;
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const float *own = w + r * w_row;
    const uint32_t exact = moei_float_bits(moei_usable(moei_outermost(own, depth) / -8));
    const int32_t is_number = moei_is_finite(moei_float_of(exact));
    const uint32_t half = is_number ? (exact + 0x7FFF + (exact >> 16 & 1)) >> 16 : exact >> 16;
    const float step = moei_float_of(half << 16);
    for (int64_t k = 0; k < depth; k += 32) {
      uint8_t numbers[32] = {0};
      moei_nibbles(own + k, depth - k < 32 ? depth - k : 32, moei_inverse(moei_usable(step)), numbers);
      moei_put_nibbles((char *)block, k / 32, first + r, numbers);
    }
    moei_put_u16((char *)block + inputs * 16 + (first + r) * 2, (uint16_t)half);
    is_finite &= is_number & moei_is_finite(step);
  }
  return is_finite;
}

/* Numbers of 0 ... 15 beside scales that bfloat16 holds. */
static inline int32_t moei_int4_bf16_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_held = 1;
  for (int64_t r = 0; r < rows; r++) {
    char *block = (char *)blocks;
    for (int64_t k = 0; k < depth; k += inputs) {
      const float scale = stored->scales[r * stored->scales_row + k / inputs];
      moei_put_all_nibbles(block, r, depth - k < inputs ? depth - k : inputs, stored->numbers + r * stored->row + k);
      moei_put_u16(block + inputs * 16 + r * 2, (uint16_t)(moei_float_bits(scale) >> 16));
      is_held &= moei_is_finite(scale) & ((moei_float_bits(scale) & 0xFFFF) == 0);
      block += moei_int4_bf16_bytes(inputs / 32);
    }
  }
  return is_held;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_int4_bf16
#define MOEI_CODE_SUMS moei_of_nibbles
#include "kernels.h"

#endif
