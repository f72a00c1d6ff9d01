/* Trains layers of every kind and prints a number for the bits of all that comes out, so that two machines, or two
 * builds, can be compared (scripts/check-arm64 does).  The reference and two threads have to give the same here. */
#include <moe.h>

#include <string.h>

#include "check.h"
#include "numbers.h"

enum { N_TOKENS = 67, H = 37, I = 45, N_STEPS = 4, N_PARAMETERS = 8 };

static void train(moe_context *context, const moe_layer_config *config, int plain) {
  static float x[N_TOKENS * H], y[N_TOKENS * H], dx[N_TOKENS * H]; /* [T,H] each */
  moe_layer *layer = NULL;
  moe_tape *tape = NULL;
  CHECK(moe_layer_create(context, config, &layer) == MOE_OK);
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);
  moe_tensor parameters[N_PARAMETERS];
  int64_t count = parameters_of(layer, parameters, N_PARAMETERS);
  moe_optimizer *optimizer = NULL;
  if (plain) {
    moe_sgd_config sgd = MOE_SGD_CONFIG_INIT;
    sgd.momentum = 0.9;
    CHECK(moe_sgd_create(context, &sgd, parameters, count, &optimizer) == MOE_OK);
  } else {
    CHECK(moe_adamw_create(context, NULL, parameters, count, &optimizer) == MOE_OK);
  }

  begin_hash();
  for (int step = 0; step < N_STEPS; step++) {
    moe_forward_options options = MOE_FORWARD_OPTIONS_INIT;
    options.training = 1;
    options.step = (uint64_t)step;
    moe_report report = MOE_REPORT_INIT;
    double norm = 0;
    fill(x, N_TOKENS * H, (uint32_t)step);
    CHECK(moe_layer_forward(layer, x, N_TOKENS, &options, y, tape, &report) == MOE_OK);
    CHECK(moe_layer_zero_grad(layer) == MOE_OK);
    CHECK(moe_layer_backward(layer, tape, x, y, 1.0f, dx, NULL) == MOE_OK);
    CHECK(moe_optimizer_step_clipped(optimizer, parameters, count, 1.0, &norm) == MOE_OK);
    add(y, sizeof y);
    add(dx, sizeof dx);
    add(&norm, sizeof norm);
    add(&report.aux_loss, sizeof report.aux_loss);
    add(&report.entropy, sizeof report.entropy);
  }
  for (int64_t i = 0; i < count; i++) {
    size_t n = sizeof(float);
    for (int d = 0; d < parameters[i].rank; d++) n *= (size_t)parameters[i].shape[d];
    add(parameters[i].data, n);
  }

  moe_optimizer_free(optimizer);
  moe_tape_free(tape);
  moe_layer_free(layer);
}

int main(void) {
  const struct {
    const char *name;
    int32_t experts, top_k, kind, activation, weights;
    float dropout, limit;
  } kinds[] = {
      {"gelu", 5, 2, MOE_EXPERT_MLP, MOE_ACTIVATION_GELU, MOE_ROUTER_WEIGHTS_SCORES, 0.0f, 0.0f},
      {"gelu, dropout", 33, 4, MOE_EXPERT_MLP, MOE_ACTIVATION_GELU, MOE_ROUTER_WEIGHTS_SCORES, 0.2f, 0.0f},
      {"gelu tanh", 7, 1, MOE_EXPERT_MLP, MOE_ACTIVATION_GELU_TANH, MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, 0.0f, 0.0f},
      {"relu", 64, 20, MOE_EXPERT_MLP, MOE_ACTIVATION_RELU, MOE_ROUTER_WEIGHTS_SCORES, 0.1f, 0.0f},
      {"swiglu", 16, 3, MOE_EXPERT_GATED, MOE_ACTIVATION_SILU, MOE_ROUTER_WEIGHTS_SCORES, 0.0f, 0.0f},
      {"geglu, dropout", 3, 3, MOE_EXPERT_GATED, MOE_ACTIVATION_GELU, MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, 0.3f, 0.0f},
      {"relu squared", 5, 2, MOE_EXPERT_MLP, MOE_ACTIVATION_RELU2, MOE_ROUTER_WEIGHTS_SCORES, 0.0f, 0.0f},
      {"quick gelu", 5, 2, MOE_EXPERT_MLP, MOE_ACTIVATION_QUICK_GELU, MOE_ROUTER_WEIGHTS_SCORES, 0.0f, 0.0f},
      {"linear", 6, 2, MOE_EXPERT_LINEAR, 0, MOE_ROUTER_WEIGHTS_SCORES, 0.0f, 0.0f},
      {"swiglu, clamps", 9, 2, MOE_EXPERT_GATED, MOE_ACTIVATION_SILU, MOE_ROUTER_WEIGHTS_SCORES, 0.1f, 0.3f},
  };
  const struct {
    int32_t matmul, threads;
  } ways[] = {{MOE_MATMUL_NATIVE, 1}, {MOE_MATMUL_NATIVE, 2}, {MOE_MATMUL_REFERENCE, 1}};

  for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
    uint64_t first = 0;
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
      moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
      config.matmul = ways[w].matmul;
      config.n_threads = ways[w].threads;
      moe_context *context = NULL;
      if (moe_context_create(&config, &context) != MOE_OK) {
        puts("no fused multiply-add: no bits to compare");
        return strstr(moe_last_error_message(), "fused multiply-add") ? 0 : 1;
      }
      moe_layer_config layer = MOE_LAYER_CONFIG_INIT;
      layer.hidden_size = H;
      layer.intermediate_size = kinds[k].kind == MOE_EXPERT_LINEAR ? 0 : I;
      layer.n_experts = kinds[k].experts;
      layer.top_k = kinds[k].top_k;
      layer.expert_kind = kinds[k].kind;
      layer.activation = kinds[k].activation;
      layer.router_weights = kinds[k].weights;
      layer.dropout = kinds[k].dropout;
      layer.glu_limit = kinds[k].limit;
      layer.glu_alpha = kinds[k].limit > 0 ? 1.702f : 0.0f;
      layer.glu_offset = kinds[k].limit > 0 ? 1.0f : 0.0f;
      layer.balance_coef = 0.01f;
      layer.z_coef = 0.001f;
      train(context, &layer, k % 2 == 1);
      moe_context_free(context);
      if (w == 0) first = hash;
      CHECK(hash == first);
    }
    printf("%-16s %016llx\n", kinds[k].name, (unsigned long long)first);
  }
  return 0;
}
