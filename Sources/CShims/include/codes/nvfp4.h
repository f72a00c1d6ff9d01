/* E2M1 under E4M3 for 16 contraction indices and one float32 for all: half bytes of 4 subs, then [4][2][32] bytes of E4M3, then what these
 * are multiplied and divided by, 64 bytes.  NVFP4. */
#ifndef MOEI_CODES_NVFP4_H
#define MOEI_CODES_NVFP4_H

#include "fp8.h"
#include "mxfp4.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_nvfp4_bytes(int64_t subs) { return subs * (512 + 64) + 64; }

/* Half of E4M3 * factor / divisor, since values are doubled. */
MOEI_INLINE moei_scaling moei_nvfp4_scaling(moei_place at, int64_t octet) {
  const char *scales = at.block + at.subs * 512, *common = scales + at.subs * 64;
  const float factor = moei_token_float(common, 0), divisor = moei_token_float(common, 4);
  moei_sum_floats own = moei_e4m3(moei_load_u8(scales + at.sub * 64 + octet / 2 * 32 + at.output)) * factor;
  if (divisor != 1) own = own / divisor;
  return (moei_scaling){own * 0.5f, 0};
}
MOEI_INLINE moei_sum_floats moei_nvfp4_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_mxfp4_value(at, octet, j, scaling);
}
#if defined(__AVX512VNNI__)
MOEI_INLINE void moei_nvfp4_values(moei_place at, int64_t octet, moei_scaling scaling, moei_sum_floats *values) {
  moei_mxfp4_values(at, octet, scaling, values);
}
#endif
MOEI_INLINE moei_sums moei_nvfp4_word(moei_place at, int64_t i) { return moei_mxfp4_word(at, i); }
/* 16 contraction indices after the other. */
MOEI_INLINE moei_sum_floats moei_nvfp4_end(moei_sum_floats total, moei_place at, moei_sums first, moei_sums last, const char *token) {
  const int32_t first_sum = (int16_t)moei_half_sums_of(token), last_sum = moei_half_sums_of(token) >> 16;
  total = moei_add_scaled(total, moei_nvfp4_scaling(at, 0).scale, moei_step_of(token), first - 12 * first_sum);
  return moei_add_scaled(total, moei_nvfp4_scaling(at, 2).scale, moei_step_of(token), last - 12 * last_sum);
}

#if defined(__AVX512BF16__)
/* E4M3 has eight fractions, and its exponent is only added to that of a product, as long as nothing is denormal or infinite: `hold` says
 * whether there is room for all exponents, 1 to 15, and for numbers up to 12.  Entries 0 to 7 are 0x7E00 less half of factor / divisor times
 * 1, 1 1/8 ... 1 7/8, in bfloat16; 8 to 15 are 0x7E01 less three times that.  Seven exponents are added, since 1 has the exponent 7: what is left
 * is to subtract a scale's own. */
MOEI_INLINE moei_u16x32 moei_nvfp4_scales(float factor, float divisor, int *hold) {
  const moei_sum_floats scales = {1, 1.125f, 1.25f, 1.375f, 1.5f, 1.625f, 1.75f, 1.875f, 1, 1.125f, 1.25f, 1.375f, 1.5f, 1.625f, 1.75f, 1.875f};
  const moei_sum_floats times = {1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3};
  moei_sum_floats own = scales * factor;
  if (divisor != 1) own = own / divisor;
  own = own * 0.5f * times;
  const uint32_t least = moei_float_bits(own[0]) >> 23;
  *hold = least > 8 && least < 224;
  typedef float floats __attribute__((__vector_size__(64)));
  const moei_u16x32 from = {0x8180, 0x8180, 0x8180, 0x8180, 0x8180, 0x8180, 0x8180, 0x8180, 0x8181, 0x8181, 0x8181, 0x8181, 0x8181, 0x8181, 0x8181, 0x8181};
  return from - (moei_u16x32)__builtin_ia32_cvtne2ps2bf16_512((floats)own, (floats)own);
}
/* What numbers stand for is 1, 2, 4, 8 or 3, 6, 12 times the scale: once and three times it, rounded, and exponents counted together.  Of the
 * first and of the last 16, of the first and of the last outputs: what is too large, for once and for three times the scale, whose entries
 * are odd. */
MOEI_INLINE moei_pair_tables moei_nvfp4_pair_tables(moei_place at) {
  const char *scales = at.block + at.subs * 512 + at.sub * 64, *common = at.block + at.subs * 576;
  const moei_u16x32 twice = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15};
  moei_pair_tables tables;
  const moei_u16x32 table = moei_nvfp4_scales(moei_token_float(common, 0), moei_token_float(common, 4), &tables.hold);
  /* Bytes without an exponent: what one is subtracted from reaches below 0. */
  const moei_sums exponents = moei_load_words(scales) & 0x78787878;
  tables.hold &= moei_bits(((exponents - 0x08080808) & (int32_t)0x80808080) != 0) == 0;
  MOEI_UNROLL for (int half = 0; half < 2; half++) {
    moei_u8x32 bytes;
    __builtin_memcpy(&bytes, scales + half * 32, sizeof bytes);
    const moei_u16x32 all = __builtin_convertvector(bytes, moei_u16x32), powers = (all & 0x78) << 4, fractions = all & 7;
    const moei_u16x32 once = moei_pick_in_pairs(table, fractions) - powers, thrice = moei_pick_in_pairs(table, fractions + 8) - powers;
    MOEI_UNROLL for (int c = 0; c < 2; c++) {
      tables.of[4 * half + 2 * c] = moei_pick_in_pairs(once, twice + 16 * c);
      tables.of[4 * half + 2 * c + 1] = moei_pick_in_pairs(thrice, twice + 16 * c);
    }
  }
  return tables;
}
MOEI_INLINE void moei_nvfp4_pairs(moei_place at, int64_t octet, moei_pair_tables tables, moei_sums *words) {
  const moei_u16x32 table = {0, 0x7E00, 0x7E80, 0x7E01, 0x7F00, 0x7E81, 0x7F80, 0x7F01, 0, 0xFE00, 0xFE80, 0xFE01, 0xFF00, 0xFE81, 0xFF80, 0xFF01,
                             0, 0x7E00, 0x7E80, 0x7E01, 0x7F00, 0x7E81, 0x7F80, 0x7F01, 0, 0xFE00, 0xFE80, 0xFE01, 0xFF00, 0xFE81, 0xFF80, 0xFF01};
  const moei_u16x32 *own = tables.of + octet / 2 * 4 + at.output / MOEI_LANES * 2;
  MOEI_UNROLL for (int32_t p = 0; p < 4; p++) {
    const moei_u16x32 sums = moei_pick_in_pairs(table, moei_nibbles_in_pairs(moei_nibble_words(at, octet), p));
    const moei_u16x32 is_thrice = (moei_u16x32)((sums & 1) != 0);
    words[p] = (moei_sums)__builtin_elementwise_sub_sat(sums, (is_thrice & own[1]) | (~is_thrice & own[0]));
  }
}
#endif

static inline float moei_from_e4m3(uint8_t byte) { return moei_float_of((byte & 127u) << 20) * 0x1p120f; }

/* factor = max |w| / (6 * 448) of 128 contraction indices of 32 outputs; of 16 the scale is E4M3(max |w| / 6 / factor). */
static inline int32_t moei_nvfp4_encode(int64_t inputs, int64_t first, int64_t rows, int64_t depth, const float *w, int64_t w_row,
                                        const float *_Nullable largest, void *block) {
#pragma clang fp contract(off)
  (void)largest;
  float most = 0;
  for (int64_t r = 0; r < rows; r++) {
    const float own = moei_largest(w + r * w_row, depth);
    most = own <= most ? most : own;
    if (own != own) break;
  }
  const float factor = moei_usable(most / (6 * 448)), inverse = moei_inverse(factor);
  char *scales = (char *)block + inputs * 16, *common = scales + inputs * 2;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t k = 0; k < depth; k += 32) {
      uint8_t numbers[32] = {0};
      for (int64_t half = 0; half < 2; half++) {
        const float *own = w + r * w_row + k + half * 16;
        const int64_t left = depth - k - half * 16, count = left < 0 ? 0 : left < 16 ? left : 16;
        const uint8_t scale = moei_to_e4m3(moei_largest(own, count) / 6 * inverse);
        moei_nearest_e2m1(own, count, moei_from_e4m3(scale) * factor * 0.5f, numbers + half * 16);
        scales[k * 2 + half * 32 + first + r] = (char)scale;
      }
      moei_put_nibbles((char *)block, k / 32, first + r, numbers);
    }
  }
  moei_put_float(common, factor);
  moei_put_float(common + 4, 1);
  return moei_is_finite(factor);
}

/* Blocks of GGUF: four bytes of E4M3, then half bytes of 16, number j beside number j + 8; or numbers of 0 ... 15 beside bytes of E4M3. */
static inline int32_t moei_nvfp4_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = moei_is_finite(stored->factor) & moei_is_finite(stored->divisor) & (stored->divisor != 0);
  for (int64_t k = 0; k < depth; k += 32) {
    char *block = (char *)blocks + k / inputs * moei_nvfp4_bytes(inputs / 32);
    char *scales = block + inputs * 16 + k % inputs * 2, *common = block + inputs * 18;
    for (int64_t r = 0; r < rows; r++) {
      const uint8_t *from = stored->numbers + r * stored->row;
      uint8_t numbers[32];
      for (int64_t half = 0; half < 2; half++) {
        uint8_t scale;
        if (stored->bytes) {
          const int64_t left = depth - k - half * 16;
          scale = left > 0 ? stored->bytes[r * stored->bytes_row + k / 16 + half] : 0;
          for (int64_t i = 0; i < 16; i++) numbers[half * 16 + i] = i < left ? from[k + half * 16 + i] & 15 : 0;
          is_finite &= scale < 127;
        } else {
          const uint8_t *super = from + k / 64 * 36, *halves = super + 4 + k % 64 / 2 + half * 8;
          scale = super[k % 64 / 16 + half];
          scale = scale == 127 ? 0 : scale;
          for (int64_t i = 0; i < 8; i++) {
            numbers[half * 16 + i] = halves[i] & 15;
            numbers[half * 16 + i + 8] = halves[i] >> 4;
          }
        }
        scales[half * 32 + r] = (char)scale;
      }
      moei_put_nibbles(block, k % inputs / 32, r, numbers);
    }
    moei_put_float(common, stored->factor);
    moei_put_float(common + 4, stored->divisor);
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_nvfp4
#define MOEI_CODE_HAS_STREAMS
#define MOEI_CODE_SUMS moei_of_halves
#define MOEI_CODE_HAS_HALVES
#define MOEI_CODE_HAS_PAIRS
#define MOEI_CODE_HAS_VALUES
#include "kernels.h"

#endif
