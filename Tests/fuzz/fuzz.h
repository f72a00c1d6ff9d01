/* What all fuzzers share.  A fuzzer reads its input as a stream of decisions: which function, which field, which number.
 * Where the input ends, every further decision is 0, which means "as an honest caller has it".
 *
 * The caller that is played is wrong in everything but one thing: its arrays have at least the length that its sizes say, since
 * no library can find that out.  Each is a block of its own, so that the address sanitizer sees every step beyond it. */
#ifndef FUZZ_H
#define FUZZ_H

#include <moe.h>
#include <moe_model.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- decisions ---- */

static const uint8_t *next_byte;
static size_t bytes_left;

static inline uint8_t decide(void) {
  if (bytes_left == 0) return 0;
  bytes_left -= 1;
  return *next_byte++;
}

static inline void raw(void *to, size_t size) {
  for (size_t i = 0; i < size; i++) ((uint8_t *)to)[i] = decide();
}

/* A size: mostly one that fits, sometimes one at an edge, sometimes any. */
static inline int64_t integer(void) {
  static const int64_t edges[] = {
      -1, INT64_MIN, INT64_MAX, INT32_MAX, INT32_MIN, 1LL << 31, 1LL << 32, 1LL << 40, 1LL << 60, 1LL << 61, 1LL << 62,
      (1LL << 62) - 1, INT64_MAX / 4, INT64_MAX / 4 + 1, 354202707, 65535, 65537, 1 << 20, 255, 256, 257, 1023, 100};
  uint8_t kind = decide();
  if (kind < 180) return kind % 13;
  if (kind < 250) return edges[kind % (sizeof edges / sizeof *edges)];
  int64_t any;
  raw(&any, sizeof any);
  return any;
}

static inline double real(void) {
  static const double edges[] = {0.0, 1.0, -1.0, 0.5, 0.1, 2.0, 1e-8, 1e38, 1e39, -1e39, 1e300, 5e-324, 0.0 / 0.0, 1.0 / 0.0, -1.0 / 0.0};
  uint8_t kind = decide();
  if (kind < 250) return edges[kind % (sizeof edges / sizeof *edges)];
  double any;
  raw(&any, sizeof any);
  return any;
}

/* Change some fields of a struct.  Pointers, at the offsets listed, are left alone: what they point at is the caller's word. */
static inline void disturb(void *structure, size_t size, const size_t *pointers, size_t n_pointers) {
  for (int changes = decide() % 8; changes > 0; changes--) {
    uint8_t kind = decide();
    size_t width = kind & 1 ? 8 : 4;
    size_t offset = ((size_t)decide() << 8 | decide()) * 4 % size;
    if (kind & 1) offset = offset / 8 * 8;
    if (offset + width > size || (offset < sizeof(size_t) && kind < 250)) continue;
    int is_pointer = 0;
    for (size_t i = 0; i < n_pointers; i++) is_pointer |= offset + width > pointers[i] && offset < pointers[i] + 8;
    if (is_pointer) continue;
    char *at = (char *)structure + offset;
    if (kind & 2) {
      double value = real();
      float single = (float)value;
      memcpy(at, width == 8 ? (void *)&value : (void *)&single, width);
    } else {
      int64_t value = integer();
      memcpy(at, &value, width);
    }
  }
}
#define DISTURB(structure, ...) \
  do { \
    const size_t pointers_[] = {__VA_ARGS__}; \
    disturb(&(structure), sizeof(structure), pointers_, sizeof pointers_ / sizeof *pointers_); \
  } while (0)

/* ---- arrays ---- */

#define MOST_ARRAYS 256
#define MOST_BYTES ((__int128)4 << 20)
static struct {
  char *data;
  size_t size;
} arrays[MOST_ARRAYS];
static int n_arrays;
static int is_impossible; /* an array that no caller of this process could have was asked for */

static inline void *array(__int128 count, size_t element) {
  __int128 bytes = count < 0 ? 0 : count > MOST_BYTES ? count : count * (__int128)element;
  if (bytes > MOST_BYTES || n_arrays == MOST_ARRAYS) {
    is_impossible = 1;
    return NULL;
  }
  size_t size = (size_t)bytes;
  uint8_t kind = decide();
  if (kind == 0xEE) return NULL;
  if (kind >= 0xF0 && n_arrays > 0) { /* memory that is another array's too */
    int other = decide() % n_arrays;
    if (arrays[other].size >= size) return arrays[other].data + (arrays[other].size - size) * (kind & 1) / element * element;
  }
  char *data = NULL;
  if (posix_memalign((void **)&data, 64, size ? size : 1)) abort();
  memset(data, 0, size);
  if (kind < 0x80) {
    for (size_t i = 0; element == 4 && i < size / 4; i++) ((float *)data)[i] = (float)((i * 37 + kind) % 19) / 8 - 1;
  } else if (kind < 0xC0) {
    raw(data, size < 64 ? size : 64);
  } else {
    memset(data, kind == 0xC0 ? 0x7F : kind, kind < 0xE0 ? size : 0);
  }
  arrays[n_arrays].data = data;
  arrays[n_arrays++].size = size;
  return data;
}

/* Numbers of experts, tokens or places: mostly within bounds. */
static inline void *indices(__int128 count, size_t element, int64_t bound) {
  char *data = array(count, element);
  if (!data || is_impossible || bound < 1) return data;
  uint8_t kind = decide();
  if (kind >= 0xE0) return data;
  for (int64_t i = 0; i < (int64_t)count; i++) {
    int64_t value = (i * 7 + kind) % bound - (kind % 5 == 4 && i % 3 == 0);
    memcpy(data + i * (int64_t)element, &value, element);
  }
  return data;
}

static inline uint8_t *mask(__int128 count) {
  uint8_t *data = array(count, 1);
  uint8_t kind = decide();
  for (int64_t i = 0; data && !is_impossible && kind < 0xE0 && i < (int64_t)count; i++) data[i] = kind >> i % 8 & 1;
  return data;
}

/* ---- a context with little memory ---- */

/* What handles hold at once: a configuration that is too large for it is an error, not minutes of work. */
#define MEMORY ((size_t)1 << 20)
static size_t memory_taken;
static int allocations_left;

static inline void *take(void *user, size_t size, size_t alignment) {
  (void)user;
  (void)alignment;
  if (size > MEMORY - memory_taken || allocations_left-- == 0) return NULL;
  char *block = NULL;
  if (posix_memalign((void **)&block, 64, size + 64)) return NULL;
  *(size_t *)(void *)block = size;
  memory_taken += size;
  return block + 64;
}

static inline void give_back(void *user, void *memory) {
  (void)user;
  char *block = (char *)memory - 64;
  memory_taken -= *(size_t *)(void *)block;
  free(block);
}

static int64_t questions_left;
static inline int32_t is_cancelled(void *user) {
  (void)user;
  return questions_left-- == 0;
}

static inline moe_context *new_context(void) {
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  DISTURB(config, offsetof(moe_context_config, alloc), offsetof(moe_context_config, dealloc),
          offsetof(moe_context_config, alloc_user), offsetof(moe_context_config, log),
          offsetof(moe_context_config, log_user), offsetof(moe_context_config, cancel),
          offsetof(moe_context_config, cancel_user), offsetof(moe_context_config, host_threads));
  if (config.n_threads < 0 || config.n_threads > 3) config.n_threads = 2; /* threads are not what is tried here */
  uint8_t kind = decide();
  allocations_left = kind < 0xC0 ? -1 : kind & 15;
  questions_left = decide() < 0xE0 ? -1 : decide();
  config.alloc = take;
  config.dealloc = give_back;
  config.cancel = is_cancelled;
  moe_context *context = NULL;
  if (moe_context_create(&config, &context)) return NULL;
  return context;
}

static inline void begin(const uint8_t *data, size_t size) {
  next_byte = data;
  bytes_left = size;
  n_arrays = 0;
  is_impossible = 0;
}

/* Every fuzzer ends here: nothing may be left, and an error has a text. */
static inline int end(moe_context *context) {
  moe_context_free(context);
  for (int i = 0; i < n_arrays; i++) free(arrays[i].data);
  if (memory_taken != 0) {
    fprintf(stderr, "%zu bytes were not given back\n", memory_taken);
    abort();
  }
  return 0;
}

/* A status is one of those there are, and an error says something. */
static inline moe_status check(moe_status status) {
  if (status < MOE_OK || status > MOE_ERROR_COMMUNICATION || (status && !*moe_last_error_message())) abort();
  return status;
}

#endif
