/* Integers of 4 bits, 8 more than they are, under a scale of binary16 for 32, 64 or 128 contraction indices: half bytes, then [32]
 * scales.  With 32 GGUF's Q4_0. */
#ifndef MOEI_CODES_INT4_H
#define MOEI_CODES_INT4_H

#include "parts.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_int4_bytes(int64_t subs) { return subs * 512 + 64; }

MOEI_INLINE moei_scaling moei_int4_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){moei_load_scales(at.block + at.subs * 512 + at.output * 2), 0};
}
MOEI_INLINE moei_sum_floats moei_int4_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_signed_nibble(moei_nibble_words(at, octet), j) * scaling.scale;
}
MOEI_INLINE moei_sums moei_int4_word(moei_place at, int64_t i) { return moei_nibble_word(at, i); }
MOEI_INLINE moei_sum_floats moei_int4_end(moei_sum_floats total, moei_place at, moei_sums sums, const char *token) {
  return moei_add_scaled(total, moei_int4_scaling(at, 0).scale, moei_step_of(token), sums + moei_less_8_of(token));
}

/* The first of the values with the largest magnitude; a NaN where there is one. */
static inline float moei_outermost(const float *w, int64_t count) {
  const float largest = moei_largest(w, count);
  for (int64_t i = 0; i < count; i++) {
    if (__builtin_fabsf(w[i]) == largest) return w[i];
  }
  return largest;
}
/* Multiples of a step as numbers of 0 ... 15, of which 8 stands for 0; what is no number is left to the scale. */
static inline void moei_nibbles(const float *w, int64_t count, float inverse, uint8_t *numbers) {
  for (int64_t i = 0; i < count; i++) {
    float number = (float)((double)w[i] * (double)inverse + 8.5);
    number = number <= 15 ? number : 15;
    numbers[i] = (uint8_t)(number < 0 ? 0 : number);
  }
}

/* d = w / -8 of the w that is farthest from 0, q = min(trunc(w (1 / d) + 8.5), 15) - 8. */
static inline int32_t moei_int4_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                       const float *_Nullable largest, void *block) {
  (void)largest;
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const float *own = w + r * w_row;
    const float step = moei_usable(moei_outermost(own, depth) / -8);
    const uint16_t half = moei_half_of(step);
    for (int64_t k = 0; k < depth; k += 32) {
      uint8_t numbers[32] = {8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8};
      moei_nibbles(own + k, depth - k < 32 ? depth - k : 32, moei_inverse(step), numbers);
      moei_put_nibbles((char *)block, k / 32, first + r, numbers);
    }
    moei_put_u16((char *)block + inputs * 16 + (first + r) * 2, half);
    is_finite &= moei_half_is_finite(half);
  }
  return is_finite;
}

/* Half bytes of `count` <= inputs numbers of a row, one in each byte. */
static inline void moei_put_all_nibbles(char *block, int64_t row, int64_t count, const uint8_t *numbers) {
  for (int64_t k = 0; k < count; k += 32) {
    uint8_t own[32] = {0};
    for (int64_t i = 0; i < 32 && k + i < count; i++) own[i] = numbers[k + i] & 15;
    moei_put_nibbles(block, k / 32, row, own);
  }
}

/* Blocks of Q4_0: scale, half bytes; or numbers of 0 ... 15 beside scales that binary16 holds. */
static inline int32_t moei_int4_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_held = 1;
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *from = stored->numbers + r * stored->row;
    char *block = (char *)blocks;
    for (int64_t k = 0; k < depth; k += inputs) {
      uint16_t half;
      if (stored->scales) {
        const float scale = stored->scales[r * stored->scales_row + k / inputs];
        half = moei_half_of(scale);
        is_held &= moei_float_of_half(half) == scale;
        moei_put_all_nibbles(block, r, depth - k < inputs ? depth - k : inputs, from + k);
      } else {
        uint8_t numbers[32];
        half = moei_load_half(from);
        moei_spread_nibbles(from + 2, numbers);
        moei_put_nibbles(block, 0, r, numbers);
        from += 18;
      }
      moei_put_u16(block + inputs * 16 + r * 2, half);
      is_held &= moei_half_is_finite(half);
      block += moei_int4_bytes(inputs / 32);
    }
  }
  return is_held;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_int4
#define MOEI_CODE_SUMS moei_of_nibbles
#include "kernels.h"

#endif
