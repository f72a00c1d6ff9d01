/* Two threads call one layer at once, each with an output of its own, and get what one thread gets alone. */
#include <moe.h>

#include <pthread.h>
#include <string.h>

#include "check.h"

enum { H = 16, N_TOKENS = 100, N_THREADS = 2, N_CALLS = 50 };

struct job {
  const moe_layer *layer;
  float x[N_TOKENS * H], expected[N_TOKENS * H]; /* [T,H] */
};

static void *call_often(void *argument) {
  const struct job *job = (const struct job *)argument;
  for (int i = 0; i < N_CALLS; i++) {
    float y[N_TOKENS * H];
    CHECK(moe_layer_forward(job->layer, job->x, N_TOKENS, NULL, y, NULL, NULL) == MOE_OK);
    CHECK(memcmp(y, job->expected, sizeof y) == 0);
  }
  return NULL;
}

int main(void) {
  moe_context_config context_config = MOE_CONTEXT_CONFIG_INIT;
  context_config.n_threads = 2; /* the two callers compete for the context's threads too */
  moe_context *context = NULL;
  CHECK(moe_context_create(&context_config, &context) == MOE_OK);
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 32;
  config.n_experts = 4;
  config.top_k = 2;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);

  static struct job jobs[N_THREADS];
  for (int j = 0; j < N_THREADS; j++) {
    jobs[j].layer = layer;
    for (int i = 0; i < N_TOKENS * H; i++) jobs[j].x[i] = (float)((i * 37 + j * 11) % 101) / 50 - 1;
    CHECK(moe_layer_forward(layer, jobs[j].x, N_TOKENS, NULL, jobs[j].expected, NULL, NULL) == MOE_OK);
  }

  pthread_t threads[N_THREADS];
  for (int j = 0; j < N_THREADS; j++) CHECK(pthread_create(&threads[j], NULL, call_often, &jobs[j]) == 0);
  for (int j = 0; j < N_THREADS; j++) CHECK(pthread_join(threads[j], NULL) == 0);

  moe_layer_free(layer);
  moe_context_free(context);
  return 0;
}
