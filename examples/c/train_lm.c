/* train_lm.c: a language model of bytes, a small transformer with a Mixture of Experts in every layer.
 *
 *     cc -O2 train_lm.c $(pkg-config --cflags --libs libmoe) -o train_lm
 *     ./train_lm FILE...        (a megabyte of text or more; some minutes on two cores)
 *
 * libmoe does the model, its loss and gradients, clipping and AdamW; what is left is the text and the loop:
 *
 *     tokens [B,S]  ->  embedding -> LAYERS x (attention, experts) -> logits -> cross-entropy with the next bytes
 */
#include <moe_model.h>

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PROGRAM "train_lm"
#include "text.h"

#ifndef STEPS
#define STEPS 1000
#endif

enum {
  BYTES = 256,
  LAYERS = 4,
  H = 128,
  HEADS = 4,
  I = 256, /* width of an expert */
  EXPERTS = 8,
  TOP_K = 2,
  B = 8,   /* sequences of a step */
  S = 128, /* bytes of a sequence */
  WARM_UP = 50,
  EVERY = 100,    /* steps from one line to the next */
  EVALUATED = 64, /* held-out sequences of a line */
  MAX_TENSORS = 256
};

static const double LEARNING_RATE = 3e-3;

/* B windows of S bytes, and for each byte the one that follows it. */
static int32_t tokens[B * S], targets[B * S];

static void take(const text *from, int row, int64_t start) {
  for (int s = 0; s < S; s++) {
    tokens[row * S + s] = from->bytes[start + s];
    targets[row * S + s] = from->bytes[start + s + 1];
  }
}

/* ---- The model ------------------------------------------------------------------------------------------- */

typedef struct run {
  moe_context *context;
  moe_model *model;
  moe_model_tape *tape;
  moe_optimizer *optimizer;
  moe_tensor tensors[MAX_TENSORS]; /* the model's parameters */
  int64_t n_tensors;
} run;

static void create(run *r) {
  moe_context_config context = MOE_CONTEXT_CONFIG_INIT;
  context.n_threads = MOE_THREADS_ALL;
  CHECK(moe_context_create(&context, &r->context));

  moe_layer_config experts = MOE_LAYER_CONFIG_INIT;
  experts.intermediate_size = I;
  experts.n_experts = EXPERTS;
  experts.top_k = TOP_K;
  experts.expert_kind = MOE_EXPERT_GATED; /* with SiLU: SwiGLU */
  experts.activation = MOE_ACTIVATION_SILU;
  experts.balance_coef = 0.01f;
  experts.z_coef = 0.001f;

  moe_model_config config = MOE_MODEL_CONFIG_INIT;
  config.hidden_size = H;
  config.n_layers = LAYERS;
  config.n_heads = HEADS;
  config.vocabulary_size = BYTES;
  config.rope_theta = 10000;
  config.norm = MOE_NORM_RMS;
  config.final_norm = 1;
  config.causal = 1;
  config.tied_output = 1;
  config.moe = &experts; /* copied */
  config.seed = 1;
  CHECK(moe_model_create(r->context, &config, &r->model));
  CHECK(moe_model_tape_create(r->model, &r->tape));

  CHECK(moe_model_parameter_count(r->model, &r->n_tensors));
  if (r->n_tensors > MAX_TENSORS) give_up("MAX_TENSORS is too small", "");
  for (int64_t i = 0; i < r->n_tensors; i++) {
    r->tensors[i] = (moe_tensor)MOE_TENSOR_INIT;
    CHECK(moe_model_parameter(r->model, i, &r->tensors[i]));
  }
  CHECK(moe_adamw_create(r->context, NULL, r->tensors, r->n_tensors, &r->optimizer));
}

/* What a call reads: `rows` of the windows above. */
static moe_model_input input_of(int rows, int step) {
  moe_model_input input = MOE_MODEL_INPUT_INIT;
  input.n_sequences = rows;
  input.sequence_length = S;
  input.tokens = tokens;
  input.targets = targets;
  input.training = step >= 0;
  input.step = step >= 0 ? (uint64_t)step : 0;
  return input;
}

/* Bits per byte of at most `most` windows that lie evenly over the text. */
static double evaluate(run *r, const text *held_out, int64_t most) {
  int64_t room = (held_out->n - 1) / S, windows = room < most ? room : most;
  double nats = 0;
  for (int64_t w = 0; w < windows; w += B) {
    int rows = (int)(windows - w < B ? windows - w : B);
    for (int row = 0; row < rows; row++) take(held_out, row, (w + row) * room / windows * S);
    moe_model_input input = input_of(rows, -1);
    moe_model_report report = MOE_MODEL_REPORT_INIT;
    CHECK(moe_model_forward(r->model, &input, NULL, NULL, NULL, &report));
    nats += report.loss * rows;
  }
  return nats / (double)windows / log(2);
}

/* Linear warm-up, then half a cosine down to a tenth. */
static double rate(int step) {
  double warm_up = (step + 1) / (double)WARM_UP;
  return LEARNING_RATE * (warm_up < 1 ? warm_up : 0.55 + 0.45 * cos(3.14159265 * step / STEPS));
}

static void train(run *r, const text *training, const text *held_out) {
  int64_t load[LAYERS][EXPERTS];
  moe_report layers[LAYERS];
  moe_model_report report = MOE_MODEL_REPORT_INIT;
  for (int n = 0; n < LAYERS; n++) {
    layers[n] = (moe_report)MOE_REPORT_INIT;
    layers[n].tokens_per_expert = load[n];
  }
  report.layers = layers;
  double nats = 0, norm;
  time_t start = time(NULL);
  for (int step = 0; step < STEPS; step++) {
    for (int row = 0; row < B; row++) take(training, row, (int64_t)(uniform() * (double)(training->n - S)));
    moe_model_input input = input_of(B, step);
    CHECK(moe_model_zero_grad(r->model));
    CHECK(moe_model_forward(r->model, &input, NULL, NULL, r->tape, &report));
    CHECK(moe_model_backward(r->model, r->tape, &input, 1.0, NULL, NULL));
    CHECK(moe_optimizer_set_learning_rate(r->optimizer, rate(step)));
    CHECK(moe_optimizer_step_clipped(r->optimizer, r->tensors, r->n_tensors, 1.0, &norm));
    nats += report.loss;

    if ((step + 1) % EVERY == 0) {
      double peak = 0;
      for (int n = 0; n < LAYERS; n++) peak = layers[n].max_over_mean > peak ? layers[n].max_over_mean : peak;
      printf("step %4d of %d   %.3f bits per byte, held out %.3f   norm %.2f   fullest expert %.1f x the mean   %.0f s\n",
             step + 1, STEPS, nats / EVERY / log(2), evaluate(r, held_out, EVALUATED), norm, peak,
             difftime(time(NULL), start));
      fflush(stdout);
      nats = 0;
    }
  }
}

/* Continue the first n bytes of `prompt`, one byte at a time.  The model knows no places beyond S: when S bytes are full,
 * the last half of them is read anew. */
static void sample(run *r, const unsigned char *prompt, int n, int length) {
  static float logits[BYTES];
  int full = 0; /* bytes that the cache holds */
  moe_cache *cache;
  moe_sampling sampling = MOE_SAMPLING_INIT;
  sampling.temperature = 0.7;
  sampling.seed = 1;
  CHECK(moe_cache_create(r->model, 1, S, &cache));
  for (int i = 0; i < n; i++) tokens[i] = prompt[i];
  for (int i = 0; i < length; i++) {
    if (n == S) {
      for (n = 0; n < S / 2; n++) tokens[n] = tokens[S / 2 + n];
      CHECK(moe_cache_truncate(cache, 0));
      full = 0;
    }
    CHECK(moe_model_read(r->model, cache, tokens + full, n - full, logits));
    full = n;
    int32_t byte;
    CHECK(moe_sample(r->context, logits, BYTES, &sampling, (uint64_t)i, &byte));
    putchar(isprint(byte) || byte == '\n' ? byte : ' '); /* nothing that would steer the terminal */
    tokens[n++] = byte;
  }
  putchar('\n');
  moe_cache_free(cache);
}

int main(int argc, char **argv) {
  text training = {NULL, 0}, held_out = {NULL, 0};
  for (int i = 1; i < argc; i++) read_file(argv[i], &training, &held_out);
  if (held_out.n < 10 * S) give_up("too little text, 20 kilobytes are the least: train_lm FILE...", "");

  static run r; /* some 30 kilobytes of tensors */
  create(&r);
  printf("%s\n%lld bytes to train on, %lld held out\n", moe_build_info(r.context), (long long)training.n,
         (long long)held_out.n);
  double before = evaluate(&r, &held_out, held_out.n);
  train(&r, &training, &held_out);
  double after = evaluate(&r, &held_out, held_out.n);
  printf("\nA sample at temperature 0.7:\n\n");
  sample(&r, held_out.bytes, 32, 800);
  printf("\nHeld-out bits per byte: %.3f, before training %.3f\n", after, before);

  moe_optimizer_free(r.optimizer); /* in any order */
  moe_model_tape_free(r.tape);
  moe_model_free(r.model);
  moe_context_free(r.context);
  free(training.bytes);
  free(held_out.bytes);
  if (!(after < before)) give_up("the model has learnt nothing", "");
  return EXIT_SUCCESS;
}
