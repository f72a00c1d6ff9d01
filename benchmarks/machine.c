/* What this machine can do at most: fused multiply-adds and memory reads, for the numbers of threads given.
 *
 *     machine 1 2      prints a JSON list with one object for each number of threads
 *
 * Each figure is the best of many short slices, so that a passing load on the machine does not lower the mark that
 * everything else is measured against.  Build it with -O3 -ffp-contract=fast -pthread; the vector width is chosen when
 * it runs. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { SLICES = 64, FMA_STEPS = 1000000 };
static const size_t BUFFER = (size_t)1 << 30; /* bytes: several times any cache */
static const size_t SLICE = (size_t)1 << 24;  /* bytes: under a millisecond; 64 of them are the buffer, read once */

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* One FMA loop and one reading loop for vectors of BYTES bytes.  USED independent chains hide the latency of an FMA
 * and fit the registers beside a and b: 32 of AVX-512 and arm64, 16 of AVX2 and of plain x86-64. */
#define LOOPS(NAME, TARGET, BYTES, USED)                                                                     \
  typedef float floats_##NAME __attribute__((vector_size(BYTES)));                                           \
  typedef uint64_t words_##NAME __attribute__((vector_size(BYTES)));                                         \
  TARGET static double fma_##NAME(void) { /* -> floating-point operations */                                 \
    floats_##NAME chain[USED] = {{0}}, a   = {0}, b = {0};                                                   \
    for (size_t i = 0; i < BYTES / sizeof(float); i++) a[i] = 0.999f, b[i] = 0.001f;                         \
    __asm__ volatile("" : "+m"(a), "+m"(b)); /* not known to the compiler */                                 \
    for (int step = 0; step < FMA_STEPS; step++) {                                                           \
      _Pragma("GCC unroll 32") for (int c = 0; c < USED; c++) chain[c] = chain[c] * a + b;                   \
    }                                                                                                        \
    for (int c = 0; c < USED; c++) __asm__ volatile("" : : "m"(chain[c]));                                   \
    return 2.0 * FMA_STEPS * USED * (BYTES / sizeof(float));                                                 \
  }                                                                                                          \
  TARGET static void read_##NAME(const char *from, size_t bytes) {                                           \
    const words_##NAME *word = (const words_##NAME *)from;                                                   \
    words_##NAME sum = {0};                                                                                  \
    for (size_t i = 0; i < bytes / BYTES; i++) sum |= word[i]; /* in order: memory is fetched ahead */       \
    __asm__ volatile("" : : "m"(sum));                                                                       \
  }

#if defined(__x86_64__)
LOOPS(plain, , 16, 12)
LOOPS(avx2, __attribute__((target("avx2,fma"))), 32, 12)
LOOPS(avx512, __attribute__((target("avx512f"))), 64, 16)
#else
LOOPS(plain, , 16, 24)
#endif

static const char *instructions = "plain";
static double (*fma_loop)(void) = fma_plain;
static void (*read_loop)(const char *, size_t) = read_plain;

static void choose_loops(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    instructions = "avx2", fma_loop = fma_avx2, read_loop = read_avx2;
  if (__builtin_cpu_supports("avx512f")) instructions = "avx512", fma_loop = fma_avx512, read_loop = read_avx512;
#endif
}

/* What the threads of one measurement share.  All do a slice between two barriers; the first thread holds the watch. */
struct team {
  pthread_barrier_t barrier;
  int threads;
  const char *buffer;
  double gflops, gbs; /* the best slice of all threads together */
};

struct member {
  struct team *team;
  int index;
};

static void *work(void *argument) {
  struct member *member = argument;
  struct team *team = member->team;
  const size_t share = SLICE / (size_t)team->threads / 64 * 64; /* bytes, whole vectors of the widest kind */
  for (int slice = 0; slice < 2 * SLICES; slice++) {
    const int reading = slice >= SLICES;
    double amount = (double)share;
    pthread_barrier_wait(&team->barrier);
    const double start = now();
    if (reading)
      read_loop(team->buffer + (size_t)(slice - SLICES) * SLICE + (size_t)member->index * share, share);
    else
      amount = fma_loop();
    pthread_barrier_wait(&team->barrier);
    if (member->index == 0) {
      const double rate = 1e-9 * amount * team->threads / (now() - start);
      double *best = reading ? &team->gbs : &team->gflops;
      if (rate > *best) *best = rate;
    }
  }
  return NULL;
}

static int measure(struct team *team) {
  pthread_t *handles = calloc((size_t)team->threads, sizeof *handles);
  struct member *members = calloc((size_t)team->threads, sizeof *members);
  if (!handles || !members || pthread_barrier_init(&team->barrier, NULL, (unsigned)team->threads)) return 0;
  for (int i = 0; i < team->threads; i++) {
    members[i] = (struct member){team, i};
    if (i > 0 && pthread_create(&handles[i], NULL, work, &members[i])) return 0;
  }
  work(&members[0]);
  for (int i = 1; i < team->threads; i++) pthread_join(handles[i], NULL);
  pthread_barrier_destroy(&team->barrier);
  free(members);
  free(handles);
  return 1;
}

int main(int count, char **arguments) {
  choose_loops();
  char *buffer = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (buffer == MAP_FAILED) return perror("machine: no memory"), 1;
  madvise(buffer, BUFFER, MADV_HUGEPAGE); /* large pages where there are any: fewer address look-ups */
  memset(buffer, 1, BUFFER);
  printf("[");
  for (int i = 1; i < count; i++) {
    struct team team = {.threads = atoi(arguments[i]), .buffer = buffer};
    if (team.threads < 1 || !measure(&team))
      return fprintf(stderr, "machine: cannot use %s threads\n", arguments[i]), 1;
    printf("%s{\"threads\": %d, \"instructions\": \"%s\", \"gflops\": %.1f, \"gbs\": %.1f}", i > 1 ? ",\n " : "",
           team.threads, instructions, team.gflops, team.gbs);
  }
  printf("]\n");
  return 0;
}
