/* What bits.c does for layers: trains models of several kinds, continues what they have read, and prints a number for the
 * bits of all that comes out.  The reference and two threads have to give the same here. */
#include <moe_model.h>

#include <string.h>

#include "check.h"
#include "numbers.h"

enum { B = 3, S = 9, T = B * S, V = 29, H = 24, N_LAYERS = 2, N_STEPS = 3, N_DRAWN = 4, N_PARAMETERS = 64 };

static moe_model *new_model(moe_context *context, const moe_model_config *config, moe_tensor *parameters,
                            int64_t *count) {
  moe_model *model = NULL;
  CHECK(moe_model_create(context, config, &model) == MOE_OK);
  CHECK(moe_model_parameter_count(model, count) == MOE_OK && *count <= N_PARAMETERS);
  for (int64_t i = 0; i < *count; i++) {
    moe_tensor_init(&parameters[i], sizeof parameters[i]);
    CHECK(moe_model_parameter(model, i, &parameters[i]) == MOE_OK);
  }
  return model;
}

static void train(moe_context *context, const moe_model_config *config, moe_model *model, const moe_tensor *parameters,
                  int64_t count, const int32_t *tokens, size_t memory_limit) {
  static float x[T * H], y[T * H], dx[T * H]; /* [B,S,H] each */
  const int reads_tokens = config->vocabulary_size > 0;
  moe_model_tape *tape = NULL;
  moe_optimizer *optimizer = NULL;
  CHECK(moe_model_tape_create(model, &tape) == MOE_OK);
  CHECK(moe_adamw_create(context, NULL, parameters, count, &optimizer) == MOE_OK);
  for (int step = 0; step < N_STEPS; step++) {
    moe_model_input input = MOE_MODEL_INPUT_INIT;
    input.n_sequences = B;
    input.sequence_length = S;
    input.training = 1;
    input.step = (uint64_t)step;
    input.memory_limit = memory_limit;
    fill(x, T * H, (uint32_t)step);
    if (reads_tokens) {
      input.tokens = tokens;
      input.targets = tokens + 1;
    } else {
      input.hidden = x;
    }
    moe_model_report report = MOE_MODEL_REPORT_INIT;
    double norm = 0;
    CHECK(moe_model_zero_grad(model) == MOE_OK);
    CHECK(moe_model_forward(model, &input, y, NULL, tape, &report) == MOE_OK);
    CHECK(moe_model_backward(model, tape, &input, 1.0, y, reads_tokens ? NULL : dx) == MOE_OK);
    CHECK(moe_optimizer_step_clipped(optimizer, parameters, count, 1.0, &norm) == MOE_OK);
    add(y, sizeof y);
    if (!reads_tokens) add(dx, sizeof dx);
    add(&report.objective, sizeof report.objective);
    add(&norm, sizeof norm);
  }
  moe_optimizer_free(optimizer);
  moe_model_tape_free(tape);
}

/* Draws tokens for one sequence behind those it has read. */
static void continue_text(moe_context *context, const moe_model *model, const int32_t *tokens) {
  float logits[V];
  moe_cache *cache = NULL;
  moe_sampling sampling = MOE_SAMPLING_INIT;
  sampling.temperature = 0.8;
  sampling.top_k = 7;
  sampling.top_p = 0.9;
  CHECK(moe_cache_create(model, 1, S + N_DRAWN, &cache) == MOE_OK);
  CHECK(moe_model_read(model, cache, tokens, S, logits) == MOE_OK);
  for (int i = 0; i < N_DRAWN; i++) {
    int32_t token = 0;
    CHECK(moe_sample(context, logits, V, &sampling, (uint64_t)i, &token) == MOE_OK);
    CHECK(moe_model_read(model, cache, &token, 1, logits) == MOE_OK);
    add(&token, sizeof token);
    add(logits, sizeof logits);
  }
  moe_cache_free(cache);
}

/* The smallest limit that planning accepts, to some bytes: everything is computed again, and in chunks. */
static size_t least_memory(const moe_model *model, const int32_t *tokens) {
  size_t low = 1, high = (size_t)1 << 30;
  while (high - low > 64) {
    moe_model_input input = MOE_MODEL_INPUT_INIT;
    moe_model_plan plan = MOE_MODEL_PLAN_INIT;
    input.n_sequences = B;
    input.sequence_length = S;
    input.tokens = tokens;
    input.targets = tokens ? tokens + 1 : NULL;
    input.training = 1;
    input.memory_limit = low + (high - low) / 2;
    if (moe_model_plan_memory(model, &input, 1, &plan) == MOE_OK) {
      high = input.memory_limit;
    } else {
      low = input.memory_limit;
    }
  }
  return high;
}

int main(void) {
  static const struct {
    const char *name;
    int32_t norm, place, tied, learned_positions;
    int64_t vocabulary, kv_heads, moe_every; /* moe_every = 0: dense */
    double theta;
    float dropout;
  } kinds[] = {
      {"decoder, experts", MOE_NORM_RMS, MOE_NORM_PRE, 1, 0, V, 2, 1, 10000, 0.0f},
      {"decoder, mixed", MOE_NORM_LAYER, MOE_NORM_PRE, 0, 1, V, 4, 2, 0, 0.2f},
      {"decoder, dense", MOE_NORM_RMS, MOE_NORM_PRE, 0, 0, V, 1, 0, 500, 0.0f},
      {"encoder, experts", MOE_NORM_LAYER, MOE_NORM_POST, 0, 0, 0, 4, 1, 0, 0.1f},
      {"attention alone", MOE_NORM_LAYER, MOE_NORM_NONE, 0, 0, 0, 4, 0, 0, 0.0f},
  };
  static const struct {
    int32_t matmul, threads, limited;
  } ways[] = {
      {MOE_MATMUL_NATIVE, 1, 0}, {MOE_MATMUL_NATIVE, 2, 0}, {MOE_MATMUL_NATIVE, 2, 1}, {MOE_MATMUL_REFERENCE, 1, 0}};
  int32_t tokens[T + 1];
  for (int t = 0; t <= T; t++) tokens[t] = t * t % V;

  for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
    uint64_t first = 0;
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
      moe_context_config context_config = MOE_CONTEXT_CONFIG_INIT;
      context_config.matmul = ways[w].matmul;
      context_config.n_threads = ways[w].threads;
      moe_context *context = NULL;
      if (moe_context_create(&context_config, &context) != MOE_OK) {
        puts("no fused multiply-add: no bits to compare");
        return strstr(moe_last_error_message(), "fused multiply-add") ? 0 : 1;
      }
      moe_layer_config experts = MOE_LAYER_CONFIG_INIT;
      experts.intermediate_size = 20;
      experts.n_experts = 5;
      experts.top_k = 2;
      experts.expert_kind = MOE_EXPERT_GATED;
      experts.activation = MOE_ACTIVATION_SILU;
      experts.balance_coef = 0.01f;
      experts.dropout = kinds[k].dropout;
      moe_model_config config = MOE_MODEL_CONFIG_INIT;
      config.hidden_size = H;
      config.n_layers = N_LAYERS;
      config.n_heads = 4;
      config.n_kv_heads = kinds[k].kv_heads;
      config.vocabulary_size = kinds[k].vocabulary;
      config.max_positions = kinds[k].learned_positions ? S + N_DRAWN : 0;
      config.rope_theta = kinds[k].theta;
      config.norm = kinds[k].norm;
      config.norm_place = kinds[k].place;
      config.final_norm = kinds[k].place == MOE_NORM_PRE;
      config.causal = kinds[k].vocabulary > 0;
      config.qkv_bias = kinds[k].norm == MOE_NORM_LAYER;
      config.output_bias = config.qkv_bias;
      config.qk_norm = kinds[k].theta > 0;
      config.tied_output = kinds[k].tied;
      config.dropout = kinds[k].dropout;
      config.attention_dropout = kinds[k].dropout;
      config.moe = kinds[k].moe_every ? &experts : NULL;
      config.moe_every = kinds[k].moe_every;
      if (kinds[k].moe_every != 1 && kinds[k].place != MOE_NORM_NONE) config.dense_intermediate_size = 33;
      moe_tensor parameters[N_PARAMETERS];
      int64_t count = 0;
      moe_model *model = new_model(context, &config, parameters, &count);

      const int32_t *read = kinds[k].vocabulary > 0 ? tokens : NULL;
      begin_hash();
      train(context, &config, model, parameters, count, tokens, ways[w].limited ? least_memory(model, read) : 0);
      if (read) continue_text(context, model, read);
      for (int64_t i = 0; i < count; i++) {
        size_t size = sizeof(float);
        for (int d = 0; d < parameters[i].rank; d++) size *= (size_t)parameters[i].shape[d];
        add(parameters[i].data, size);
      }
      moe_model_free(model);
      moe_context_free(context);
      if (w == 0) first = hash;
      CHECK(hash == first);
    }
    printf("%-18s %016llx\n", kinds[k].name, (unsigned long long)first);
  }
  return 0;
}
