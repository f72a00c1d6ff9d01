/* What the codes have in common: edges of products, and how blocks are written. */
#ifndef MOEI_CODES_PARTS_H
#define MOEI_CODES_PARTS_H

#include "words.h"

#pragma clang assume_nonnull begin

/* A value is number * scale, or number * scale - offset. */
typedef struct moei_scaling {
  moei_sum_floats scale, offset;
} moei_scaling;

typedef struct moei_code_call {
  int64_t subs, m, length; /* chunks of integers, or contraction indices of floats */
  const void *a;
  const moei_code_panel *panels;
} moei_code_call;

/* What rows row ..< row + rows fetch of what their panel says: their share of it, so many lines for each chunk. */
typedef struct moei_fetching {
  const char *line;
  int64_t each;
} moei_fetching;
MOEI_INLINE moei_fetching moei_fetching_of(const moei_code_call *call, int64_t row, int64_t rows) {
  const char *next = (const char *)call->panels->next;
  const int64_t bytes = call->panels->next_bytes;
  if (bytes == 0) return (moei_fetching){next, 0};
  const int64_t first = bytes * row / call->m, own = bytes * (row + rows) / call->m - first;
  return (moei_fetching){next + first, (own + 64 * call->length - 1) / (64 * call->length)};
}
MOEI_INLINE void moei_fetch(moei_fetching *own) {
  for (int64_t i = 0; i < own->each; i++, own->line += 64) moei_prefetch(own->line);
}

/* How many bytes two panels have that follow each other and are read together, 0 where they lie elsewhere: behind the end of each lies what
 * is read already, and what comes next one more panel further on. */
MOEI_INLINE int64_t moei_stream_of(const moei_code_call *call, int64_t bytes, const int panels) {
  return panels == 2 && (const char *)call->panels[1].blocks - (const char *)call->panels[0].blocks == bytes ? bytes : 0;
}
MOEI_INLINE int64_t moei_skipped(int64_t ahead, int64_t stream) { return ahead + MOEI_AHEAD >= stream ? stream : 0; }

/* Rows of C that are narrower than 32, at the right edge of a matrix: a copy is computed and cut. */
typedef struct moei_edge {
  float rows[32][32];
  moei_code_panel panel;
} moei_edge;
static inline const moei_code_panel *moei_edge_begin(moei_edge *edge, const moei_code_panel *panel, int64_t m) {
  for (int64_t r = 0; r < m; r++) {
    for (int64_t c = 0; c < 32; c++) edge->rows[r][c] = c < panel->columns ? panel->start[r * panel->start_stride + c] : 0;
  }
  edge->panel = (moei_code_panel){panel->blocks, edge->rows[0], 32, edge->rows[0], 32, 32, panel->next, panel->next_bytes};
  return &edge->panel;
}
static inline void moei_edge_end(const moei_edge *edge, const moei_code_panel *panel, int64_t m) {
  for (int64_t r = 0; r < m; r++) {
    for (int64_t c = 0; c < panel->columns; c++) panel->c[r * panel->c_stride + c] = edge->rows[r][c];
  }
}

/* Panel after panel.  A single row takes two of them at once, such as gate and up, so that one's memory comes while the other is
 * computed, but those that lie `stream` bytes apart. */
MOEI_INLINE void moei_each_panel(moei_code_call call, int64_t count, int64_t stream, void (*all)(const moei_code_call *, int64_t panels)) {
  const moei_code_panel *panels = call.panels;
  for (int64_t n = 0; n < count; n++) {
    call.panels = panels + n;
    if (moei_pairs_panels && call.m == 1 && n + 1 < count && panels[n].columns == 32 && panels[n + 1].columns == 32 &&
        panels[n + 1].blocks != (const char *)panels[n].blocks + stream) {
      all(&call, 2);
      n++;
    } else if (panels[n].columns == 32) {
      all(&call, 1);
    } else {
      moei_edge edge;
      call.panels = moei_edge_begin(&edge, panels + n, call.m);
      all(&call, 1);
      moei_edge_end(&edge, panels + n, call.m);
    }
  }
}

/* ---- numbers to words ------------------------------------------------------------------------------------- */

/* 32 numbers of output `row`, as bytes or half bytes of sub number `sub`. */
static inline void moei_put_bytes(char *block, int64_t sub, int64_t row, const uint8_t *numbers) {
  for (int64_t i = 0; i < 8; i++) __builtin_memcpy(block + sub * 1024 + i * 128 + row * 4, numbers + i * 4, 4);
}
static inline void moei_put_nibbles(char *block, int64_t sub, int64_t row, const uint8_t *numbers) {
  for (int64_t i = 0; i < 4; i++) {
    uint32_t low, high;
    __builtin_memcpy(&low, numbers + i * 8, 4);
    __builtin_memcpy(&high, numbers + i * 8 + 4, 4);
    low |= high << 4;
    __builtin_memcpy(block + sub * 512 + i * 128 + row * 4, &low, 4);
  }
}
/* Half bytes as GGUF has those of 32: number j beside number j + 16. */
static inline void moei_spread_nibbles(const uint8_t *bytes, uint8_t *numbers) {
  for (int64_t j = 0; j < 16; j++) numbers[j] = bytes[j] & 15, numbers[j + 16] = bytes[j] >> 4;
}
static inline void moei_put_u16(char *p, uint16_t value) { __builtin_memcpy(p, &value, 2); }
static inline void moei_put_float(char *p, float value) { __builtin_memcpy(p, &value, 4); }

/* ---- scalars ------------------------------------------------------------------------------------------------ */

static inline uint32_t moei_float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
static inline float moei_float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
/* binary16: all exponent bits stand for what is not finite. */
static inline uint16_t moei_half_of(float value) { return moei_to_f16((moei_f32x16)value)[0]; }
static inline float moei_float_of_half(uint16_t half) { return moei_from_f16((moei_u16x16)half)[0]; }
static inline int32_t moei_half_is_finite(uint16_t half) { return (half & 0x7C00) != 0x7C00; }
static inline uint16_t moei_load_half(const uint8_t *p) {
  uint16_t half;
  __builtin_memcpy(&half, p, 2);
  return half;
}
/* The largest magnitude, or a NaN where one is: magnitudes in order are integers in order. */
static inline float moei_largest(const float *w, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t own = moei_float_bits(w[i]) & 0x7FFFFFFF;
    largest = own > largest ? own : largest;
  }
  return moei_float_of(largest);
}
static inline int32_t moei_is_finite(float value) { return (moei_float_bits(value) & 0x7F800000) != 0x7F800000; }
/* A step that values are divided by: 0 where it is too small for that. */
static inline float moei_usable(float step) { return __builtin_fabsf(step) < 0x1p-126f ? 0 : step; }
static inline float moei_inverse(float step) { return step == 0 ? 0 : 1 / step; }
/* The nearest whole number, the even one in a tie; below 2^22. */
static inline float moei_whole(float value) { return (value + 0x1.8p23f) - 0x1.8p23f; }
static inline float moei_within(float value, float low, float high) { return value > low ? (value < high ? value : high) : low; }
/* A sum of 32 in a fixed order: eight at once, then one after the other. */
static inline float moei_sum_of_32(const float *values) {
  float sums[8];
  for (int64_t i = 0; i < 8; i++) sums[i] = ((values[i] + values[i + 8]) + values[i + 16]) + values[i + 24];
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

#pragma clang assume_nonnull end

#endif
