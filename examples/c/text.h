/* text.h: what both examples need beside libmoe: an end where a call fails, random numbers, and the text.  PROGRAM is
 * the name that messages begin with. */
#ifndef TEXT_H
#define TEXT_H

#include <moe.h>

#include <stdio.h>
#include <stdlib.h>

/* Every libmoe call that can fail returns a status; what went wrong is in moe_last_error_message(). */
#define CHECK(call)                                                                                \
  do {                                                                                             \
    moe_status status_ = (call);                                                                   \
    if (status_ != MOE_OK) {                                                                       \
      fprintf(stderr, PROGRAM ": %s: %s\n", moe_status_name(status_), moe_last_error_message());   \
      exit(EXIT_FAILURE);                                                                          \
    }                                                                                              \
  } while (0)

static void give_up(const char *what, const char *name) {
  fprintf(stderr, PROGRAM ": %s%s\n", what, name);
  exit(EXIT_FAILURE);
}

/* splitmix64: uniform in [0, 1), the same numbers on every machine. */
static double uniform(void) {
  static uint64_t state = 1;
  uint64_t z = (state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* ---- The text -------------------------------------------------------------------------------------------- */

typedef struct text {
  unsigned char *bytes;
  int64_t n;
} text;

static void append(text *to, const unsigned char *bytes, int64_t n) {
  to->bytes = realloc(to->bytes, (size_t)(to->n + n) + 1);
  if (to->bytes == NULL) give_up("no memory for the text", "");
  for (int64_t i = 0; i < n; i++) to->bytes[to->n++] = bytes[i];
}

/* The last tenth of every file is held out. */
static void read_file(const char *name, text *training, text *held_out) {
  static unsigned char block[1 << 16];
  text whole = {NULL, 0};
  FILE *file = fopen(name, "rb");
  if (file == NULL) give_up("cannot open ", name);
  for (size_t n; (n = fread(block, 1, sizeof block, file)) > 0;) append(&whole, block, (int64_t)n);
  if (ferror(file)) give_up("cannot read ", name);
  fclose(file);
  if (whole.n > 0) {
    int64_t cut = whole.n - whole.n / 10;
    append(training, whole.bytes, cut);
    append(held_out, whole.bytes + cut, whole.n - cut);
  }
  free(whole.bytes);
}

#endif
