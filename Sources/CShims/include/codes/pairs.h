/* Products of one code times tokens in bfloat16, included by kernels.h for each: numbers become floats, are rounded to bfloat16 and
 * multiplied two at a time, as panels of bfloat16 are (Sources/Kernels/Pairs.swift), in the same chains.  With MOEI_CODE_HAS_PAIRS a code
 * has a way of its own, with the same result, where there are instructions for bfloat16:
 *   moei_pair_tables CODE_pair_tables(at)        for 32 contraction indices of all outputs, and whether it holds for these
 *   void CODE_pairs(at, octet, tables, words)    numbers 8 octet ... 8 octet + 7 of these, two in each of four words */
#ifdef MOEI_CODE

MOEI_INLINE void MOEI_OF(rounded_pairs)(moei_place at, int64_t octet, moei_sums *words) {
  const moei_scaling scaling = MOEI_OF(scaling)(at, octet);
  MOEI_UNROLL for (int32_t p = 0; p < 4; p++) {
    words[p] = moei_rounded_pair(MOEI_OF(value)(at, octet, 2 * p, scaling), MOEI_OF(value)(at, octet, 2 * p + 1, scaling));
  }
}
#if !defined(MOEI_CODE_HAS_PAIRS) || !defined(__AVX512BF16__)
MOEI_INLINE moei_pair_tables MOEI_OF(pair_tables)(moei_place at) {
  (void)at;
  return (moei_pair_tables){.hold = 1};
}
MOEI_INLINE void MOEI_OF(pairs)(moei_place at, int64_t octet, moei_pair_tables tables, moei_sums *words) {
  (void)tables;
  MOEI_OF(rounded_pairs)(at, octet, words);
}
#endif

/* 32 contraction indices, or fewer, as pairs [16][32] of words; an odd number ends beside 0. */
MOEI_INLINE void MOEI_OF(put_pairs)(moei_place at, int64_t count, const moei_pair_tables *tables, uint32_t *panel) {
  MOEI_UNROLL for (int c = 0; c < 32 / MOEI_LANES; c++) {
    at.output = c * MOEI_LANES;
    MOEI_UNROLL for (int64_t octet = 0; octet < 4; octet++) {
      if (octet * 8 >= count) break;
      moei_sums words[4];
      if (tables) {
        MOEI_OF(pairs)(at, octet, *tables, words);
      } else {
        MOEI_OF(rounded_pairs)(at, octet, words);
      }
      MOEI_UNROLL for (int64_t p = 0; p < 4; p++) {
        const int64_t index = octet * 8 + 2 * p;
        if (index + 1 == count) words[p] &= 0xFFFF;
        if (index < count) __builtin_memcpy(panel + index / 2 * 32 + at.output, words + p, sizeof words[p]);
      }
    }
  }
}
static inline __attribute__((noinline)) void MOEI_OF(put_rounded_pairs)(moei_place at, int64_t count, uint32_t *panel) {
  MOEI_OF(put_pairs)(at, count, NULL, panel);
}
static inline void MOEI_OF(decode_pairs)(int64_t inputs, int64_t k, const void *blocks, uint32_t *panel) {
  moei_place at = {(const char *)blocks, 0, inputs / 32, 0};
  for (int64_t left = k; left > 0; left -= 32) {
    const moei_pair_tables tables = MOEI_OF(pair_tables)(at);
    if (left >= 32 && tables.hold) {
      MOEI_OF(put_pairs)(at, 32, &tables, panel);
    } else {
      MOEI_OF(put_rounded_pairs)(at, left < 32 ? left : 32, panel);
    }
    panel += 16 * 32;
    if (++at.sub == at.subs) {
      at.block += MOEI_OF(bytes)(at.subs);
      at.sub = 0;
    }
  }
}

#if defined(__AVX512BF16__)
#define MOEI_PRODUCT_OF_PAIRS MOEI_OF(product_of_pairs)
/* Few rows times blocks as they lie, of some panels at once.  `total` is [panels][rows][2]; tokens are [k / 32][m][16] words. */
typedef moei_sum_floats MOEI_OF(pair_totals)[2][4][2];

/* Numbers of an octet of all outputs.  Chains take turns, so that none waits for itself. */
MOEI_INLINE void MOEI_OF(add_pairs)(MOEI_OF(pair_totals) total, const moei_place *at, int64_t octet, const moei_pair_tables *tables,
                                    const char *token, const int rows, const int panels) {
  moei_sums words[2][2][4];
  MOEI_UNROLL for (int n = 0; n < panels; n++) {
    MOEI_UNROLL for (int c = 0; c < 2; c++) {
      const moei_place own = {at[n].block, at[n].sub, at[n].subs, c * MOEI_LANES};
      MOEI_OF(pairs)(own, octet, tables[n], words[n][c]);
    }
  }
  MOEI_UNROLL for (int64_t p = 0; p < 4; p++) {
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
      const moei_sums factors = moei_repeat(moei_four(token + r * 64, octet * 4 + p));
      MOEI_UNROLL for (int n = 0; n < panels; n++) {
        MOEI_UNROLL for (int c = 0; c < 2; c++) {
          total[n][r][c] = moei_add_products(total[n][r][c], (moei_u32x16)factors, (moei_u32x16)words[n][c][p]);
        }
      }
    }
  }
}
/* 32 contraction indices or fewer of one row and 16 outputs, as they come seldom. */
static inline __attribute__((noinline)) moei_sum_floats MOEI_OF(add_rounded_pairs)(moei_sum_floats total, moei_place at, int64_t count,
                                                                                  const char *token) {
  for (int64_t octet = 0; octet * 8 < count; octet++) {
    moei_sums words[4];
    MOEI_OF(rounded_pairs)(at, octet, words);
    MOEI_UNROLL for (int64_t p = 0; p < 4; p++) {
      const int64_t index = octet * 8 + 2 * p;
      if (index + 1 == count) words[p] &= 0xFFFF;
      const moei_sums factors = moei_repeat(moei_four(token, index / 2));
      if (index < count) total = moei_add_products(total, (moei_u32x16)factors, (moei_u32x16)words[p]);
    }
  }
  return total;
}

MOEI_INLINE void MOEI_OF(add_all_rounded)(MOEI_OF(pair_totals) total, moei_place at, int64_t count, const char *token, const int n,
                                          const int rows) {
  MOEI_UNROLL for (int c = 0; c < 2; c++) {
    at.output = c * MOEI_LANES;
    MOEI_UNROLL for (int r = 0; r < rows; r++) total[n][r][c] = MOEI_OF(add_rounded_pairs)(total[n][r][c], at, count, token + r * 64);
  }
}

MOEI_INLINE void MOEI_OF(rows_of_pairs)(const moei_code_call *call, int64_t row, const int rows, const int panels) {
  MOEI_OF(pair_totals) total;
  MOEI_UNROLL for (int n = 0; n < panels; n++) {
    const moei_code_panel *panel = call->panels + n;
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
      MOEI_UNROLL for (int c = 0; c < 2; c++) {
        total[n][r][c] = moei_load_floats((const char *)(panel->start + (row + r) * panel->start_stride + c * MOEI_LANES));
      }
    }
  }
  const int64_t subs = call->subs, step = MOEI_OF(step)(subs);
  const int64_t stream = moei_stream_of(call, (call->length + 31) / 32 * step, panels);
  const char *token = (const char *)call->a + row * 64;
  int64_t sub = 0, offset = 0, ahead = 0, left = call->length;
  for (; left >= 32; left -= 32, ahead += step) {
    const int64_t next = ahead + moei_skipped(ahead, stream);
    MOEI_UNROLL for (int n = 0; n < panels; n++) MOEI_OF(fetch)((const char *)call->panels[n].blocks + next);
    moei_place at[2];
    moei_pair_tables tables[2];
    int hold = 1;
    MOEI_UNROLL for (int n = 0; n < panels; n++) {
      at[n] = (moei_place){(const char *)call->panels[n].blocks + offset, sub, subs, 0};
      tables[n] = MOEI_OF(pair_tables)(at[n]);
      hold &= tables[n].hold;
    }
    if (__builtin_expect(hold, 1)) {
      MOEI_UNROLL for (int64_t octet = 0; octet < 4; octet++) MOEI_OF(add_pairs)(total, at, octet, tables, token, rows, panels);
    } else {
      MOEI_UNROLL for (int n = 0; n < panels; n++) MOEI_OF(add_all_rounded)(total, at[n], 32, token, n, rows);
    }
    token += call->m * 64;
    if (++sub == subs) {
      offset += MOEI_OF(bytes)(subs);
      sub = 0;
    }
  }
  MOEI_UNROLL for (int n = 0; n < panels; n++) {
    const moei_code_panel *panel = call->panels + n;
    const moei_place at = {(const char *)panel->blocks + offset, sub, subs, 0};
    if (left > 0) MOEI_OF(add_all_rounded)(total, at, left, token, n, rows);
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
      MOEI_UNROLL for (int c = 0; c < 2; c++) {
        __builtin_memcpy(panel->c + (row + r) * panel->c_stride + c * MOEI_LANES, &total[n][r][c], sizeof total[n][r][c]);
      }
    }
  }
}
static inline void MOEI_OF(all_pairs)(const moei_code_call *call, int64_t panels) {
  if (panels == 2) return MOEI_OF(rows_of_pairs)(call, 0, 1, 2);
  for (int64_t row = 0; row < call->m; row += 4) {
    switch (call->m - row) {
    case 1: MOEI_OF(rows_of_pairs)(call, row, 1, 1); break;
    case 2: MOEI_OF(rows_of_pairs)(call, row, 2, 1); break;
    case 3: MOEI_OF(rows_of_pairs)(call, row, 3, 1); break;
    default: MOEI_OF(rows_of_pairs)(call, row, 4, 1);
    }
  }
}
static inline void MOEI_OF(product_of_pairs)(int64_t inputs, int64_t m, int64_t length, const void *a, int64_t count, const moei_code_panel *panels) {
  moei_each_panel((moei_code_call){inputs / 32, m, length, a, panels}, count, 0, MOEI_OF(all_pairs));
}
#else
#define MOEI_PRODUCT_OF_PAIRS NULL
#endif

#endif
