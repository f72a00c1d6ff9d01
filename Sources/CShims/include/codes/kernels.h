/* Products of one code, included once for each, with MOEI_CODE defined as its prefix.  The code gives
 *   int64_t CODE_bytes(subs)                    of a block
 *   moei_scaling CODE_scaling(at, octet)        for the contraction indices 8 octet ... 8 octet + 7 of `at`
 *   moei_sum_floats CODE_value(at, octet, j, scaling)   number j of these
 *   moei_sums CODE_word(at, i)                  bytes of numbers 4 i ... 4 i + 3 of each output of `at`
 *   moei_sum_floats CODE_end(total, at, sums, token)   total + what sums of products with a token's integers stand for
 * With MOEI_CODE_HAS_STREAMS numbers and scales of a block are so far apart that a core does not fetch both by itself.
 * MOEI_CODE_SUMS says how products are summed (words.h); with MOEI_CODE_HAS_HALVES CODE_end takes the sums of the first and of the
 * last sixteen numbers.  With MOEI_CODE_IS_FOR_FLOATS there is no product of integers; with MOEI_CODE_HAS_INTEGERS the code has
 * CODE_integers in place of CODE_word and CODE_end.
 * Its other functions, CODE_encode and CODE_pack, are called as they are. */
#ifdef MOEI_CODE

#define MOEI_JOIN_(a, b) a##_##b
#define MOEI_JOIN(a, b) MOEI_JOIN_(a, b)
#define MOEI_OF(name) MOEI_JOIN(MOEI_CODE, name)

/* What 32 contraction indices have of a block's bytes; and their lines, further on in the panel.  Where blocks have more than 32 the
 * lines of two may overlap. */
MOEI_INLINE int64_t MOEI_OF(step)(int64_t subs) { return MOEI_OF(bytes)(subs) / subs; }
MOEI_INLINE void MOEI_OF(fetch)(const char *p) {
  MOEI_UNROLL for (int64_t line = 0; line < MOEI_OF(bytes)(1); line += 64) __builtin_prefetch(p + MOEI_AHEAD + line, 0, 2);
}
/* Whether so many rows of integers fetch what they will read.  Where a core finds a stream by itself a single row does not, and of bytes no
 * number of rows: there are two lines of them for one of half bytes, and a product has no time for that many. */
MOEI_INLINE int MOEI_OF(fetches)(int rows) {
#ifdef MOEI_CODE_HAS_STREAMS
  return rows > 0;
#else
  return !moei_finds_streams || (rows > 1 && MOEI_OF(bytes)(1) <= 1024);
#endif
}

#if !defined(MOEI_CODE_IS_FOR_FLOATS) && !defined(MOEI_CODE_HAS_INTEGERS)
#define MOEI_SUMS(name) MOEI_JOIN(MOEI_CODE_SUMS, name)
#ifdef MOEI_CODE_HAS_HALVES
#define MOEI_END_OF(total, at, sums, token) MOEI_OF(end)(total, at, MOEI_SUMS(half)(sums, 0), MOEI_SUMS(half)(sums, 1), token)
#else
#define MOEI_END_OF(total, at, sums, token) MOEI_OF(end)(total, at, MOEI_SUMS(all)(sums), token)
#endif

/* All outputs of `rows` rows times integers, of some panels at once, so that one's memory comes while the other is computed;
 * `columns` registers of outputs at once: word after word, each for all rows.  `total` and `sums` are [panels][rows][columns]. */
MOEI_INLINE void MOEI_OF(integers)(const moei_code_call *call, int64_t row, const int rows, const int columns, const int panels) {
  const int64_t subs = call->subs, step = MOEI_OF(step)(subs);
  const int fetches = MOEI_OF(fetches)(rows) && row == 0 && call->panels->next == NULL;
  moei_fetching fetching = moei_fetching_of(call, row, rows);
  for (int64_t output = 0; output < 32; output += columns * MOEI_LANES) {
    moei_sum_floats total[2][7][4];
    MOEI_UNROLL for (int n = 0; n < panels; n++) {
      const moei_code_panel *panel = call->panels + n;
      MOEI_UNROLL for (int r = 0; r < rows; r++) {
        MOEI_UNROLL for (int c = 0; c < columns; c++) {
          total[n][r][c] = moei_load_floats((const char *)(panel->start + (row + r) * panel->start_stride + output + c * MOEI_LANES));
        }
      }
    }
    const char *token = (const char *)call->a + row * MOEI_TOKEN_BLOCK;
    int64_t sub = 0, offset = 0, ahead = 0;
    for (int64_t left = call->length; left > 0; left--, ahead += step) {
      MOEI_CODE_SUMS sums[2][7][4];
      if (rows > 1 && output == 0) moei_fetch(&fetching);
      MOEI_UNROLL for (int n = 0; n < panels; n++) {
        const char *blocks = (const char *)call->panels[n].blocks;
        if (fetches && output == 0) MOEI_OF(fetch)(blocks + ahead);
        MOEI_UNROLL for (int i = 0; i < 8; i++) {
          MOEI_UNROLL for (int c = 0; c < columns; c++) {
            const moei_sums word = MOEI_OF(word)((moei_place){blocks + offset, sub, subs, output + c * MOEI_LANES}, i);
            MOEI_UNROLL for (int r = 0; r < rows; r++) {
              const char *own = token + r * MOEI_TOKEN_BLOCK;
              if (i == 0) sums[n][r][c] = MOEI_SUMS(begin)(own);
              sums[n][r][c] = MOEI_SUMS(add)(sums[n][r][c], i, word, moei_four(own, i));
            }
          }
        }
        MOEI_UNROLL for (int c = 0; c < columns; c++) {
          const moei_place at = {blocks + offset, sub, subs, output + c * MOEI_LANES};
          MOEI_UNROLL for (int r = 0; r < rows; r++) {
            total[n][r][c] = MOEI_END_OF(total[n][r][c], at, sums[n][r][c], token + r * MOEI_TOKEN_BLOCK);
          }
        }
      }
      token += call->m * MOEI_TOKEN_BLOCK;
      if (++sub == subs) {
        offset += MOEI_OF(bytes)(subs);
        sub = 0;
      }
    }
    MOEI_UNROLL for (int n = 0; n < panels; n++) {
      const moei_code_panel *panel = call->panels + n;
      MOEI_UNROLL for (int r = 0; r < rows; r++) {
        MOEI_UNROLL for (int c = 0; c < columns; c++) {
          __builtin_memcpy(panel->c + (row + r) * panel->c_stride + output + c * MOEI_LANES, &total[n][r][c], sizeof total[n][r][c]);
        }
      }
    }
  }
}
#undef MOEI_END_OF
#undef MOEI_SUMS
#endif

#if !defined(MOEI_CODE_HAS_VALUES) || !defined(__AVX512VNNI__)
MOEI_INLINE void MOEI_OF(values)(moei_place at, int64_t octet, moei_scaling scaling, moei_sum_floats *values) {
  MOEI_UNROLL for (int j = 0; j < 8; j++) values[j] = MOEI_OF(value)(at, octet, j, scaling);
}
#endif

/* The same times floats, of some panels at once, so that chains do not wait for each other.  `total` is [panels][rows][columns]. */
enum { MOEI_OF(COLUMNS) = 32 / MOEI_LANES };
typedef moei_sum_floats MOEI_OF(totals)[2][2][MOEI_OF(COLUMNS)];

MOEI_INLINE void MOEI_OF(add_octet)(MOEI_OF(totals) total, const char *block, int64_t sub, int64_t subs, int64_t octet,
                                    const float *token, const int n, const int rows) {
  MOEI_UNROLL for (int c = 0; c < MOEI_OF(COLUMNS); c++) {
    const moei_place at = {block, sub, subs, c * MOEI_LANES};
    moei_sum_floats values[8];
    MOEI_OF(values)(at, octet, MOEI_OF(scaling)(at, octet), values);
    MOEI_UNROLL for (int j = 0; j < 8; j++) {
      MOEI_UNROLL for (int r = 0; r < rows; r++) {
        total[n][r][c] = moei_add_product(total[n][r][c], token[r * 32 + octet * 8 + j], values[j]);
      }
    }
  }
}
/* The last contraction indices, fewer than 32, of one row. */
static inline void MOEI_OF(rest)(moei_place at, int64_t count, const float *token, float *c) {
  for (at.output = 0; at.output < 32; at.output += MOEI_LANES) {
    moei_sum_floats total = moei_load_floats((const char *)(c + at.output));
    for (int64_t i = 0; i < count; i++) {
      total = moei_add_product(total, token[i], MOEI_OF(value)(at, i / 8, (int32_t)(i % 8), MOEI_OF(scaling)(at, i / 8)));
    }
    __builtin_memcpy(c + at.output, &total, sizeof total);
  }
}

MOEI_INLINE void MOEI_OF(floats)(const moei_code_call *call, int64_t row, const int rows, const int panels) {
  MOEI_OF(totals) total;
  MOEI_UNROLL for (int n = 0; n < panels; n++) {
    const moei_code_panel *panel = call->panels + n;
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
      MOEI_UNROLL for (int c = 0; c < MOEI_OF(COLUMNS); c++) {
        total[n][r][c] = moei_load_floats((const char *)(panel->start + (row + r) * panel->start_stride + c * MOEI_LANES));
      }
    }
  }
  const float *token = (const float *)call->a + row * 32;
  const int64_t subs = call->subs, step = MOEI_OF(step)(subs);
  const int64_t stream = moei_stream_of(call, (call->length + 31) / 32 * step, panels);
  int64_t sub = 0, offset = 0, ahead = 0, left = call->length;
  for (; left >= 32; left -= 32, ahead += step) {
    const int64_t next = ahead + moei_skipped(ahead, stream);
    MOEI_UNROLL for (int n = 0; n < panels; n++) MOEI_OF(fetch)((const char *)call->panels[n].blocks + next);
    for (int64_t half = 0; half < 4; half += 2) {
      /* Two of them, which have their scales in common. */
      MOEI_UNROLL for (int64_t i = 0; i < 2; i++) {
        MOEI_UNROLL for (int n = 0; n < panels; n++) {
          MOEI_OF(add_octet)(total, (const char *)call->panels[n].blocks + offset, sub, subs, half + i, token, n, rows);
        }
      }
    }
    token += call->m * 32;
    if (++sub == subs) {
      offset += MOEI_OF(bytes)(subs);
      sub = 0;
    }
  }
  MOEI_UNROLL for (int n = 0; n < panels; n++) {
    const moei_code_panel *panel = call->panels + n;
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
      MOEI_UNROLL for (int c = 0; c < MOEI_OF(COLUMNS); c++) {
        __builtin_memcpy(panel->c + (row + r) * panel->c_stride + c * MOEI_LANES, &total[n][r][c], sizeof total[n][r][c]);
      }
    }
    if (left > 0) {
      const moei_place at = {(const char *)panel->blocks + offset, sub, subs, 0};
      for (int r = 0; r < rows; r++) MOEI_OF(rest)(at, left, token + r * 32, panel->c + (row + r) * panel->c_stride);
    }
  }
}

#ifndef MOEI_CODE_IS_FOR_FLOATS
/* How many rows have registers for their totals and sums, where there are 32. */
#ifdef MOEI_CODE_HAS_HALVES
enum { MOEI_OF(ROWS) = 4 };
#else
enum { MOEI_OF(ROWS) = 7 };
#endif
/* How many rows at once: few take many outputs, so that blocks are read from end to end. */
static inline void MOEI_OF(all_integers)(const moei_code_call *call, int64_t panels) {
  int64_t row = 0;
#if defined(__AVX512VNNI__)
  if (panels == 2) return MOEI_OF(integers)(call, 0, 1, 2, 2);
#endif
  while (row < call->m) {
    const int64_t left = call->m - row;
#if defined(__AVX512VNNI__)
    /* As few times as possible, about equally many rows each. */
    const int64_t times = (left + MOEI_OF(ROWS) - 1) / MOEI_OF(ROWS), rows = (left + times - 1) / times;
    switch (rows) {
    case 1: MOEI_OF(integers)(call, row, 1, 2, 1); break;
    case 2: MOEI_OF(integers)(call, row, 2, 2, 1); break;
    case 3: MOEI_OF(integers)(call, row, 3, 2, 1); break;
    case 4: MOEI_OF(integers)(call, row, 4, 2, 1); break;
#ifndef MOEI_CODE_HAS_HALVES
    case 5: MOEI_OF(integers)(call, row, 5, 2, 1); break;
    case 6: MOEI_OF(integers)(call, row, 6, 2, 1); break;
    default: MOEI_OF(integers)(call, row, 7, 2, 1);
#endif
    }
    row += rows;
#else
    if (left >= 4) {
      MOEI_OF(integers)(call, row, 4, 1, 1), row += 4;
    } else if (left == 3) {
      MOEI_OF(integers)(call, row, 3, 1, 1), row += 3;
    } else if (left == 2) {
      MOEI_OF(integers)(call, row, 2, 2, 1), row += 2;
    } else {
      MOEI_OF(integers)(call, row, 1, 4, 1), row += 1;
    }
#endif
  }
}
#endif
static inline void MOEI_OF(all_floats)(const moei_code_call *call, int64_t panels) {
  if (panels == 2) return MOEI_OF(floats)(call, 0, 1, 2);
  int64_t row = 0;
  for (; row + 2 <= call->m; row += 2) MOEI_OF(floats)(call, row, 2, 1);
  if (row < call->m) MOEI_OF(floats)(call, row, 1, 1);
}

static inline void MOEI_OF(product)(int64_t inputs, int64_t m, int64_t length, const void *a, int64_t count, const moei_code_panel *panels) {
  moei_each_panel((moei_code_call){inputs / 32, m, length, a, panels}, count, 0, MOEI_OF(all_floats));
}
#ifdef MOEI_CODE_IS_FOR_FLOATS
#define MOEI_PRODUCT_OF_INTEGERS NULL
#else
#define MOEI_PRODUCT_OF_INTEGERS MOEI_OF(product_of_integers)
/* Panels that follow each other are read as one stream. */
static inline void MOEI_OF(product_of_integers)(int64_t inputs, int64_t m, int64_t length, const void *a, int64_t count, const moei_code_panel *panels) {
  const int64_t stream = length * MOEI_OF(step)(inputs / 32);
  moei_each_panel((moei_code_call){inputs / 32, m, length, a, panels}, count, stream, MOEI_OF(all_integers));
}
#endif

static inline void MOEI_OF(decode)(int64_t inputs, int64_t first, int64_t k, const void *blocks, float *panel) {
  moei_place at = {(const char *)blocks, first / 32, inputs / 32, 0};
  for (int64_t left = k; left > 0; left -= 32) {
    for (at.output = 0; at.output < 32; at.output += MOEI_LANES) {
      for (int64_t octet = 0; octet < 4 && octet * 8 < left; octet++) {
        const moei_scaling scaling = MOEI_OF(scaling)(at, octet);
        const int64_t count = left - octet * 8 < 8 ? left - octet * 8 : 8;
        for (int j = 0; j < count; j++) {
          const moei_sum_floats value = MOEI_OF(value)(at, octet, j, scaling);
          __builtin_memcpy(panel + (octet * 8 + j) * 32 + at.output, &value, sizeof value);
        }
      }
    }
    panel += 32 * 32;
    if (++at.sub == at.subs) {
      at.block += MOEI_OF(bytes)(at.subs);
      at.sub = 0;
    }
  }
}

#include "pairs.h"

static inline moei_code MOEI_OF(code)(void) {
  return (moei_code){MOEI_OF(encode),         MOEI_OF(pack),         MOEI_OF(decode),      MOEI_OF(product),
                     MOEI_PRODUCT_OF_INTEGERS, MOEI_OF(decode_pairs), MOEI_PRODUCT_OF_PAIRS};
}

#undef MOEI_PRODUCT_OF_PAIRS
#undef MOEI_PRODUCT_OF_INTEGERS
#undef MOEI_OF
#undef MOEI_JOIN
#undef MOEI_JOIN_
#undef MOEI_CODE_IS_FOR_FLOATS
#undef MOEI_CODE_HAS_INTEGERS
#undef MOEI_CODE_HAS_HALVES
#undef MOEI_CODE_HAS_STREAMS
#undef MOEI_CODE_HAS_PAIRS
#undef MOEI_CODE_HAS_VALUES
#undef MOEI_CODE_SUMS
#undef MOEI_CODE
#endif
