/* Fits y = (sin 3a, a b) of x = (a, b): the mean square error has to fall below a twentieth of the variance of y,
 * which is the best that a constant can do. */
#include <moe.h>

#include <math.h>

#include "check.h"

enum { H = 2, N_TOKENS = 256, N_STEPS = 400, N_PARAMETERS = 8 };

/* Writes the gradient of the mean square error over y and returns the error. */
static double loss(const float *y, const float *target, float *dy) {
  const int n = N_TOKENS * H;
  double sum = 0;
  for (int i = 0; i < n; i++) {
    const float difference = y[i] - target[i];
    sum += (double)difference * difference;
    dy[i] = 2 * difference / n;
  }
  return sum / n;
}

static double variance(const float *values, int n) {
  double mean = 0, square = 0;
  for (int i = 0; i < n; i++) {
    mean += values[i] / n;
    square += (double)values[i] * values[i] / n;
  }
  return square - mean * mean;
}

int main(void) {
  static float x[N_TOKENS * H], target[N_TOKENS * H], y[N_TOKENS * H], dy[N_TOKENS * H]; /* [T,H] each */
  for (int t = 0; t < N_TOKENS; t++) {
    const float a = (float)(t % 16) / 8 - 1, b = (float)(t / 16) / 8 - 1; /* a grid over [-1, 1) */
    x[t * H] = a;
    x[t * H + 1] = b;
    target[t * H] = sinf(3 * a);
    target[t * H + 1] = a * b;
  }

  moe_context *context = NULL;
  CHECK(moe_context_create(NULL, &context) == MOE_OK);
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 16;
  config.n_experts = 4;
  config.top_k = 2;
  config.balance_coef = 0.01f;
  config.z_coef = 0.001f;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  moe_tape *tape = NULL;
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);

  moe_tensor parameters[N_PARAMETERS];
  int64_t count = parameters_of(layer, parameters, N_PARAMETERS);
  moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
  adamw.learning_rate = 0.01;
  moe_optimizer *optimizer = NULL;
  CHECK(moe_adamw_create(context, &adamw, parameters, count, &optimizer) == MOE_OK);

  double error = 0;
  for (int step = 0; step < N_STEPS; step++) {
    CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, tape, NULL) == MOE_OK);
    error = loss(y, target, dy);
    CHECK(moe_layer_zero_grad(layer) == MOE_OK);
    CHECK(moe_layer_backward(layer, tape, x, dy, 1.0f, NULL, NULL) == MOE_OK);
    CHECK(moe_clip_grad_norm(context, parameters, count, 1.0, NULL) == MOE_OK);
    CHECK(moe_optimizer_step(optimizer, parameters, count) == MOE_OK);
  }
  CHECK(error < variance(target, N_TOKENS * H) / 20);

  moe_optimizer_free(optimizer);
  moe_tape_free(tape);
  moe_layer_free(layer);
  moe_context_free(context);
  return 0;
}
