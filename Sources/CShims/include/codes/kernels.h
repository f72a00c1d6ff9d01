/* Products of one code, included once for each, with MOEI_CODE defined as its prefix.  The code gives
 *   int64_t CODE_bytes(subs)                    of a block
 *   moei_scaling CODE_scaling(at, octet)        for the contraction indices 8 octet ... 8 octet + 7 of `at`
 *   moei_sum_floats CODE_value(at, octet, j, scaling)   number j of these
 *   moei_sum_floats CODE_add(total, at, token)  total + `at` times a token's integers
 *   CODE_AHEAD                                  so many bytes ahead a single token fetches; 0: none
 * With MOEI_CODE_IS_FOR_FLOATS there is no CODE_add, and no product of integers; with MOEI_CODE_HAS_INTEGERS the code has
 * CODE_integers in place of CODE_add.
 * Its other functions, CODE_encode and CODE_pack, are called as they are. */
#ifdef MOEI_CODE

#define MOEI_JOIN_(a, b) a##_##b
#define MOEI_JOIN(a, b) MOEI_JOIN_(a, b)
#define MOEI_OF(name) MOEI_JOIN(MOEI_CODE, name)

/* What the 32 contraction indices that begin at `at` have of a block's bytes, further on in the panel. */
MOEI_INLINE void MOEI_OF(fetch)(moei_place at) {
  if (MOEI_OF(AHEAD) == 0) return;
  const int64_t bytes = MOEI_OF(bytes)(at.subs) / at.subs;
  const char *p = at.block + at.sub * bytes + MOEI_OF(AHEAD);
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + line, 0, 3);
}

#if !defined(MOEI_CODE_IS_FOR_FLOATS) && !defined(MOEI_CODE_HAS_INTEGERS)
/* All outputs of `rows` rows times integers, `columns` registers of outputs at once: all rows of one before those of the next,
 * so that its weights stay in registers for them. */
MOEI_INLINE void MOEI_OF(integers)(const moei_code_call *call, int64_t row, const int rows, const int columns) {
  for (int64_t output = 0; output < 32; output += columns * MOEI_LANES) {
    const moei_code_panel *panel = call->panels;
    moei_sum_floats total[7][4];
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
      MOEI_UNROLL for (int c = 0; c < columns; c++) {
        total[r][c] = moei_load_floats((const char *)(panel->start + (row + r) * panel->start_stride + output + c * MOEI_LANES));
      }
    }
    const char *token = (const char *)call->a + row * MOEI_TOKEN_BLOCK;
    moei_place at = {(const char *)panel->blocks, 0, call->subs, output};
    for (int64_t left = call->length; left > 0; left--) {
      if (rows == 1) MOEI_OF(fetch)(at);
      MOEI_UNROLL for (int c = 0; c < columns; c++) {
        const moei_place here = {at.block, at.sub, at.subs, output + c * MOEI_LANES};
        MOEI_UNROLL for (int r = 0; r < rows; r++) total[r][c] = MOEI_OF(add)(total[r][c], here, token + r * MOEI_TOKEN_BLOCK);
      }
      token += call->m * MOEI_TOKEN_BLOCK;
      if (++at.sub == at.subs) {
        at.block += MOEI_OF(bytes)(at.subs);
        at.sub = 0;
      }
    }
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
      MOEI_UNROLL for (int c = 0; c < columns; c++) {
        __builtin_memcpy(panel->c + (row + r) * panel->c_stride + output + c * MOEI_LANES, &total[r][c], sizeof total[r][c]);
      }
    }
  }
}

#endif

/* The same times floats, of some panels at once, so that chains do not wait for each other.  `total` is [panels][rows][columns]. */
enum { MOEI_OF(COLUMNS) = 32 / MOEI_LANES };
typedef moei_sum_floats MOEI_OF(totals)[2][2][MOEI_OF(COLUMNS)];

MOEI_INLINE void MOEI_OF(add_octet)(MOEI_OF(totals) total, const char *block, int64_t sub, int64_t subs, int64_t octet,
                                    const float *token, const int n, const int rows) {
  MOEI_UNROLL for (int c = 0; c < MOEI_OF(COLUMNS); c++) {
    const moei_place at = {block, sub, subs, c * MOEI_LANES};
    const moei_scaling scaling = MOEI_OF(scaling)(at, octet);
    MOEI_UNROLL for (int j = 0; j < 8; j++) {
      const moei_sum_floats value = MOEI_OF(value)(at, octet, j, scaling);
      MOEI_UNROLL for (int r = 0; r < rows; r++) {
        total[n][r][c] = moei_add_product(total[n][r][c], token[r * 32 + octet * 8 + j], value);
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
  const int64_t subs = call->subs;
  int64_t sub = 0, offset = 0, left = call->length;
  for (; left >= 32; left -= 32) {
    MOEI_UNROLL for (int n = 0; n < panels; n++) {
      MOEI_OF(fetch)((moei_place){(const char *)call->panels[n].blocks + offset, sub, subs, 0});
    }
    for (int64_t octet = 0; octet < 4; octet++) {
      MOEI_UNROLL for (int n = 0; n < panels; n++) {
        MOEI_OF(add_octet)(total, (const char *)call->panels[n].blocks + offset, sub, subs, octet, token, n, rows);
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
/* How many rows at once: few take many outputs, so that blocks are read from end to end. */
static inline void MOEI_OF(all_integers)(const moei_code_call *call) {
  int64_t row = 0;
  while (row < call->m) {
    const int64_t left = call->m - row;
#if defined(__AVX512VNNI__)
    if (left >= 7) {
      MOEI_OF(integers)(call, row, 7, 2), row += 7;
    } else if (left >= 4) {
      MOEI_OF(integers)(call, row, 4, 2), row += 4;
    } else if (left == 3) {
      MOEI_OF(integers)(call, row, 3, 2), row += 3;
    } else if (left == 2) {
      MOEI_OF(integers)(call, row, 2, 2), row += 2;
    } else {
      MOEI_OF(integers)(call, row, 1, 2), row += 1;
    }
#else
    if (left >= 4) {
      MOEI_OF(integers)(call, row, 4, 1), row += 4;
    } else if (left == 3) {
      MOEI_OF(integers)(call, row, 3, 1), row += 3;
    } else if (left == 2) {
      MOEI_OF(integers)(call, row, 2, 2), row += 2;
    } else {
      MOEI_OF(integers)(call, row, 1, 4), row += 1;
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
  moei_code_call call = {inputs / 32, m, length, a, panels};
  for (int64_t n = 0; n < count; n++) {
    call.panels = panels + n;
    if (moei_pairs_panels && m == 1 && n + 1 < count && panels[n].columns == 32 && panels[n + 1].columns == 32) {
      MOEI_OF(all_floats)(&call, 2);
      n++;
    } else if (panels[n].columns == 32) {
      MOEI_OF(all_floats)(&call, 1);
    } else {
      moei_edge edge;
      call.panels = moei_edge_begin(&edge, panels + n, m);
      MOEI_OF(all_floats)(&call, 1);
      moei_edge_end(&edge, panels + n, m);
    }
  }
}
#ifdef MOEI_CODE_IS_FOR_FLOATS
#define MOEI_PRODUCT_OF_INTEGERS NULL
#else
#define MOEI_PRODUCT_OF_INTEGERS MOEI_OF(product_of_integers)
static inline void MOEI_OF(product_of_integers)(int64_t inputs, int64_t m, int64_t length, const void *a, int64_t count, const moei_code_panel *panels) {
  moei_code_call call = {inputs / 32, m, length, a, panels};
  for (int64_t n = 0; n < count; n++) {
    call.panels = panels + n;
    if (panels[n].columns == 32) {
      MOEI_OF(all_integers)(&call);
    } else {
      moei_edge edge;
      call.panels = moei_edge_begin(&edge, panels + n, m);
      MOEI_OF(all_integers)(&call);
      moei_edge_end(&edge, panels + n, m);
    }
  }
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

static inline moei_code MOEI_OF(code)(void) {
  return (moei_code){MOEI_OF(encode), MOEI_OF(pack), MOEI_OF(decode), MOEI_OF(product), MOEI_PRODUCT_OF_INTEGERS};
}

#undef MOEI_PRODUCT_OF_INTEGERS
#undef MOEI_OF
#undef MOEI_JOIN
#undef MOEI_JOIN_
#undef MOEI_CODE_IS_FOR_FLOATS
#undef MOEI_CODE_HAS_INTEGERS
#undef MOEI_CODE
#endif
