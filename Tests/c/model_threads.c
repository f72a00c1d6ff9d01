/* Two threads use one model at once, while the context takes their times: each evaluates and continues a text of its own,
 * and gets what one thread gets alone. */
#include <moe_model.h>

#include <pthread.h>
#include <string.h>

#include "check.h"

enum { V = 17, S = 40, N_THREADS = 2, N_CALLS = 10, N_EVENTS = 50 };

struct job {
  const moe_model *model;
  int32_t tokens[S];
  float expected[S * V]; /* [S,V] */
};

static moe_status forward(const struct job *job, float *logits) {
  moe_model_input input = MOE_MODEL_INPUT_INIT;
  input.n_sequences = 1;
  input.sequence_length = S;
  input.tokens = job->tokens;
  return moe_model_forward(job->model, &input, NULL, logits, NULL, NULL);
}

static void *call_often(void *argument) {
  const struct job *job = (const struct job *)argument;
  moe_cache *cache = NULL;
  CHECK(moe_cache_create(job->model, 1, S, &cache) == MOE_OK);
  for (int i = 0; i < N_CALLS; i++) {
    float logits[S * V];
    CHECK(forward(job, logits) == MOE_OK);
    CHECK(memcmp(logits, job->expected, sizeof logits) == 0);
    CHECK(moe_cache_truncate(cache, 0) == MOE_OK);
    CHECK(moe_model_read(job->model, cache, job->tokens, S, logits) == MOE_OK);
    CHECK(memcmp(logits, job->expected + (S - 1) * V, V * sizeof *logits) == 0);
  }
  moe_cache_free(cache);
  return NULL;
}

int main(void) {
  moe_context_config context_config = MOE_CONTEXT_CONFIG_INIT;
  context_config.n_threads = 2; /* the two callers compete for the context's threads too */
  context_config.matmul = MOE_MATMUL_NATIVE;
  moe_context *context = NULL;
  CHECK(moe_context_create(&context_config, &context) == MOE_OK);
  moe_layer_config experts = MOE_LAYER_CONFIG_INIT;
  experts.intermediate_size = 12;
  experts.n_experts = 4;
  experts.top_k = 2;
  moe_model_config config = MOE_MODEL_CONFIG_INIT;
  config.hidden_size = 16;
  config.n_layers = 2;
  config.n_heads = 2;
  config.vocabulary_size = V;
  config.rope_theta = 10000;
  config.causal = 1;
  config.final_norm = 1;
  config.moe = &experts;
  moe_model *model = NULL;
  CHECK(moe_model_create(context, &config, &model) == MOE_OK);

  static struct job jobs[N_THREADS];
  for (int j = 0; j < N_THREADS; j++) {
    jobs[j].model = model;
    for (int t = 0; t < S; t++) jobs[j].tokens[t] = (t * t + j) % V;
    CHECK(forward(&jobs[j], jobs[j].expected) == MOE_OK);
  }

  /* Fewer events than there are parts of calls: the threads compete for the last one. */
  CHECK(moe_profile_start(context, N_EVENTS) == MOE_OK);
  pthread_t threads[N_THREADS];
  for (int j = 0; j < N_THREADS; j++) CHECK(pthread_create(&threads[j], NULL, call_often, &jobs[j]) == 0);
  moe_phase_time route = MOE_PHASE_TIME_INIT;
  CHECK(moe_profile_phase(context, MOE_PHASE_ROUTE, 0, &route) == MOE_OK);
  for (int j = 0; j < N_THREADS; j++) CHECK(pthread_join(threads[j], NULL) == 0);
  CHECK(moe_profile_stop(context) == MOE_OK);

  CHECK(moe_profile_phase(context, MOE_PHASE_ROUTE, 0, &route) == MOE_OK);
  CHECK(route.calls == 2 * 2 * N_CALLS * N_THREADS); /* layers, functions */
  int64_t count = 0;
  CHECK(moe_profile_events(context, 0, NULL, 0, &count) == MOE_OK);
  CHECK(count == N_EVENTS);

  moe_model_free(model);
  moe_context_free(context);
  return 0;
}
