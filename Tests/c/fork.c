/* A process forked after the context's threads have run computes the same bits: with the parent's context, whose threads
 * it does not have, and with a context of its own. */
#define _POSIX_C_SOURCE 200809L
#include <moe.h>

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { H = 24, N_TOKENS = 300, SIZE = N_TOKENS * H, N_EXPERTS = 6 };

static float x[SIZE], dy[SIZE]; /* [T,H] */

struct results {
  float y[SIZE], dx[SIZE];        /* [T,H] */
  float router_grad[N_EXPERTS * H]; /* [E,H] */
};

static moe_context *new_context(void) {
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.n_threads = 3;
  moe_context *context = NULL;
  CHECK(moe_context_create(&config, &context) == MOE_OK);
  return context;
}

static moe_layer *new_layer(moe_context *context) {
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 40;
  config.n_experts = N_EXPERTS;
  config.top_k = 2;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  return layer;
}

static void run(moe_layer *layer, struct results *results) {
  moe_tape *tape = NULL;
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);
  CHECK(moe_layer_zero_grad(layer) == MOE_OK);
  CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, results->y, tape, NULL) == MOE_OK);
  CHECK(moe_layer_backward(layer, tape, x, dy, 1.0f, results->dx, NULL) == MOE_OK);
  moe_tensor router = MOE_TENSOR_INIT;
  CHECK(moe_layer_parameter(layer, 0, &router) == MOE_OK);
  memcpy(results->router_grad, router.grad, sizeof results->router_grad);
  moe_tape_free(tape);
}

int main(void) {
  for (int i = 0; i < SIZE; i++) {
    x[i] = (float)(i * 37 % 101) / 50 - 1;
    dy[i] = (float)(i * 53 % 97) / 48 - 1;
  }
  moe_context *context = new_context();
  moe_layer *layer = new_layer(context);
  static struct results expected, actual;
  run(layer, &expected);

  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(30); /* a deadlock ends the child, and with it the test */
    run(layer, &actual);
    CHECK(memcmp(&actual, &expected, sizeof actual) == 0);
    moe_layer_free(layer);
    moe_context_free(context);

    context = new_context();
    layer = new_layer(context);
    run(layer, &actual);
    CHECK(memcmp(&actual, &expected, sizeof actual) == 0);
    moe_layer_free(layer);
    moe_context_free(context);
    exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

  /* The parent still has its threads. */
  run(layer, &actual);
  CHECK(memcmp(&actual, &expected, sizeof actual) == 0);
  moe_layer_free(layer);
  moe_context_free(context);
  return 0;
}
