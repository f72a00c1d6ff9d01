/* Messages belong to a thread: two threads fail in different ways, and each reads its own text. */
#include <moe.h>

#include <pthread.h>
#include <string.h>

#include "check.h"

enum { N_CALLS = 1000 };

static void *fail_without_layer(void *unused) {
  CHECK(strcmp(moe_last_error_message(), "") == 0); /* empty before the first failure */
  for (int i = 0; i < N_CALLS; i++) {
    CHECK(moe_layer_zero_grad(NULL) == MOE_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(moe_last_error_message(), "layer") != NULL);
  }
  return unused;
}

static void *fail_without_optimizer(void *unused) {
  CHECK(strcmp(moe_last_error_message(), "") == 0);
  for (int i = 0; i < N_CALLS; i++) {
    CHECK(moe_optimizer_set_learning_rate(NULL, 0.1) == MOE_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(moe_last_error_message(), "optimizer") != NULL);
  }
  return unused;
}

int main(void) {
  pthread_t first, second;
  CHECK(pthread_create(&first, NULL, fail_without_layer, NULL) == 0);
  CHECK(pthread_create(&second, NULL, fail_without_optimizer, NULL) == 0);
  CHECK(pthread_join(first, NULL) == 0);
  CHECK(pthread_join(second, NULL) == 0);
  CHECK(strcmp(moe_last_error_message(), "") == 0); /* this thread has not failed yet */

  moe_context *context = NULL;
  moe_layer *layer = NULL;
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = 4;
  config.intermediate_size = 4;
  config.n_experts = 8;
  config.top_k = 9;
  CHECK(moe_context_create(NULL, &context) == MOE_OK);
  CHECK(moe_layer_create(context, &config, &layer) == MOE_ERROR_INVALID_ARGUMENT);
  CHECK(layer == NULL);
  moe_context_free(context); /* clears nothing */
  CHECK(strcmp(moe_last_error_message(), "top_k = 9 exceeds n_experts = 8") == 0);
  CHECK(strcmp(moe_status_name(MOE_ERROR_INVALID_ARGUMENT), "MOE_ERROR_INVALID_ARGUMENT") == 0);
  return 0;
}
