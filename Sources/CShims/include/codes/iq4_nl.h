/* Numbers of 4 bits with the values of a table, denser around 0, under a scale of binary16 for 32 contraction indices: half bytes,
 * then [32] scales.  GGUF's IQ4_NL. */
#ifndef MOEI_CODES_IQ4_NL_H
#define MOEI_CODES_IQ4_NL_H

#include "int4.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_iq4_nl_bytes(int64_t subs) { return subs * 512 + 64; }

MOEI_INLINE moei_table moei_iq4_nl(void) {
  return (moei_table){{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}};
}
MOEI_INLINE moei_scaling moei_iq4_nl_scaling(moei_place at, int64_t octet) { return moei_int4_scaling(at, octet); }
MOEI_INLINE moei_sum_floats moei_iq4_nl_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_table_value(moei_nibble_words(at, octet), j, moei_iq4_nl()) * scaling.scale;
}
MOEI_INLINE moei_sums moei_iq4_nl_word(moei_place at, int64_t i) {
  return moei_as_factors(moei_look_up(moei_nibble_word(at, i), moei_iq4_nl()));
}
MOEI_INLINE moei_sum_floats moei_iq4_nl_end(moei_sum_floats total, moei_place at, moei_sums sums, const char *token) {
  return moei_add_scaled(total, moei_iq4_nl_scaling(at, 0).scale, moei_step_of(token), sums);
}

/* The values nearest to w / d, the larger one in a tie, and what they have in common with w: sums of w v and v v. */
static inline void moei_nearest_iq4_nl(const float *w, float inverse, uint8_t *numbers, float *common, float *own) {
#pragma clang fp contract(off)
  const moei_table table = moei_iq4_nl();
  float products[32], squares[32];
  for (int64_t i = 0; i < 32; i++) {
    const float scaled = w[i] * inverse;
    int32_t number = 0, value = table.of[0];
    for (int32_t n = 1; n < 16; n++) {
      const int32_t above = scaled >= 0.5f * (float)(table.of[n - 1] + table.of[n]);
      number += above;
      value = above ? table.of[n] : value;
    }
    numbers[i] = (uint8_t)number;
    products[i] = w[i] * (float)value;
    squares[i] = (float)(value * value);
  }
  *common = moei_sum_of_32(products);
  *own = moei_sum_of_32(squares);
}

/* Of steps by which the w that is farthest from 0 becomes -127 or 113 times 1 + n / 64, n even, from -8 to 8, the one with the least sum of squares of
 * errors, once it has been fitted to its values; these are then found again for the rounded one. */
static inline int32_t moei_iq4_nl_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                         const float *_Nullable largest, void *block) {
#pragma clang fp contract(off)
  (void)largest;
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    float own[32] = {0}, best = 0, step = 0, common, squares;
    uint8_t numbers[32];
    for (int64_t i = 0; i < depth; i++) own[i] = w[r * w_row + i];
    const float outermost = moei_outermost(own, 32), usable = moei_usable(outermost / 128);
    if (usable != 0) {
      for (int32_t side = 0; side < 2; side++) {
        for (int32_t n = -8; n <= 8; n += 2) {
          const float reach = (side ? 113.0f : -127.0f) * (1 + (float)n / 64);
          moei_nearest_iq4_nl(own, reach / outermost, numbers, &common, &squares);
          const float gain = common * (common / squares);
          if (gain > best) best = gain, step = common / squares;
        }
      }
      if (!moei_is_finite(usable)) step = usable;
    }
    const uint16_t half = moei_half_of(step);
    moei_nearest_iq4_nl(own, moei_inverse(moei_usable(moei_float_of_half(half))), numbers, &common, &squares);
    moei_put_nibbles((char *)block, 0, first + r, numbers);
    moei_put_u16((char *)block + inputs * 16 + (first + r) * 2, half);
    is_finite &= moei_half_is_finite(half);
  }
  return is_finite;
}

static inline int32_t moei_iq4_nl_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  return moei_int4_pack(inputs, rows, depth, stored, blocks);
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_iq4_nl
#define MOEI_CODE_SUMS moei_of_bytes
#include "kernels.h"

#endif
