/* A loop over the experts that calls OpenBLAS: what a C program would write for itself.
 *
 * The products run on all threads OpenBLAS is given; routing, gathering, activation and scattering in one thread, as
 * vectors if the compiler can (build with -O3 -march=native -ffast-math).  Forward, float32.  protocol.py says how a
 * peer is called. */
#define _GNU_SOURCE
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const double TURN = 0.1; /* seconds, as in measure.py */
enum { MOST_RUNS = 10000 };
#undef I /* <complex.h>, which cblas.h brings, means i by it */

static int T, H, I, E, K, gated;
static float *x, *y;                       /* [T,H] */
static float *router, *router_bias;        /* [E,H] [E] */
static float *gate, *up, *down;            /* [E,I,H] [E,I,H] [E,H,I] */
static float *up_bias, *down_bias;         /* [E,I] [E,H], of MLP experts */
static float *logits, *weight;             /* [T,E] [T,K] */
static int *chosen, *start, *next, *pair;  /* [T,K] [E+1] [E] [T*K]: t * K + k, by expert */
static float *rows, *inner, *gates, *outs; /* at most T rows of H, I, I and H */

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void *memory(size_t count) { /* floats or ints */
  void *result = aligned_alloc(64, (count * 4 + 63) / 64 * 64);
  if (!result) exit((fprintf(stderr, "openblas_loop: no memory\n"), 1));
  return result;
}

static float *load(const char *folder, const char *name, size_t count) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  float *values = memory(count);
  FILE *file = fopen(path, "rb");
  if (!file || fread(values, 4, count, file) != count) exit((perror(path), 1));
  fclose(file);
  return values;
}

/* to [n,columns] = from [n,width] matrix [columns,width]^T + bias [columns] or 0 */
static void linear(float *to, const float *from, const float *matrix, const float *bias, int n, int columns,
                   int width) {
  for (int i = 0; bias && i < n; i++) memcpy(to + (size_t)i * columns, bias, 4 * (size_t)columns);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, columns, width, 1, from, width, matrix, width, bias ? 1 : 0,
              to, columns);
}

/* Softmax, the K best, their probabilities divided by their sum. */
static void choose(int t) {
  float *score = logits + (size_t)t * E, *w = weight + (size_t)t * K, sum = 0, largest = score[0];
  int *best = chosen + (size_t)t * K;
  for (int e = 1; e < E; e++) largest = fmaxf(largest, score[e]);
  for (int e = 0; e < E; e++) score[e] = expf(score[e] - largest);
  for (int k = 0; k < K; k++) {
    best[k] = 0;
    for (int e = 1; e < E; e++)
      if (score[e] > score[best[k]]) best[k] = e;
    sum += w[k] = score[best[k]];
    score[best[k]] = -1;
  }
  for (int k = 0; k < K; k++) w[k] /= sum;
}

/* Tokens by expert: pair[start[e]..start[e+1]]. */
static void group(void) {
  memset(start, 0, sizeof(int) * ((size_t)E + 1));
  for (int p = 0; p < T * K; p++) start[chosen[p] + 1]++;
  for (int e = 0; e < E; e++) start[e + 1] += start[e];
  memcpy(next, start, sizeof(int) * (size_t)E);
  for (int p = 0; p < T * K; p++) pair[next[chosen[p]]++] = p;
}

static void activate(size_t count) {
  if (gated)
    for (size_t i = 0; i < count; i++) inner[i] *= gates[i] / (1 + expf(-gates[i]));
  else
    for (size_t i = 0; i < count; i++) inner[i] *= 0.5f * (1 + erff(inner[i] * 0.70710678f));
}

static void run_expert(int e) {
  const int n = start[e + 1] - start[e], *mine = pair + start[e];
  const size_t matrix = (size_t)e * I * H;
  if (n == 0) return;
  for (int i = 0; i < n; i++) memcpy(rows + (size_t)i * H, x + (size_t)(mine[i] / K) * H, 4 * (size_t)H);
  if (gated) linear(gates, rows, gate + matrix, NULL, n, I, H);
  linear(inner, rows, up + matrix, gated ? NULL : up_bias + (size_t)e * I, n, I, H);
  activate((size_t)n * I);
  linear(outs, inner, down + matrix, gated ? NULL : down_bias + (size_t)e * H, n, H, I);
  for (int i = 0; i < n; i++) {
    const float w = weight[mine[i]], *from = outs + (size_t)i * H;
    float *to = y + (size_t)(mine[i] / K) * H;
    for (int h = 0; h < H; h++) to[h] += w * from[h];
  }
}

static void forward(void) {
  linear(logits, x, router, router_bias, T, E, H);
  for (int t = 0; t < T; t++) choose(t);
  group();
  memset(y, 0, 4 * (size_t)T * H);
  for (int e = 0; e < E; e++) run_expert(e);
}

static void read_work(char **arguments) {
  const char *folder = arguments[1];
  T = atoi(arguments[2]), H = atoi(arguments[3]), I = atoi(arguments[4]);
  E = atoi(arguments[5]), K = atoi(arguments[6]);
  gated = strcmp(arguments[7], "swiglu") == 0;
  const size_t matrices = (size_t)E * I * H;
  x = load(folder, "x", (size_t)T * H);
  router = load(folder, "router.weight", (size_t)E * H);
  router_bias = load(folder, "router.bias", (size_t)E);
  up = load(folder, "experts.up.weight", matrices);
  down = load(folder, "experts.down.weight", matrices);
  if (gated) {
    gate = load(folder, "experts.gate.weight", matrices);
    gates = memory((size_t)T * I);
  } else {
    up_bias = load(folder, "experts.up.bias", (size_t)E * I);
    down_bias = load(folder, "experts.down.bias", (size_t)E * H);
  }
  y = memory((size_t)T * H), rows = memory((size_t)T * H), outs = memory((size_t)T * H), inner = memory((size_t)T * I);
  logits = memory((size_t)T * E), weight = memory((size_t)T * K), chosen = memory((size_t)T * K);
  pair = memory((size_t)T * K), start = memory((size_t)E + 1), next = memory((size_t)E);
}

static int ascending(const void *a, const void *b) {
  const double left = *(const double *)a, right = *(const double *)b;
  return (left > right) - (left < right);
}

/* Median seconds of a run. */
static double turn(void) {
  static double times[MOST_RUNS];
  int runs = 0;
  for (double sum = 0; sum < TURN && runs < MOST_RUNS; sum += times[runs++]) {
    const double begin = now();
    forward();
    times[runs] = now() - begin;
  }
  qsort(times, (size_t)runs, sizeof *times, ascending);
  return (times[(runs - 1) / 2] + times[runs / 2]) / 2;
}

int main(int count, char **arguments) {
  if (count != 11) return fprintf(stderr, "openblas_loop FOLDER T H I E K KIND PASS DTYPE THREADS\n"), 2;
  openblas_set_num_threads(atoi(arguments[10]));
  read_work(arguments);
  forward();
  char path[4096];
  snprintf(path, sizeof path, "%s/peer.y", arguments[1]);
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(y, 4, (size_t)T * H, file) != (size_t)T * H || fclose(file)) return perror(path), 1;
  printf("{\"version\": \"%.15s, %s kernels\"}\n", openblas_get_config(), openblas_get_corename());
  fflush(stdout);
  for (int c; (c = getchar()) != EOF;) {
    if (c != '\n') continue;
    printf("{\"seconds\": %.9f}\n", turn());
    fflush(stdout);
  }
  return 0;
}
