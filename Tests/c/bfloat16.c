/* Trains a layer with bfloat16 weights and tokens to answer 1 with -1 and -1 with 1: the mean square error has to fall
 * below a tenth. A step of the rate used is less than the weights can show; the optimiser's float32 copies add them up. */
#include <moe.h>

#include <string.h>

#include "check.h"

enum { H = 3, N_TOKENS = 64, N_STEPS = 300, N_PARAMETERS = 8 };

/* The numbers here need no rounding, or may be cut off. */
static uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)(bits >> 16);
}

static float from_bf16(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

int main(void) {
  enum { N = N_TOKENS * H };
  static uint16_t x[N], y[N], dy[N]; /* [T,H] each */
  for (int i = 0; i < N; i++) x[i] = to_bf16(i * 7 % 5 < 2 ? 1.0f : -1.0f);

  moe_context *context = NULL;
  CHECK(moe_context_create(NULL, &context) == MOE_OK);
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 15;
  config.n_experts = 4;
  config.top_k = 2;
  config.weight_dtype = MOE_DTYPE_BF16;
  config.io_dtype = MOE_DTYPE_BF16;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  moe_tape *tape = NULL;
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);

  moe_tensor parameters[N_PARAMETERS];
  int64_t count = parameters_of(layer, parameters, N_PARAMETERS);
  for (int64_t i = 0; i < count; i++)
    CHECK(parameters[i].dtype == (parameters[i].rank == 3 ? MOE_DTYPE_BF16 : MOE_DTYPE_F32));
  moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
  adamw.weight_decay = 0;
  moe_optimizer *optimizer = NULL;
  CHECK(moe_adamw_create(context, &adamw, parameters, count, &optimizer) == MOE_OK);

  double first = 0, error = 0;
  for (int step = 0; step < N_STEPS; step++) {
    CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, tape, NULL) == MOE_OK);
    error = 0;
    for (int i = 0; i < N; i++) {
      const float difference = from_bf16(y[i]) + from_bf16(x[i]);
      error += (double)difference * difference / N;
      dy[i] = to_bf16(2 * difference / N);
    }
    if (step == 0) first = error;
    CHECK(moe_layer_zero_grad(layer) == MOE_OK);
    CHECK(moe_layer_backward(layer, tape, x, dy, 1.0f, NULL, NULL) == MOE_OK);
    CHECK(moe_optimizer_step(optimizer, parameters, count) == MOE_OK);
  }
  CHECK(error < first / 10);

  moe_optimizer_free(optimizer);
  moe_tape_free(tape);
  moe_layer_free(layer);
  moe_context_free(context);
  return 0;
}
