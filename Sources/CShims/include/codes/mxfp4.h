/* E2M1, numbers of 4 bits with the values of a table, under a power of two for 32 contraction indices: half bytes of two subs, then
 * [2][32] exponents (E8M0).  MXFP4 (Open Compute Project, Microscaling Formats 1.0), as GGUF and Hugging Face have it. */
#ifndef MOEI_CODES_MXFP4_H
#define MOEI_CODES_MXFP4_H

#include "int4.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_mxfp4_bytes(int64_t subs) { return subs * 544; }

/* Twice the values, so that they are integers; and 12 more than these, without a sign. */
MOEI_INLINE moei_table moei_e2m1(void) { return (moei_table){{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}}; }
MOEI_INLINE moei_table moei_e2m1_moved(void) { return (moei_table){{12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0}}; }

/* 2^(e - 128), half of E8M0's: of 0 and 1 denormal numbers. */
MOEI_INLINE moei_sum_floats moei_half_e8m0(moei_sums e) {
  const moei_sums small = e < 2, denormal = 0x00200000 + (e << 21);
  return (moei_sum_floats)((small & denormal) | (~small & (e - 1) << 23));
}
MOEI_INLINE moei_scaling moei_mxfp4_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){moei_half_e8m0(moei_load_u8(at.block + at.subs * 512 + at.sub * 32 + at.output)), 0};
}
MOEI_INLINE moei_sum_floats moei_mxfp4_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_table_value(moei_nibble_words(at, octet), j, moei_e2m1()) * scaling.scale;
}

#if defined(__AVX512VNNI__)
/* Twice the values in bfloat16, two at a time, which become floats by their place in a word. */
MOEI_INLINE void moei_mxfp4_values(moei_place at, int64_t octet, moei_scaling scaling, moei_sum_floats *values) {
  const moei_u16x32 table = {0, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40C0, 0x4100, 0x4140, 0, 0xBF80, 0xC000, 0xC040, 0xC080, 0xC0C0, 0xC100, 0xC140,
                             0, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40C0, 0x4100, 0x4140, 0, 0xBF80, 0xC000, 0xC040, 0xC080, 0xC0C0, 0xC100, 0xC140};
  const moei_sums words = moei_nibble_words(at, octet);
  MOEI_UNROLL for (int32_t i = 0; i < 4; i++) {
    const int32_t j = i / 2 * 4 + i % 2;
    const moei_sums both = (moei_sums)moei_pick_in_pairs(table, (moei_u16x32)(words >> moei_nibble_bit(j)));
    values[j] = (moei_sum_floats)(both << 16) * scaling.scale;
    values[j + 2] = (moei_sum_floats)(both & (int32_t)0xFFFF0000) * scaling.scale;
  }
}
#endif
MOEI_INLINE moei_sums moei_mxfp4_word(moei_place at, int64_t i) { return moei_look_up(moei_nibble_word(at, i), moei_e2m1_moved()); }
MOEI_INLINE moei_sum_floats moei_mxfp4_end(moei_sum_floats total, moei_place at, moei_sums sums, const char *token) {
  return moei_add_scaled(total, moei_mxfp4_scaling(at, 0).scale, moei_step_of(token), sums - 12 * moei_sum_of(token));
}

#if defined(__AVX512BF16__)
/* Exponents are counted together: what is 125 too large less 253 - e, where 0 stays 0 since there is nothing below; exact as long as
 * 2 <= e <= 253. */
MOEI_INLINE moei_pair_tables moei_mxfp4_pair_tables(moei_place at) {
  const char *exponents = at.block + at.subs * 512 + at.sub * 32;
  const moei_u32x16 low = (moei_u32x16)moei_load_u8(exponents), high = (moei_u32x16)moei_load_u8(exponents + 16);
  moei_pair_tables tables;
  tables.of[0] = (moei_u16x32)((253 - low) << 7 | (253 - low) << 23);
  tables.of[1] = (moei_u16x32)((253 - high) << 7 | (253 - high) << 23);
  tables.hold = moei_bits((moei_i32x16)(low - 2 > 251) | (moei_i32x16)(high - 2 > 251)) == 0;
  return tables;
}
MOEI_INLINE void moei_mxfp4_pairs(moei_place at, int64_t octet, moei_pair_tables tables, moei_sums *words) {
  const moei_u16x32 table = {0, 0x7E00, 0x7E80, 0x7EC0, 0x7F00, 0x7F40, 0x7F80, 0x7FC0, 0, 0xFE00, 0xFE80, 0xFEC0, 0xFF00, 0xFF40, 0xFF80, 0xFFC0,
                             0, 0x7E00, 0x7E80, 0x7EC0, 0x7F00, 0x7F40, 0x7F80, 0x7FC0, 0, 0xFE00, 0xFE80, 0xFEC0, 0xFF00, 0xFF40, 0xFF80, 0xFFC0};
  MOEI_UNROLL for (int32_t p = 0; p < 4; p++) {
    const moei_u16x32 indices = moei_nibbles_in_pairs(moei_nibble_words(at, octet), p);
    words[p] = (moei_sums)__builtin_elementwise_sub_sat(moei_pick_in_pairs(table, indices), tables.of[at.output / MOEI_LANES]);
  }
}
#endif

/* The nearest value times `half`, which twice the values are multiplied by; of two the smaller one. */
static inline void moei_nearest_e2m1(const float *w, int64_t count, float half, uint8_t *numbers) {
#pragma clang fp contract(off)
  static const float values[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  for (int64_t i = 0; i < count; i++) {
    const float size = __builtin_fabsf(w[i]);
    float least = size;
    int32_t best = 0;
    for (int32_t n = 1; n < 8; n++) {
      const float error = __builtin_fabsf(half * values[n] - size);
      best = error < least ? n : best;
      least = error < least ? error : least;
    }
    numbers[i] = (uint8_t)(w[i] < 0 && best > 0 ? best + 8 : best);
  }
}

/* The exponent is that of max |w| less 2. */
static inline int32_t moei_mxfp4_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                        const float *_Nullable largest, void *block) {
  (void)largest;
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t k = 0; k < depth; k += 32) {
      const int64_t count = depth - k < 32 ? depth - k : 32;
      const uint32_t exponent = moei_float_bits(moei_largest(w + r * w_row + k, count)) >> 23;
      const uint32_t e = exponent > 2 ? exponent - 2 : 0;
      const float half = moei_float_of(e < 2 ? 0x00200000u << e : (e - 1) << 23);
      uint8_t numbers[32] = {0};
      moei_nearest_e2m1(w + r * w_row + k, count, half, numbers);
      moei_put_nibbles((char *)block, k / 32, first + r, numbers);
      ((uint8_t *)block)[inputs * 16 + k + first + r] = (uint8_t)e;
      is_finite &= exponent < 255;
    }
  }
  return is_finite;
}

/* Blocks of GGUF: exponent, half bytes; or numbers of 0 ... 15 beside bytes of exponents. */
static inline int32_t moei_mxfp4_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *from = stored->numbers + r * stored->row;
    for (int64_t k = 0; k < depth; k += 32) {
      const int64_t sub = k % inputs / 32;
      char *block = (char *)blocks + k / inputs * moei_mxfp4_bytes(inputs / 32);
      uint8_t numbers[32], e;
      if (stored->bytes) {
        e = stored->bytes[r * stored->bytes_row + k / 32];
        for (int64_t i = 0; i < 32; i++) numbers[i] = from[k + i] & 15;
      } else {
        e = from[0];
        moei_spread_nibbles(from + 1, numbers);
        from += 17;
      }
      moei_put_nibbles(block, sub, r, numbers);
      ((uint8_t *)block)[inputs * 16 + sub * 32 + r] = e;
      is_finite &= e < 255;
    }
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_mxfp4
#define MOEI_CODE_SUMS MOEI_OF_FIVE_BITS
#define MOEI_CODE_HAS_PAIRS
#define MOEI_CODE_HAS_VALUES
#include "kernels.h"

#endif
