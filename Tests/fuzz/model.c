/* A whole model of any configuration, and calls on it in any order. */
#include "fuzz.h"

static moe_model_config config;
static moe_context *context;
static moe_model *model;
static moe_model_tape *tape;
static moe_cache *cache;
static moe_optimizer *optimizer;
static moe_model_input taped; /* what the tape was filled with, if it was */
static int64_t cached;        /* sequences of the cache */

/* A length that arrays are made for. */
static int is_small(int64_t count) { return count > 0 && count <= 64; }

static void list_tables(void) {
  config.n_rotary_tables = decide() % 8 == 1 ? 1 + decide() % 2 : 0;
  moe_rotary_table *tables = config.n_rotary_tables ? array(config.n_rotary_tables, sizeof *tables) : NULL;
  for (int64_t n = 0; tables && n < config.n_rotary_tables; n++) {
    moe_rotary_table table = {0};
    table.theta = 100;
    table.rotary_size = 2;
    DISTURB(table, offsetof(moe_rotary_table, frequencies), offsetof(moe_rotary_table, long_frequencies));
    if (decide() & 1 && is_small(table.rotary_size)) table.frequencies = array(table.rotary_size / 2, sizeof(double));
    if (decide() & 1 && is_small(table.rotary_size)) table.long_frequencies = array(table.rotary_size / 2, sizeof(double));
    tables[n] = table;
  }
  config.rotary_tables = tables;
  if (tables && decide() % 4) config.rope_theta = 0; /* one or the other */
}

static void list_layers(void) {
  moe_model_layer_config *layers = NULL;
  if (decide() % 8 == 1 && is_small(config.n_layers)) layers = array(config.n_layers, sizeof *layers);
  for (int64_t n = 0; layers && n < config.n_layers; n++) {
    moe_model_layer_config layer = {0};
    DISTURB(layer, sizeof layer); /* no pointer */
    layers[n] = layer;
  }
  config.layers = layers;
}

static void configure(void) {
  static moe_layer_config experts;
  if (decide() % 4 == 1) {
    moe_encoder_layer_config_init(&config, sizeof config);
  } else {
    moe_model_config_init(&config, sizeof config);
    config.vocabulary_size = 11;
    config.causal = 1;
    config.rope_theta = 10000;
    config.norm = MOE_NORM_RMS;
  }
  config.n_heads = 1 + decide() % 3;
  config.hidden_size = config.n_heads * 4;
  config.n_layers = 1 + decide() % 3;
  config.dense_intermediate_size = 8;
  DISTURB(config, offsetof(moe_model_config, moe), offsetof(moe_model_config, rotary_tables),
          offsetof(moe_model_config, n_rotary_tables), offsetof(moe_model_config, layers));
  moe_layer_config_init(&experts, sizeof experts);
  experts.intermediate_size = 1 + decide() % 9;
  experts.n_experts = 4;
  experts.top_k = 2;
  if (decide() & 1) experts.unallocated = MOE_UNALLOCATED_EXPERT_GRADIENTS;
  DISTURB(experts, offsetof(moe_layer_config, expert_groups), offsetof(moe_layer_config, hash_table),
          offsetof(moe_layer_config, losses), offsetof(moe_layer_config, n_expert_groups), offsetof(moe_layer_config, n_losses));
  config.moe = decide() % 4 ? &experts : NULL;
  list_tables();
  list_layers();
}

static int has_tokens(void) { return config.vocabulary_size > 0; }
static __int128 tokens_of(const moe_model_input *input) {
  return input->n_sequences < 0 || input->sequence_length < 0 ? 0 : (__int128)input->n_sequences * input->sequence_length;
}
static __int128 times(__int128 a, int64_t b) { return b < 0 ? 0 : a * b; }

/* Gives an input whose sizes are set the arrays that they ask for. */
static void fill(moe_model_input *input) {
  __int128 tokens = tokens_of(input), square = times(input->sequence_length < 0 ? 0 : input->sequence_length, input->sequence_length);
  uint8_t given = decide();
  if (has_tokens() != (given == 0xFF)) input->tokens = indices(tokens, 4, config.vocabulary_size);
  if (!input->tokens) input->hidden = array(times(tokens, config.hidden_size), 4);
  if (given & 1 && has_tokens()) input->targets = indices(tokens, 4, config.vocabulary_size);
  if (given & 2) input->mask = mask(square);
  if (given & 4) input->added_mask = array(square, 4);
  if (given & 8) input->valid_mask = mask(tokens);
  if (given & 16) input->positions = indices(tokens, 8, config.max_positions ? config.max_positions : 50);
  if (given & 32) input->loss_mask = mask(tokens);
}

#define DISTURB_INPUT(input) \
  DISTURB(input, offsetof(moe_model_input, tokens), offsetof(moe_model_input, hidden), offsetof(moe_model_input, targets), \
          offsetof(moe_model_input, mask), offsetof(moe_model_input, added_mask), offsetof(moe_model_input, valid_mask), \
          offsetof(moe_model_input, positions), offsetof(moe_model_input, loss_mask))

static void forget(moe_model_input *input) {
  input->tokens = input->targets = NULL;
  input->hidden = input->added_mask = NULL;
  input->mask = input->valid_mask = input->loss_mask = NULL;
  input->positions = NULL;
}

static moe_model_input new_input(void) {
  moe_model_input input = MOE_MODEL_INPUT_INIT;
  input.n_sequences = 1 + decide() % 3;
  input.sequence_length = 1 + decide() % 8;
  input.training = decide() & 1;
  DISTURB_INPUT(input);
  return input;
}

static void plan(void) {
  moe_model_input input = new_input();
  moe_model_plan found = MOE_MODEL_PLAN_INIT;
  DISTURB(found, offsetof(moe_model_plan, keep));
  if (decide() & 1) found.keep = array(config.n_layers, 4);
  fill(&input);
  if (is_impossible) forget(&input);
  check(moe_model_plan_memory(model, &input, decide() & 1, &found));
}

static void forward(void) {
  moe_model_input input = new_input();
  fill(&input);
  __int128 tokens = tokens_of(&input);
  uint8_t wanted = decide();
  float *hidden = wanted & 1 ? array(times(tokens, config.hidden_size), 4) : NULL;
  float *logits = wanted & 2 ? array(times(tokens, config.vocabulary_size), 4) : NULL;
  moe_model_report report = MOE_MODEL_REPORT_INIT;
  if (wanted & 4 && config.n_layers <= 16) {
    report.layers = array(config.n_layers, sizeof(moe_report));
    for (int64_t i = 0; report.layers && i < config.n_layers; i++) {
      moe_report layer = MOE_REPORT_INIT;
      if (wanted & 8) layer.tokens_per_expert = array(64, 8);
      if (wanted & 16) layer.mean_probability = array(64, 4);
      report.layers[i] = layer;
    }
  }
  if (wanted & 32) report.token_losses = array(tokens, 4);
  if (is_impossible || (config.moe && config.moe->n_experts > 64)) return;
  moe_status found = check(moe_model_forward(model, &input, hidden, logits, wanted & 64 ? NULL : tape, &report));
  if (!(wanted & 64) && !found) taped = input;
}

/* Of the model's parameters as they are now, or all but one. */
static void make_optimizer(void) {
  moe_tensor tensors[128];
  int64_t count = 0, n = 0;
  check(moe_model_parameter_count(model, &count));
  for (int64_t i = 0; i < count && n < 128; i++) {
    moe_tensor tensor = MOE_TENSOR_INIT;
    if (check(moe_model_parameter(model, i, &tensor)) || tensor.buffer || tensor.frozen) continue;
    if (decide() % 64 != 1) tensors[n++] = tensor;
  }
  check(moe_adamw_create(context, NULL, tensors, n, &optimizer));
}

static void backward(void) {
  moe_model_input input = taped;
  if (decide() % 4 == 1) DISTURB_INPUT(input);
  /* Of other sizes than the tape's the call has to be refused; its arrays are as long as either asks for. */
  __int128 tokens = tokens_of(&input) > tokens_of(&taped) ? tokens_of(&input) : tokens_of(&taped);
  if (tokens != tokens_of(&taped) || input.sequence_length != taped.sequence_length) {
    forget(&input);
    fill(&input);
  }
  uint8_t wanted = decide();
  const float *dhidden = wanted & 1 ? array(times(tokens, config.hidden_size), 4) : NULL;
  float *dinput = wanted & 2 ? array(times(tokens, config.hidden_size), 4) : NULL;
  if (is_impossible) return;
  if (wanted & 4 && !optimizer) make_optimizer();
  if (wanted & 4)
    check(moe_model_backward_step(model, tape, &input, real(), dhidden, dinput, optimizer, real()));
  else
    check(moe_model_backward(model, tape, &input, real(), dhidden, dinput));
}

static void read(void) {
  if (!cache) {
    cached = decide() % 8 ? 1 + decide() % 3 : integer();
    if (check(moe_cache_create(model, cached, decide() % 8 ? 8 : integer(), &cache))) return;
  }
  int64_t n = decide() % 8 ? decide() % 5 : integer();
  const int32_t *tokens = indices(n < 0 ? 0 : times(cached, n), 4, config.vocabulary_size);
  float *logits = array(times(cached, config.vocabulary_size), 4);
  moe_read_options options = MOE_READ_OPTIONS_INIT;
  uint8_t given = decide();
  if (given & 1) options.valid_mask = mask(n < 0 ? 0 : times(cached, n));
  if (given & 2) options.positions = indices(n < 0 ? 0 : times(cached, n), 8, 50);
  if (!is_impossible) check(moe_model_read_with(model, cache, tokens, n, given & 4 ? NULL : &options, logits));
  if (decide() % 4 == 1) check(moe_cache_truncate(cache, decide() & 1 ? 0 : integer()));
}

static void parameters(void) {
  int64_t count, index = 0;
  moe_tensor tensor = MOE_TENSOR_INIT;
  moe_layer *layer = NULL;
  check(moe_model_parameter_count(model, &count));
  check(moe_model_parameter(model, decide() % 4 ? decide() % count : integer(), &tensor));
  check(moe_model_find_parameter(model, "layers.1.ffn.experts.up.weight", &index));
  check(moe_model_zero_grad(model));
  if (decide() % 4 == 1) check(moe_model_freeze(model, decide() % 4 ? decide() % count : integer()));
  if (decide() % 4 == 0) check(moe_model_prepare(model, decide() % 4 ? decide() % 3 : (int32_t)integer()));
  if (!check(moe_model_layer(model, decide() % 4 ? decide() % 4 : integer(), &layer)))
    check(moe_layer_prepare(layer, decide() % 11));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static void (*const calls[])(void) = {forward, backward, plan, read, parameters};
  begin(data, size);
  model = NULL, tape = NULL, cache = NULL, optimizer = NULL;
  memset(&taped, 0, sizeof taped);
  moe_model_input_init(&taped, sizeof taped);
  configure();
  context = new_context();
  if (context && !check(moe_model_create(context, &config, &model)) && !check(moe_model_tape_create(model, &tape))) {
    forward();
    backward();
    for (int n = 0; n < 6 && bytes_left > 0; n++) {
      is_impossible = 0;
      calls[decide() % 5]();
    }
  }
  moe_cache_free(cache);
  moe_model_tape_free(tape);
  moe_optimizer_free(optimizer);
  moe_model_free(model);
  return end(context);
}
