/* Integers of 8 bits under one float32 scale for a whole row of weights: bytes of 256 contraction indices, then [32] scales, again in
 * each block. */
#ifndef MOEI_CODES_INT8_ROW_H
#define MOEI_CODES_INT8_ROW_H

#include "int8.h"
#include "tokens.h"

#pragma clang assume_nonnull begin

MOEI_INLINE int64_t moei_int8_row_bytes(int64_t subs) { return subs * 1024 + 128; }

MOEI_INLINE moei_scaling moei_int8_row_scaling(moei_place at, int64_t octet) {
  (void)octet;
  return (moei_scaling){moei_load_floats(at.block + at.subs * 1024 + at.output * 4), 0};
}
MOEI_INLINE moei_sum_floats moei_int8_row_value(moei_place at, int64_t octet, int32_t j, moei_scaling scaling) {
  return moei_int8_value(at, octet, j, scaling);
}

/* As in kernels.h, but sums go over all chunks, and are scaled once. */
MOEI_INLINE void moei_int8_row_integers(const moei_code_call *call, int64_t row, const int rows, const int columns, const int panels) {
  const int64_t subs = call->subs;
  const char *first = (const char *)call->a + row * 32, *steps = (const char *)call->a + call->length * call->m * 32 + row * 4;
  moei_fetching fetching = moei_fetching_of(call, row, rows);
  for (int64_t output = 0; output < 32; output += columns * MOEI_LANES) {
    moei_sums sums[2][7][4];
    MOEI_UNROLL for (int n = 0; n < panels; n++) {
      MOEI_UNROLL for (int r = 0; r < rows; r++) {
        MOEI_UNROLL for (int c = 0; c < columns; c++) sums[n][r][c] = moei_no_bytes(moei_four(steps, call->m + r));
      }
    }
    const char *token = first;
    int64_t sub = 0, offset = 0;
    for (int64_t left = call->length; left > 0; left--) {
      if (rows > 1 && output == 0) moei_fetch(&fetching);
      MOEI_UNROLL for (int n = 0; n < panels; n++) {
        const char *block = (const char *)call->panels[n].blocks + offset;
        MOEI_UNROLL for (int i = 0; i < 8; i++) {
          MOEI_UNROLL for (int c = 0; c < columns; c++) {
            const moei_sums words = moei_as_factors(moei_byte_words((moei_place){block, sub, subs, output + c * MOEI_LANES}, i));
            MOEI_UNROLL for (int r = 0; r < rows; r++) {
              sums[n][r][c] = moei_add_bytes(sums[n][r][c], words, moei_four(token + r * 32, i));
            }
          }
        }
      }
      token += call->m * 32;
      if (++sub == subs && left > 1) {
        offset += moei_int8_row_bytes(subs);
        sub = 0;
      }
    }
    MOEI_UNROLL for (int n = 0; n < panels; n++) {
      const moei_code_panel *panel = call->panels + n;
      MOEI_UNROLL for (int c = 0; c < columns; c++) {
        const moei_place at = {(const char *)panel->blocks + offset, 0, subs, output + c * MOEI_LANES};
        const moei_sum_floats scales = moei_int8_row_scaling(at, 0).scale;
        MOEI_UNROLL for (int r = 0; r < rows; r++) {
          const moei_sum_floats start = moei_load_floats((const char *)(panel->start + (row + r) * panel->start_stride + at.output));
          const moei_sum_floats total = moei_add_scaled(start, scales, moei_token_float(steps, r * 4), sums[n][r][c]);
          __builtin_memcpy(panel->c + (row + r) * panel->c_stride + at.output, &total, sizeof total);
        }
      }
    }
  }
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

/* Numbers beside a scale for each row.  Encoding makes none of -128, files have some: sums of products with tokens fit all the same, 128 127
 * 131072 < 2^31. */
static inline int32_t moei_int8_row_pack(int64_t inputs, int64_t rows, int64_t depth, const moei_stored *stored, void *blocks) {
  int32_t is_finite = 1;
  for (int64_t r = 0; r < rows; r++) {
    const float scale = stored->scales[r * stored->scales_row];
    for (int64_t k = 0; k < depth; k += 32) {
      char *block = (char *)blocks + k / inputs * moei_int8_row_bytes(inputs / 32);
      uint8_t numbers[32] = {0};
      for (int64_t i = 0; i < 32 && k + i < depth; i++) numbers[i] = stored->numbers[r * stored->row + k + i];
      moei_put_bytes(block, k % inputs / 32, r, numbers);
      moei_put_float(block + inputs * 32 + r * 4, scale);
    }
    is_finite &= moei_is_finite(scale);
  }
  return is_finite;
}

#pragma clang assume_nonnull end

#define MOEI_CODE moei_int8_row
#define MOEI_CODE_HAS_INTEGERS
#include "kernels.h"

#endif
