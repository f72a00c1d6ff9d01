/* Numbers of 4 bits around a zero point of their own, under a float32 scale, both for 32, 64 or 128 contraction indices: w = (q - z) d:
 * half bytes, then [32] scales, [32] zero points in bytes.  What AWQ, GPTQ and compressed-tensors have. */
#ifndef MOEI_CODES_INT4_ZERO_H
#define MOEI_CODES_INT4_ZERO_H

#include "int4.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_int4_zero_bytes(int64_t subs) { return subs * 512 + 160; }

MOEI_INLINE moei_sums moei_int4_zero_point(moei_place at) { return moei_load_u8(at.block + at.subs * 512 + 128 + at.output); }
MOEI_INLINE moei_scaling moei_int4_zero_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){moei_load_floats(at.block + at.subs * 512 + at.output * 4),
                        __builtin_convertvector(moei_int4_zero_point(at), moei_sum_floats)};
}
MOEI_INLINE moei_sum_floats moei_int4_zero_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return (moei_nibble(moei_nibble_words(at, octet), j) - scaling.offset) * scaling.scale;
}
MOEI_INLINE moei_sums moei_int4_zero_word(moei_place at, int64_t i) { return moei_nibble_word(at, i); }
MOEI_INLINE moei_sum_floats moei_int4_zero_end(moei_sum_floats total, moei_place at, moei_sums sums, const char *token) {
  const moei_sums moved = sums - moei_times(moei_int4_zero_point(at), moei_sum_of(token));
  return moei_add_scaled(total, moei_int4_zero_scaling(at, 0).scale, moei_step_of(token), moved);
}

/* From the lowest value, or 0, to the highest, or 0, in 15 steps of d; z = round(-lowest (1 / d)), q = round(w (1 / d)) + z. */
static inline int32_t moei_int4_zero_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                            const float *_Nullable largest, void *block) {
#pragma clang fp contract(off)
  (void)largest;
  int32_t is_finite = 1;
  char *scales = (char *)block + inputs * 16;
  for (int64_t r = 0; r < rows; r++) {
    const float *own = w + r * w_row;
    float low = 0, high = 0;
    for (int64_t i = 0; i < depth; i++) low = own[i] < low ? own[i] : low, high = own[i] > high ? own[i] : high;
    const float step = moei_usable(high / 15 - low / 15), inverse = moei_inverse(step);
    const float zero = moei_whole(moei_within(-low * inverse, 0, 15));
    for (int64_t k = 0; k < depth; k += 32) {
      uint8_t numbers[32] = {0};
      for (int64_t i = 0; i < 32 && k + i < depth; i++) {
        numbers[i] = (uint8_t)moei_within(moei_whole(moei_within(own[k + i] * inverse, -15, 15)) + zero, 0, 15);
      }
      moei_put_nibbles((char *)block, k / 32, first + r, numbers);
    }
    moei_put_float(scales + (first + r) * 4, step);
    scales[128 + first + r] = (char)zero;
    is_finite &= moei_is_finite(moei_largest(own, depth)) & moei_is_finite(step);
  }
  return is_finite;
}

/* Numbers of 0 ... 15 beside scales, and bytes of zero points; 8 where there are none. */
static inline int32_t moei_int4_zero_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    char *block = (char *)blocks;
    for (int64_t k = 0; k < depth; k += inputs) {
      const float scale = stored->scales[r * stored->scales_row + k / inputs];
      moei_put_all_nibbles(block, r, depth - k < inputs ? depth - k : inputs, stored->numbers + r * stored->row + k);
      moei_put_float(block + inputs * 16 + r * 4, scale);
      block[inputs * 16 + 128 + r] = (char)(stored->bytes ? stored->bytes[r * stored->bytes_row + k / inputs] : 8);
      is_finite &= moei_is_finite(scale);
      block += moei_int4_zero_bytes(inputs / 32);
    }
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_int4_zero
#define MOEI_CODE_SUMS moei_of_nibbles
#include "kernels.h"

#endif
