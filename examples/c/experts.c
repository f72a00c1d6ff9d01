/* experts.c: experts by call, trained: the caller routes, owns the weights, and steps them.
 *
 *     cc -O2 experts.c $(pkg-config --cflags --libs libmoe) -o experts && ./experts
 *
 * A call's experts read their weights where the caller has them, here gate and up fused in one array [E,2I,H].  What
 * forward saves for backward are bytes of the caller's too, as many as the plan says.  The experts learn to give back a
 * bent function of x that the routing has a part in; the loss is the mean square of what is missing.
 */
#include <moe.h>
#include <moe_experts.h>

#include <stdio.h>
#include <stdlib.h>

enum { E = 8, H = 32, I = 48, T = 256, K = 2, STEPS = 60 };

/* Every libmoe call that can fail returns a status; what went wrong is in moe_last_error_message(). */
#define CHECK(call)                                                                                      \
  do {                                                                                                   \
    moe_status status_ = (call);                                                                         \
    if (status_ != MOE_OK) {                                                                             \
      fprintf(stderr, "experts: %s: %s\n", moe_status_name(status_), moe_last_error_message());          \
      exit(EXIT_FAILURE);                                                                                \
    }                                                                                                    \
  } while (0)

static float x[T][H], y[T][H], dy[T][H], target[T][H], routing[T][K];
static float gate_up[E][2 * I][H], down[E][H][I], d_gate_up[E][2 * I][H], d_down[E][H][I];
static int32_t chosen[T][K];

/* splitmix64: uniform in [-1, 1), the same numbers on every machine. */
static float noise(void) {
  static uint64_t state = 1;
  uint64_t z = (state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (float)((double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1);
}

static void fill(float *values, size_t n, float scale) {
  for (size_t i = 0; i < n; i++) values[i] = scale * noise();
}

static void make_data(void) {
  fill(&x[0][0], T * H, 1);
  fill(&gate_up[0][0][0], E * 2 * I * H, 0.3f);
  fill(&down[0][0][0], E * H * I, 0.3f);
  for (int t = 0; t < T; t++) {
    chosen[t][0] = t % E; /* any router's choice; a number that is no expert's would be skipped */
    chosen[t][1] = (t / E + t + 1) % E;
    routing[t][0] = 0.7f;
    routing[t][1] = 0.3f;
    for (int h = 0; h < H; h++) {
      float u = 4 * x[t][(h + chosen[t][0]) % H];
      target[t][h] = u / (1 + (u < 0 ? -u : u));
    }
  }
}

/* The mean square of y - target; dy becomes its gradient. */
static double loss(void) {
  double sum = 0;
  for (int t = 0; t < T; t++) {
    for (int h = 0; h < H; h++) {
      float missing = y[t][h] - target[t][h];
      sum += (double)missing * missing;
      dy[t][h] = 2 * missing / (T * H);
    }
  }
  return sum / (T * H);
}

/* Gate, up and down where they lie in two arrays; the same of gradients. */
static void list(moe_expert_tensor tensors[3], float *fused, float *last) {
  moe_expert_tensor gate = {MOE_EXPERT_PART_GATE, MOE_DTYPE_F32, fused, NULL, {2 * I * H, H, 1}};
  moe_expert_tensor up = {MOE_EXPERT_PART_UP, MOE_DTYPE_F32, fused + I * H, NULL, {2 * I * H, H, 1}};
  moe_expert_tensor out = {MOE_EXPERT_PART_DOWN, MOE_DTYPE_F32, last, NULL, {H * I, I, 1}};
  tensors[0] = gate;
  tensors[1] = up;
  tensors[2] = out;
}

/* What an optimiser steps: any arrays with their gradients. */
static moe_tensor parameter(const char *name, int64_t rows, int64_t columns, float *data, float *gradient) {
  moe_tensor tensor = MOE_TENSOR_INIT;
  tensor.name = name;
  tensor.rank = 3;
  tensor.shape[0] = E;
  tensor.shape[1] = rows;
  tensor.shape[2] = columns;
  tensor.data = data;
  tensor.grad = gradient;
  return tensor;
}

int main(void) {
  make_data();
  moe_context *context = NULL;
  CHECK(moe_context_create(NULL, &context));

  moe_expert_tensor weights[3], sums[3];
  list(weights, &gate_up[0][0][0], &down[0][0][0]);
  list(sums, &d_gate_up[0][0][0], &d_down[0][0][0]);
  moe_experts_config config = MOE_EXPERTS_CONFIG_INIT;
  config.n_experts = E;
  config.hidden_size = H;
  config.intermediate_size = I;
  config.expert_kind = MOE_EXPERT_GATED;
  config.activation = MOE_ACTIVATION_SILU;
  config.weights = weights;
  config.n_weights = 3;
  moe_experts_call call = MOE_EXPERTS_CALL_INIT;
  call.n_tokens = T;
  call.top_k = K;
  call.expert_indices = chosen;
  call.expert_weights = routing;
  moe_experts_gradients gradients = MOE_EXPERTS_GRADIENTS_INIT; /* dx and d_expert_weights are not wanted here */
  gradients.tensors = sums;
  gradients.n_tensors = 3;
  gradients.overwrite = 1; /* no zeroing between steps */

  /* Without expert_indices the plan is the most that any choices take: one block of bytes serves every step. */
  moe_plan plan = MOE_PLAN_INIT;
  moe_experts_call any = call;
  any.expert_indices = NULL;
  CHECK(moe_experts_plan(context, &config, &any, &gradients, 1, &plan));
  void *saved = malloc(plan.tape_bytes);
  if (saved == NULL) {
    fprintf(stderr, "experts: no memory for %zu bytes\n", plan.tape_bytes);
    return EXIT_FAILURE;
  }
  printf("forward saves %zu bytes and borrows %zu, backward borrows %zu\n", plan.tape_bytes, plan.forward_bytes,
         plan.backward_bytes);

  moe_tensor tensors[] = {parameter("gate_up", 2 * I, H, &gate_up[0][0][0], &d_gate_up[0][0][0]),
                          parameter("down", H, I, &down[0][0][0], &d_down[0][0][0])};
  moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
  adamw.learning_rate = 1e-2;
  moe_optimizer *optimizer = NULL;
  CHECK(moe_adamw_create(context, &adamw, tensors, 2, &optimizer));

  double first = 0, last = 0;
  for (int step = 0; step < STEPS; step++) {
    CHECK(moe_experts_forward(context, &config, &call, x, y, saved, plan.tape_bytes, NULL));
    last = loss();
    if (step == 0) first = last;
    if (step % 20 == 0) printf("step %d: loss %.4f\n", step, last);
    CHECK(moe_experts_backward(context, &config, &call, saved, plan.tape_bytes, x, dy, &gradients));
    CHECK(moe_optimizer_step(optimizer, tensors, 2));
  }
  printf("step %d: loss %.4f\n", STEPS, last);

  free(saved);
  moe_optimizer_free(optimizer); /* in any order */
  moe_context_free(context);
  return last < first / 4 ? EXIT_SUCCESS : EXIT_FAILURE;
}
