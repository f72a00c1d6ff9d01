/* The host's own OpenBLAS setting is the same after the library's calls as before them, whether the calls come one
 * by one or overlap. (OpenBLAS has one setting per process: while a call runs it is the library's.) */
#include <moe.h>

#include <math.h>
#include <pthread.h>

#include "check.h"

#ifdef __cplusplus
extern "C" {
#endif
int openblas_get_num_threads(void);
void openblas_set_num_threads(int n_threads);
#ifdef __cplusplus
}
#endif

enum { H = 32, N_TOKENS = 64, N_CALLS = 50, N_CALLERS = 3 };

static float x[N_TOKENS * H]; /* [T,H] */

/* A host's thread with a tape of its own. */
static void *train(void *argument) {
  moe_layer *layer = (moe_layer *)argument;
  float y[N_TOKENS * H], dx[N_TOKENS * H]; /* [T,H] each */
  moe_tape *tape = NULL;
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);
  for (int i = 0; i < N_CALLS; i++) {
    CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, tape, NULL) == MOE_OK);
    CHECK(moe_layer_backward(layer, tape, x, x, 1.0f, dx, NULL) == MOE_OK);
  }
  moe_tape_free(tape);
  return NULL;
}

/* A host that lets OpenBLAS use `setting` threads and the library `n_threads`. */
static void run(int setting, int n_threads) {
  openblas_set_num_threads(setting);
  CHECK(openblas_get_num_threads() == setting);

  moe_context_config context_config = MOE_CONTEXT_CONFIG_INIT;
  context_config.n_threads = n_threads;
  context_config.matmul = MOE_MATMUL_OPENBLAS;
  moe_context *context = NULL;
  CHECK(moe_context_create(&context_config, &context) == MOE_OK);
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 64;
  config.n_experts = 4;
  config.top_k = 2;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  CHECK(openblas_get_num_threads() == setting);

  train(layer);
  CHECK(openblas_get_num_threads() == setting);

  /* A call that fails gives the setting back too. */
  x[0] = NAN;
  float y[N_TOKENS * H]; /* [T,H] */
  CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL) == MOE_ERROR_NOT_FINITE);
  x[0] = 0;
  CHECK(openblas_get_num_threads() == setting);

  pthread_t callers[N_CALLERS];
  for (int i = 0; i < N_CALLERS; i++) CHECK(pthread_create(&callers[i], NULL, train, layer) == 0);
  for (int i = 0; i < N_CALLERS; i++) CHECK(pthread_join(callers[i], NULL) == 0);
  CHECK(openblas_get_num_threads() == setting);

  moe_layer_free(layer);
  moe_context_free(context);
  CHECK(openblas_get_num_threads() == setting);
}

int main(void) {
  for (int i = 0; i < N_TOKENS * H; i++) x[i] = (float)(i % 17) / 8 - 1;
  run(1, 1);
  run(2, 1);
  run(2, 2);
  return 0;
}
