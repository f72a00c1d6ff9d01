/* The host's own OpenBLAS setting is the same before, during and after the library's calls. */
#include <moe.h>

#include <pthread.h>
#include <string.h>

#include "check.h"

#ifdef __cplusplus
extern "C" {
#endif
int openblas_get_num_threads(void);
void openblas_set_num_threads(int n_threads);
#ifdef __cplusplus
}
#endif

enum { H = 128, N_TOKENS = 512, N_CALLS = 20 };

static float x[N_TOKENS * H], y[N_TOKENS * H], dx[N_TOKENS * H]; /* [T,H] each */

struct call {
  moe_layer *layer;
  moe_tape *tape;
};

static void *train(void *argument) {
  const struct call *call = (const struct call *)argument;
  for (int i = 0; i < N_CALLS; i++) {
    CHECK(moe_layer_forward(call->layer, x, N_TOKENS, NULL, y, call->tape, NULL) == MOE_OK);
    CHECK(moe_layer_backward(call->layer, call->tape, x, x, 1.0f, dx) == MOE_OK);
  }
  return NULL;
}

/* A host that lets OpenBLAS use `setting` threads and the library `n_threads`. */
static void run(int setting, int n_threads) {
  openblas_set_num_threads(setting);
  const int before = openblas_get_num_threads();

  moe_context_config context_config = MOE_CONTEXT_CONFIG_INIT;
  context_config.n_threads = n_threads;
  context_config.matmul = MOE_MATMUL_OPENBLAS;
  moe_context *context = NULL;
  CHECK(moe_context_create(&context_config, &context) == MOE_OK);
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 256;
  config.n_experts = 4;
  config.top_k = 2;
  struct call call = {NULL, NULL};
  CHECK(moe_layer_create(context, &config, &call.layer) == MOE_OK);
  CHECK(moe_tape_create(call.layer, &call.tape) == MOE_OK);
  CHECK(openblas_get_num_threads() == before);

  train(&call);
  CHECK(openblas_get_num_threads() == before);

  /* While another thread is inside the library, this one must see its own setting all the same. */
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, train, &call) == 0);
  for (int i = 0; i < 100000; i++) CHECK(openblas_get_num_threads() == before);
  CHECK(pthread_join(thread, NULL) == 0);

  moe_tape_free(call.tape);
  moe_layer_free(call.layer);
  moe_context_free(context);
  CHECK(openblas_get_num_threads() == before);
}

int main(void) {
  for (int i = 0; i < N_TOKENS * H; i++) x[i] = (float)(i % 17) / 8 - 1;
  run(1, 1);
  run(2, 1);
  run(2, 2);
  return 0;
}
