/* A context computes on threads of the host: the bits of its own threads, whatever the host makes of the request. */
#include <moe.h>

#include <pthread.h>
#include <string.h>

#include "check.h"

enum { H = 32, N_TOKENS = 300, MOST = 8 };

struct share {
  void (*lane)(void *argument);
  void *argument;
};

static void *call(void *share) {
  const struct share *mine = (const struct share *)share;
  mine->lane(mine->argument);
  return NULL;
}

static void on_threads(void (*lane)(void *argument), void *argument, unsigned count) {
  struct share share = {lane, argument};
  pthread_t threads[MOST];
  for (unsigned i = 1; i < count; i++) CHECK(pthread_create(&threads[i], NULL, call, &share) == 0);
  lane(argument);
  for (unsigned i = 1; i < count; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

static int requests;

/* As asked; too many; the caller alone; nobody. */
static void as_asked(void (*lane)(void *argument), void *argument, unsigned n_threads, unsigned flags) {
  CHECK(n_threads == 2 && flags == 0);
  requests++;
  on_threads(lane, argument, n_threads);
}
static void too_many(void (*lane)(void *argument), void *argument, unsigned n_threads, unsigned flags) {
  (void)flags;
  on_threads(lane, argument, 3 * n_threads);
}
static void alone(void (*lane)(void *argument), void *argument, unsigned n_threads, unsigned flags) {
  (void)n_threads, (void)flags;
  lane(argument);
}
static void nobody(void (*lane)(void *argument), void *argument, unsigned n_threads, unsigned flags) {
  (void)lane, (void)argument, (void)n_threads, (void)flags;
}

static pthread_t caller;
static int asked;

static int32_t go_on(void *user) {
  (void)user;
  CHECK(pthread_equal(pthread_self(), caller));
  asked++;
  return 0;
}

static void compute(const moe_context_config *context_config, float *y) {
  moe_context *context = NULL;
  CHECK(moe_context_create(context_config, &context) == MOE_OK);
  CHECK(moe_context_threads(context) == context_config->n_threads);
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 64;
  config.n_experts = 8;
  config.top_k = 2;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  static float x[N_TOKENS * H]; /* [T,H] */
  for (int i = 0; i < N_TOKENS * H; i++) x[i] = (float)(i * 37 % 101) / 50 - 1;
  CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL) == MOE_OK);
  moe_layer_free(layer);
  moe_context_free(context);
}

int main(void) {
  static float expected[N_TOKENS * H], y[N_TOKENS * H]; /* [T,H] */
  caller = pthread_self();
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.n_threads = 1;
  compute(&config, expected);
  config.n_threads = 2;
  config.cancel = go_on;
  void (*hosts[])(void (*)(void *), void *, unsigned, unsigned) = {as_asked, too_many, alone, nobody};
  for (int i = 0; i < 4; i++) {
    config.host_threads = hosts[i];
    asked = 0;
    memset(y, 0, sizeof y);
    compute(&config, y);
    CHECK(memcmp(y, expected, sizeof y) == 0);
    CHECK(asked > 0);
  }
  CHECK(requests > 0);
  return 0;
}
