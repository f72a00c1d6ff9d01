/* E4M3, floats of 8 bits, under one float32 scale for 128 contraction indices of all 32 outputs: bytes of 4 subs, then the scale, 64
 * bytes.  What checkpoints with a scale for 128 x 128 weights have, as DeepSeek-V3's. */
#ifndef MOEI_CODES_FP8_H
#define MOEI_CODES_FP8_H

#include "parts.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_fp8_bytes(int64_t subs) { return subs * 1024 + 64; }

MOEI_INLINE moei_scaling moei_fp8_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){(moei_sum_floats)moei_token_float(at.block + at.subs * 1024, 0), 0};
}
MOEI_INLINE moei_sum_floats moei_fp8_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  const moei_sums words = moei_byte_words(at, octet * 2 + j / 4);
  const int32_t place = 8 * (j & 3);
  const moei_sums sign = (words << (24 - place)) & (int32_t)0x80000000;
  return (moei_sum_floats)((moei_sums)moei_e4m3(words >> place) ^ sign) * scaling.scale;
}

#if defined(__AVX512BF16__)
/* All numbers times the scale, rounded, as a table of 128; then signs. */
MOEI_INLINE moei_pair_tables moei_fp8_pair_tables(moei_place at) {
  typedef float floats __attribute__((__vector_size__(64)));
  const moei_sums count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const moei_sum_floats scale = moei_fp8_scaling(at, 0).scale;
  moei_pair_tables tables;
  tables.hold = 1;
  MOEI_UNROLL for (int t = 0; t < 4; t++) {
    const moei_sum_floats low = moei_e4m3(count + t * 32) * scale, high = moei_e4m3(count + t * 32 + 16) * scale;
    tables.of[t] = (moei_u16x32)__builtin_ia32_cvtne2ps2bf16_512((floats)high, (floats)low);
  }
  return tables;
}
MOEI_INLINE void moei_fp8_pairs(moei_place at, int64_t octet, moei_pair_tables tables, moei_sums *words) {
  typedef short shorts __attribute__((__vector_size__(64)));
  MOEI_UNROLL for (int32_t p = 0; p < 4; p++) {
    const moei_u16x32 numbers = moei_bytes_in_pairs(moei_byte_words(at, octet * 2 + p / 2), p % 2);
    const moei_u16x32 small = (moei_u16x32)(shorts)__builtin_ia32_vpermi2varhi512((shorts)tables.of[0], (shorts)numbers, (shorts)tables.of[1]);
    const moei_u16x32 large = (moei_u16x32)(shorts)__builtin_ia32_vpermi2varhi512((shorts)tables.of[2], (shorts)numbers, (shorts)tables.of[3]);
    const moei_u16x32 is_large = (moei_u16x32)((numbers & 64) != 0);
    words[p] = (moei_sums)(((is_large & large) | (~is_large & small)) ^ (numbers & 0x8000));
  }
}
#endif

/* The nearest E4M3, the even one in a tie, of what is at most 448 in magnitude; what is larger, or no number, counts as that. */
static inline uint8_t moei_to_e4m3(float value) {
  const uint32_t sign = moei_float_bits(value) >> 24 & 0x80;
  float size = __builtin_fabsf(value);
  size = size <= 448 ? size : 448;
  if (size < 0x1p-6f) return (uint8_t)(sign | (uint32_t)moei_whole(size * 512));
  const uint32_t bits = moei_float_bits(size);
  return (uint8_t)(sign | (((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3)));
}

/* d = max |w| / 448 of 128 contraction indices of 32 outputs, q = E4M3(w (1 / d)). */
static inline int32_t moei_fp8_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                      const float *_Nullable largest, void *block) {
  (void)largest;
  float most = 0;
  for (int64_t r = 0; r < rows; r++) {
    const float own = moei_largest(w + r * w_row, depth);
    most = own <= most ? most : own;
    if (own != own) break;
  }
  const float step = moei_usable(most / 448), inverse = moei_inverse(step);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t k = 0; k < depth; k += 32) {
      uint8_t numbers[32] = {0};
      for (int64_t i = 0; i < 32 && k + i < depth; i++) numbers[i] = moei_to_e4m3(w[r * w_row + k + i] * inverse);
      moei_put_bytes((char *)block, k / 32, first + r, numbers);
    }
  }
  moei_put_float((char *)block + inputs * 32, step);
  return moei_is_finite(step);
}

/* Bytes of E4M3 beside a scale for each 128 contraction indices of all rows. */
static inline int32_t moei_fp8_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = 1;
  for (int64_t k = 0; k < depth; k += 32) {
    char *block = (char *)blocks + k / inputs * moei_fp8_bytes(inputs / 32);
    for (int64_t r = 0; r < rows; r++) {
      uint8_t numbers[32] = {0};
      for (int64_t i = 0; i < 32 && k + i < depth; i++) {
        numbers[i] = stored->numbers[r * stored->row + k + i];
        is_finite &= (numbers[i] & 127) != 127;
      }
      moei_put_bytes(block, k % inputs / 32, r, numbers);
    }
    const float scale = stored->scales[k / inputs];
    moei_put_float(block + inputs * 32, scale);
    is_finite &= moei_is_finite(scale);
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_fp8
#define MOEI_CODE_IS_FOR_FLOATS
#define MOEI_CODE_HAS_PAIRS
#include "kernels.h"

#endif
