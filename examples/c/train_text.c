/* train_text.c: a language model of bytes whose body is a libmoe layer.
 *
 *     cc -O2 train_text.c $(pkg-config --cflags --libs libmoe) -o train_text
 *     ./train_text FILE...        (a megabyte of text or more; about a minute on two cores)
 *
 * From the CONTEXT bytes before it, the model gives a probability to every value of the next byte, in the manner of
 * Bengio et al., "A Neural Probabilistic Language Model", JMLR 3 (2003):
 *
 *     x = the embeddings of the CONTEXT bytes, one after the other      [T,H]
 *     h = x + moe(x)                                                    [T,H]
 *     p = softmax(h W + b)                                              [T,256]
 *
 * libmoe does the Mixture of Experts, its losses, the clipping and AdamW; the rest is written out below.
 */
#include <moe.h>

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PROGRAM "train_text"
#include "text.h"

#ifndef STEPS
#define STEPS 2000
#endif

enum {
  BYTES = 256,
  CONTEXT = 8,
  WIDTH = 16, /* of one byte's embedding */
  H = CONTEXT * WIDTH,
  I = 4 * H,
  EXPERTS = 8,
  TOP_K = 2,
  BATCH = 512,
  MAX_TENSORS = 16
};

/* Bits per byte of the two models that only count: each byte by its frequency, and by its frequency after the byte
 * before it, smoothed as if the unigram model had been seen once more after every byte.  Bytes to predict are those from
 * CONTEXT on: every one has a whole context before it. */
static void baselines(const text *training, const text *held_out, double *unigram, double *bigram) {
  static double single[BYTES], first[BYTES], pair[BYTES][BYTES];
  for (int64_t i = 0; i < training->n; i++) single[training->bytes[i]] += 1;
  for (int64_t i = 1; i < training->n; i++) {
    first[training->bytes[i - 1]] += 1;
    pair[training->bytes[i - 1]][training->bytes[i]] += 1;
  }
  *unigram = *bigram = 0;
  for (int64_t i = CONTEXT; i < held_out->n; i++) {
    int a = held_out->bytes[i - 1], b = held_out->bytes[i];
    double p = (single[b] + 1) / ((double)training->n + BYTES);
    *unigram -= log2(p) / (double)(held_out->n - CONTEXT);
    *bigram -= log2((pair[a][b] + p) / (first[a] + 1)) / (double)(held_out->n - CONTEXT);
  }
}

/* ---- The model ------------------------------------------------------------------------------------------- */

static float embedding[BYTES][WIDTH], embedding_grad[BYTES][WIDTH];
static float weight[H][BYTES], weight_grad[H][BYTES]; /* W */
static float bias[BYTES], bias_grad[BYTES];           /* b */

/* One batch on its way through the model, and back. */
static float x[BATCH][H], h[BATCH][H], p[BATCH][BYTES];
static float dh[BATCH][H], dx[BATCH][H];

typedef struct model {
  moe_context *context;
  moe_layer *layer;
  moe_tape *tape;
  moe_optimizer *optimizer;
  moe_tensor tensors[MAX_TENSORS]; /* ours, then the layer's: one list for the optimiser */
  int64_t n_tensors;
} model;

/* A tensor of our own memory, described to libmoe. */
static moe_tensor tensor(const char *name, int64_t rows, int64_t columns, float *data, float *grad) {
  moe_tensor t = MOE_TENSOR_INIT;
  t.name = name;
  t.rank = 2;
  t.shape[0] = rows;
  t.shape[1] = columns;
  t.data = data;
  t.grad = grad;
  return t;
}

static void create(model *m) {
  moe_context_config context = MOE_CONTEXT_CONFIG_INIT;
  context.n_threads = MOE_THREADS_ALL;
  CHECK(moe_context_create(&context, &m->context));

  moe_layer_config layer = MOE_LAYER_CONFIG_INIT;
  layer.hidden_size = H;
  layer.intermediate_size = I;
  layer.n_experts = EXPERTS;
  layer.top_k = TOP_K;
  layer.balance_coef = 0.01f;
  layer.z_coef = 0.001f;
  layer.seed = 1;
  CHECK(moe_layer_create(m->context, &layer, &m->layer));
  CHECK(moe_tape_create(m->layer, &m->tape));

  /* Embeddings of variance 1; W and b start at 0, so that all bytes are equally likely at first. */
  for (int i = 0; i < BYTES * WIDTH; i++) embedding[i / WIDTH][i % WIDTH] = (float)((2 * uniform() - 1) * sqrt(3));
  m->tensors[0] = tensor("embedding", BYTES, WIDTH, &embedding[0][0], &embedding_grad[0][0]);
  m->tensors[1] = tensor("weight", H, BYTES, &weight[0][0], &weight_grad[0][0]);
  m->tensors[2] = tensor("bias", 1, BYTES, bias, bias_grad);
  int64_t of_layer;
  CHECK(moe_layer_parameter_count(m->layer, &of_layer));
  m->n_tensors = 3 + of_layer;
  for (int64_t i = 0; i < of_layer; i++) {
    m->tensors[3 + i] = (moe_tensor)MOE_TENSOR_INIT;
    CHECK(moe_layer_parameter(m->layer, i, &m->tensors[3 + i]));
  }
  CHECK(moe_adamw_create(m->context, NULL, m->tensors, m->n_tensors, &m->optimizer));
}

/* Probabilities p[t] of the byte at each position; with a tape, ready for backward. */
static void forward(model *m, const unsigned char *bytes, const int64_t *positions, int64_t n, moe_tape *tape,
                    moe_report *report) {
  for (int64_t t = 0; t < n; t++)
    for (int i = 0; i < H; i++) x[t][i] = embedding[bytes[positions[t] - CONTEXT + i / WIDTH]][i % WIDTH];

  CHECK(moe_layer_forward(m->layer, &x[0][0], n, NULL, &h[0][0], tape, report));

  for (int64_t t = 0; t < n; t++) {
    for (int j = 0; j < BYTES; j++) p[t][j] = bias[j];
    for (int i = 0; i < H; i++) {
      h[t][i] += x[t][i];
      for (int j = 0; j < BYTES; j++) p[t][j] += h[t][i] * weight[i][j];
    }
    float largest = p[t][0], sum = 0;
    for (int j = 1; j < BYTES; j++) largest = p[t][j] > largest ? p[t][j] : largest;
    for (int j = 0; j < BYTES; j++) sum += p[t][j] = expf(p[t][j] - largest);
    for (int j = 0; j < BYTES; j++) p[t][j] /= sum;
  }
}

/* Gradients of the mean cross-entropy plus the layer's aux_loss, after a forward with the tape.  Turns p into the
 * gradient of the logits: (p - [1 at the byte that came]) / n. */
static void backward(model *m, const unsigned char *bytes, const int64_t *positions, int64_t n) {
  for (int64_t t = 0; t < n; t++) {
    p[t][bytes[positions[t]]] -= 1;
    for (int j = 0; j < BYTES; j++) bias_grad[j] += p[t][j] /= (float)n;
    for (int i = 0; i < H; i++) {
      float sum[8] = {0}; /* eight chains, which the compiler may put into one vector */
      for (int j = 0; j < BYTES; j++) {
        sum[j % 8] += weight[i][j] * p[t][j];
        weight_grad[i][j] += h[t][i] * p[t][j];
      }
      dh[t][i] = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
    }
  }
  CHECK(moe_layer_backward(m->layer, m->tape, &x[0][0], &dh[0][0], 1.0f, &dx[0][0], NULL));
  for (int64_t t = 0; t < n; t++) /* h = x + moe(x): both ways add up */
    for (int i = 0; i < H; i++)
      embedding_grad[bytes[positions[t] - CONTEXT + i / WIDTH]][i % WIDTH] += dh[t][i] + dx[t][i];
}

static double bits(const unsigned char *bytes, const int64_t *positions, int64_t n) {
  double sum = 0;
  for (int64_t t = 0; t < n; t++) sum -= log2(p[t][bytes[positions[t]]] + 1e-30);
  return sum / (double)n;
}

static void zero_gradients(model *m) {
  for (int64_t i = 0; i < 3; i++) {
    float *grad = m->tensors[i].grad;
    for (int64_t j = 0; j < m->tensors[i].shape[0] * m->tensors[i].shape[1]; j++) grad[j] = 0;
  }
  CHECK(moe_layer_zero_grad(m->layer));
}

/* ---- Training, evaluation, sample ------------------------------------------------------------------------ */

static void train(model *m, const text *training) {
  int64_t positions[BATCH], load[EXPERTS];
  moe_report report = MOE_REPORT_INIT;
  report.tokens_per_expert = load;
  double loss = 0;
  time_t start = time(NULL);
  for (int step = 0; step < STEPS; step++) {
    for (int t = 0; t < BATCH; t++)
      positions[t] = CONTEXT + (int64_t)(uniform() * (double)(training->n - CONTEXT));
    zero_gradients(m);
    forward(m, training->bytes, positions, BATCH, m->tape, &report);
    loss += bits(training->bytes, positions, BATCH) / 100;
    backward(m, training->bytes, positions, BATCH);

    /* Linear warm-up, then half a cosine down to 0. */
    double warm_up = (step + 1) / 50.0, rate = 2e-3 * (1 + cos(3.14159265 * step / STEPS));
    CHECK(moe_optimizer_set_learning_rate(m->optimizer, warm_up < 1 ? rate * warm_up : rate));
    CHECK(moe_optimizer_step_clipped(m->optimizer, m->tensors, m->n_tensors, 1.0, NULL));

    if ((step + 1) % 100 == 0) {
      int64_t fullest = 0;
      for (int e = 0; e < EXPERTS; e++) fullest = load[e] > fullest ? load[e] : fullest;
      printf("step %4d of %d   %.3f bits per byte   fullest expert %.2f x the mean   %.0f s\n", step + 1, STEPS, loss,
             (double)fullest * EXPERTS / (BATCH * TOP_K), difftime(time(NULL), start));
      fflush(stdout);
      loss = 0;
    }
  }
}

/* Bits per byte over all of the text. */
static double evaluate(model *m, const text *held_out) {
  int64_t positions[BATCH], n = 0;
  double sum = 0;
  for (int64_t next = CONTEXT; next < held_out->n; next += n) {
    for (n = 0; n < BATCH && next + n < held_out->n; n++) positions[n] = next + n;
    forward(m, held_out->bytes, positions, n, NULL, NULL);
    sum += bits(held_out->bytes, positions, n) * (double)n;
  }
  return sum / (double)(held_out->n - CONTEXT);
}

/* Continue `prompt`, CONTEXT bytes, one byte at a time. */
static void sample(model *m, const unsigned char *prompt, int length, double temperature) {
  unsigned char window[CONTEXT];
  int64_t end = CONTEXT;
  for (int i = 0; i < CONTEXT; i++) window[i] = prompt[i];
  for (int n = 0; n < length; n++) {
    double sharpened[BYTES], sum = 0;
    forward(m, window, &end, 1, NULL, NULL);
    for (int j = 0; j < BYTES; j++) sum += sharpened[j] = pow(p[0][j], 1 / temperature);
    double left = uniform() * sum;
    int byte = 0;
    while (byte < BYTES - 1 && (left -= sharpened[byte]) > 0) byte++;
    putchar(isprint(byte) || byte == '\n' ? byte : ' '); /* nothing that would steer the terminal */
    for (int i = 1; i < CONTEXT; i++) window[i - 1] = window[i];
    window[CONTEXT - 1] = (unsigned char)byte;
  }
  putchar('\n');
}

int main(int argc, char **argv) {
  text training = {NULL, 0}, held_out = {NULL, 0};
  for (int i = 1; i < argc; i++) read_file(argv[i], &training, &held_out);
  if (held_out.n < 1000) give_up("too little text, ten kilobytes are the least: train_text FILE...", "");
  double unigram, bigram;
  baselines(&training, &held_out, &unigram, &bigram);

  model m;
  create(&m);
  printf("%s\n%lld bytes to train on, %lld held out\n", moe_build_info(m.context), (long long)training.n,
         (long long)held_out.n);
  train(&m, &training);
  double ours = evaluate(&m, &held_out);

  printf("\nA sample at temperature 0.7:\n\n");
  sample(&m, held_out.bytes, 800, 0.7);
  printf("\nHeld-out bits per byte: %.3f;  bigram model %.3f,  unigram model %.3f\n", ours, bigram, unigram);

  moe_optimizer_free(m.optimizer); /* in any order */
  moe_tape_free(m.tape);
  moe_layer_free(m.layer);
  moe_context_free(m.context);
  free(training.bytes);
  free(held_out.bytes);
  if (ours >= bigram || ours >= unigram) give_up("the model did not beat both counting models", "");
  return EXIT_SUCCESS;
}
