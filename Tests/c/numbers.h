/* numbers.h: numbers to compute with, and one number for the bits of what comes out. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <stddef.h>
#include <stdint.h>

static uint64_t hash; /* FNV-1a */

static void begin_hash(void) { hash = 0xcbf29ce484222325u; }

static void add(const void *data, size_t size) {
  const unsigned char *bytes = (const unsigned char *)data;
  for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
}

/* n numbers in [-1, 1) that are the same everywhere. */
static void fill(float *values, int n, uint32_t seed) {
  for (int i = 0; i < n; i++) {
    seed = seed * 1664525u + 1013904223u;
    values[i] = (float)(seed >> 8) / (float)(1 << 23) - 1;
  }
}

#endif
