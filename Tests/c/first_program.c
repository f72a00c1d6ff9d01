/* The first program of moe.h, with every status checked. */
#include <moe.h>

#include <math.h>

#include "check.h"

enum { H = 64, N_TOKENS = 10 };

int main(void) {
  static float x[N_TOKENS * H], y[N_TOKENS * H], dy[N_TOKENS * H], dx[N_TOKENS * H]; /* [T,H] each */
  for (int i = 0; i < N_TOKENS * H; i++) {
    x[i] = sinf((float)i);
    dy[i] = 1.0f;
  }

  moe_context *context = NULL;
  CHECK(moe_context_create(NULL, &context) == MOE_OK);

  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 256;
  config.n_experts = 8;
  config.top_k = 2;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);

  moe_tape *tape = NULL;
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);
  CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, tape, NULL) == MOE_OK);
  CHECK(moe_layer_backward(layer, tape, x, dy, 1.0f, dx, NULL) == MOE_OK);

  /* The slope of sum(y) along x: forward again, a little further in the direction of dx. */
  const float step = 1e-3f;
  double expected = 0, actual = 0;
  for (int i = 0; i < N_TOKENS * H; i++) {
    expected += (double)step * dx[i] * dx[i];
    actual -= y[i];
    x[i] += step * dx[i];
  }
  CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL) == MOE_OK);
  for (int i = 0; i < N_TOKENS * H; i++) actual += y[i];
  CHECK(expected > 0 && fabs(actual / expected - 1) < 0.02);

  moe_tape_free(tape);
  moe_layer_free(layer);
  moe_context_free(context);
  return 0;
}
