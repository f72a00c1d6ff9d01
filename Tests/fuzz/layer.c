/* A layer of any configuration, and calls on it in any order with any options. */
#include "fuzz.h"

static moe_layer_config config;
static moe_layer *layer;
static moe_tape *tape;
static moe_routing *routing;
static moe_statistics *statistics;
static moe_optimizer *optimizer;
static moe_context *context;
static int64_t most_tokens; /* of all forward calls: the tape may be of any of them */
static moe_report report;

static void (*const presets[])(moe_layer_config *, size_t) = {
    moe_layer_config_init,    moe_preset_mixtral,    moe_preset_qwen2_moe,     moe_preset_deepseek_v2,
    moe_preset_deepseek_v3,   moe_preset_gpt_oss,    moe_preset_granite_moe,   moe_preset_phimoe,
    moe_preset_llama4,        moe_preset_ernie4_5,   moe_preset_longcat_flash, moe_preset_switch,
    moe_preset_jetmoe,        moe_preset_jamba,      moe_preset_dbrx,          moe_preset_llama_cpp,
    moe_preset_gemma4,        moe_preset_nemotron_h, moe_preset_deepseek_v4,   moe_preset_nllb_moe,
};

static int64_t choices(void) { return config.router == MOE_ROUTER_EXPERT_CHOICE ? config.n_experts : config.top_k; }
static size_t token_bytes(void) { return config.io_dtype == MOE_DTYPE_BF16 ? 2 : 4; }

static void configure(void) {
  static moe_expert_group groups[20];
  static moe_loss_term losses[20];
  presets[decide() % (sizeof presets / sizeof *presets)](&config, sizeof config);
  config.hidden_size = 1 + decide() % 40;
  if (config.n_expert_groups == 0) {
    config.intermediate_size = config.expert_kind == MOE_EXPERT_LINEAR ? 0 : 1 + decide() % 40;
    config.n_experts = 8;
  }
  config.top_k = 2;
  if (config.n_groups) config.n_groups = 4, config.top_groups = 2;
  config.router = decide() % 8 ? config.router : decide() % 8;
  for (int i = 0; i < 20; i++) {
    int32_t kind = i % 3;
    groups[i] = (moe_expert_group){.n_experts = 2, .intermediate_size = kind == MOE_EXPERT_LINEAR ? 0 : 5, .expert_kind = kind};
    losses[i] = (moe_loss_term){.kind = i < 6 ? decide() % 24 : 0, .coefficient = 0.1f};
  }
  /* The preset's list into one of our own, as long as any number of groups that is claimed below. */
  if (config.n_expert_groups > 0) {
    memcpy(groups, config.expert_groups, (size_t)config.n_expert_groups * sizeof *groups);
    config.expert_groups = groups;
  }
  if (decide() % 8 == 1) {
    disturb(groups, 4 * sizeof *groups, NULL, 0);
    config.expert_groups = groups;
    config.n_expert_groups = 4;
    config.expert_kind = config.activation = config.expert_bias = 0;
    config.intermediate_size = 0;
    config.dropout = config.glu_limit = config.glu_alpha = config.glu_offset = 0;
  }
  config.n_losses = decide() % 6;
  if (config.n_losses) config.losses = losses;
  DISTURB(config, offsetof(moe_layer_config, expert_groups), offsetof(moe_layer_config, hash_table),
          offsetof(moe_layer_config, losses));
  if (config.n_expert_groups > 20) config.n_expert_groups = 17; /* lists longer than this caller has */
  if (config.n_losses > 20) config.n_losses = 17;
  if (config.n_expert_groups > 0 && !config.expert_groups) config.expert_groups = groups;
  if (config.n_losses > 0 && !config.losses) config.losses = losses;
  if (decide() % 4 == 1 && config.vocabulary_size > 0 && config.top_k > 0) {
    config.hash_table = indices((__int128)config.vocabulary_size * config.top_k, 4, config.n_experts);
    if (is_impossible) config.hash_table = NULL;
  }
}

static void disturb_options(moe_forward_options *options) {
  DISTURB(*options, offsetof(moe_forward_options, valid_mask), offsetof(moe_forward_options, token_ids),
          offsetof(moe_forward_options, expert_indices), offsetof(moe_forward_options, expert_weights),
          offsetof(moe_forward_options, global_counts), offsetof(moe_forward_options, record),
          offsetof(moe_forward_options, replay), offsetof(moe_forward_options, scratch),
          offsetof(moe_forward_options, scratch_size), offsetof(moe_forward_options, loss_mask),
          offsetof(moe_forward_options, noise), offsetof(moe_forward_options, jitter), offsetof(moe_forward_options, second));
}

static void plan(void) {
  moe_forward_options options = MOE_FORWARD_OPTIONS_INIT;
  moe_plan found = MOE_PLAN_INIT;
  char text[200];
  disturb_options(&options);
  if (check(moe_layer_plan(layer, integer(), &options, decide() & 1, &found)) && decide() % 2) return;
  DISTURB(found, 0);
  size_t length;
  (void)!moe_plan_describe(&found, text, decide() % sizeof text, &length);
}

static void forward(void) {
  __int128 tokens = decide() % 16;
  most_tokens = tokens > most_tokens ? (int64_t)tokens : most_tokens;
  moe_forward_options options = MOE_FORWARD_OPTIONS_INIT;
  options.training = decide() & 1;
  disturb_options(&options);
  uint8_t given = decide();
  if (given & 1) options.valid_mask = mask(tokens);
  if (given & 2) options.token_ids = indices(tokens, 8, config.vocabulary_size);
  if (given & 4 || config.router == MOE_ROUTER_EXTERNAL) options.expert_indices = indices(tokens * config.top_k, 4, config.n_experts);
  if (given & 8 || config.router == MOE_ROUTER_EXTERNAL) options.expert_weights = array(tokens * config.top_k, 4);
  if (given & 16) options.global_counts = indices(config.n_experts, 8, 100);
  if (given & 32) options.record = routing;
  if (given & 64) options.replay = routing;
  if (given & 128) {
    options.scratch_size = (size_t)decide() << decide() % 14;
    options.scratch = array(options.scratch_size, 1);
  }
  uint8_t numbers = decide();
  if (numbers & 1) options.loss_mask = mask(tokens);
  if (numbers & 2) options.noise = array(tokens * config.n_experts, 4);
  if (numbers & 4) options.jitter = array(tokens * config.hidden_size, 4);
  if (numbers & 8) options.second = array(tokens, 4);
  moe_report wanted = MOE_REPORT_INIT;
  uint8_t reported = decide();
  if (reported & 1) wanted.tokens_per_expert = array(config.n_experts, 8);
  if (reported & 2) wanted.mean_probability = array(config.n_experts, 4);
  if (reported & 4) wanted.expert_indices = array(tokens * choices(), 4);
  if (reported & 8) wanted.expert_weights = array(tokens * choices(), 4);
  if (reported & 16) wanted.dropped_per_expert = array(config.n_experts, 8);
  if (reported & 32) wanted.losses = array(config.n_losses, 4);
  /* At most as many sequences as tokens. */
  if (numbers & 16) wanted.sequence_counts = array((tokens + 1) * config.n_experts, 8);
  if (numbers & 32) wanted.sequence_probability = array((tokens + 1) * config.n_experts, 4);
  if (numbers & 64) wanted.sequence_valid = array(tokens + 1, 8);
  const void *x = array(tokens * config.hidden_size, token_bytes());
  void *y = array(tokens * config.hidden_size, token_bytes());
  if (is_impossible) return;
  if (!check(moe_layer_forward(layer, x, (int64_t)tokens, decide() % 4 ? &options : NULL, y, decide() % 4 ? tape : NULL,
                               reported & 64 ? NULL : &wanted)))
    report = wanted;
}

static void backward(void) {
  moe_backward_options options = MOE_BACKWARD_OPTIONS_INIT;
  DISTURB(options, offsetof(moe_backward_options, d_mean_probability), offsetof(moe_backward_options, d_expert_weights),
          offsetof(moe_backward_options, scratch), offsetof(moe_backward_options, scratch_size),
          offsetof(moe_backward_options, optimizer), offsetof(moe_backward_options, d_sequence_probability));
  uint8_t given = decide();
  __int128 values = (__int128)most_tokens * config.hidden_size;
  if (given & 1) options.d_mean_probability = array(config.n_experts, 4);
  if (given & 2) options.d_expert_weights = array((__int128)most_tokens * choices(), 4);
  if (given & 4) {
    options.scratch_size = (size_t)decide() << decide() % 14;
    options.scratch = array(options.scratch_size, 1);
  }
  if (given & 8) options.optimizer = optimizer;
  if (given & 64) options.d_sequence_probability = array(((__int128)most_tokens + 1) * config.n_experts, 4);
  const void *x = array(values, token_bytes());
  const void *dy = array(values, token_bytes());
  void *dx = given & 16 ? array(values, token_bytes()) : NULL;
  if (is_impossible) return;
  check(moe_layer_backward(layer, tape, x, dy, (float)real(), dx, given & 32 ? NULL : &options));
}

static void parameters(void) {
  static const char *const names[] = {"router.weight", "", "experts.up.weight", "router.router.router.router"};
  int64_t count = 0, index = 0;
  moe_tensor tensor = MOE_TENSOR_INIT;
  check(moe_layer_parameter_count(layer, &count));
  (void)!moe_layer_find_parameter(layer, names[decide() % 4], &index);
  index = decide() % 4 ? decide() % (count + 1) : integer();
  if (check(moe_layer_parameter(layer, index, &tensor))) return;
  __int128 elements = 1;
  for (int i = 0; i < tensor.rank; i++) elements *= tensor.shape[i];
  if (decide() % 4 == 1) {
    void *data = array(elements, tensor.dtype == MOE_DTYPE_BF16 ? 2 : 4);
    float *grad = decide() & 1 ? array(elements, 4) : NULL;
    if (!is_impossible) check(moe_layer_bind_parameter(layer, index, data, grad));
  }
}

static void step(void) {
  moe_tensor tensors[64];
  int64_t count = 0, n = 0;
  check(moe_layer_parameter_count(layer, &count));
  for (int64_t i = 0; i < count && n < 64; i++) {
    moe_tensor tensor = MOE_TENSOR_INIT;
    if (!check(moe_layer_parameter(layer, i, &tensor)) && (tensor.grad || decide() % 16 == 1)) tensors[n++] = tensor;
  }
  if (decide() % 8 == 1 && n > 1) tensors[0] = tensors[n - 1];
  if (!optimizer) {
    moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
    DISTURB(adamw, 0);
    if (check(moe_adamw_create(context, &adamw, tensors, n, &optimizer))) return;
  }
  double norm = 0;
  if (decide() & 1) {
    check(moe_optimizer_step(optimizer, tensors, n));
  } else {
    check(moe_optimizer_step_clipped(optimizer, tensors, n, real(), &norm));
  }
}

static void record(void) {
  size_t size = 0;
  check(moe_routing_saved_size(routing, &size));
  void *memory = array(size, 1);
  if (is_impossible || check(moe_routing_save(routing, memory, size))) return;
  for (int changes = decide() % 4; size && memory && changes > 0; changes--) ((uint8_t *)memory)[decide() % size] ^= decide();
  check(moe_routing_load(routing, memory, size));
}

static void count(void) {
  if (!statistics && check(moe_statistics_create(context, config.n_experts, &statistics))) return;
  moe_report given = report, sums = MOE_REPORT_INIT;
  DISTURB(given, offsetof(moe_report, tokens_per_expert), offsetof(moe_report, mean_probability),
          offsetof(moe_report, expert_indices), offsetof(moe_report, expert_weights),
          offsetof(moe_report, dropped_per_expert), offsetof(moe_report, losses),
          offsetof(moe_report, sequence_counts), offsetof(moe_report, sequence_probability),
          offsetof(moe_report, sequence_valid));
  check(moe_statistics_add(statistics, &given));
  if (decide() % 8 == 1) check(moe_statistics_reset(statistics));
  if (decide() & 1) sums.tokens_per_expert = array(config.n_experts, 8);
  if (decide() & 1) sums.mean_probability = array(config.n_experts, 4);
  if (!is_impossible) check(moe_statistics_read(statistics, &sums));
}

static void rest(void) {
  switch (decide() % 6) {
    case 4: (void)!moe_layer_set_loss_coefficient(layer, (int32_t)(decide() % 5), (float)real()); break;
    case 0: check(moe_layer_prepare(layer, decide() % 4 ? decide() % 11 : (int32_t)integer())); break;
    case 1: check(moe_layer_initialize(layer)); break;
    case 2: (void)!moe_layer_zero_grad(layer); break;
    case 3: {
      const int64_t *counts = indices(config.n_experts, 8, 1000);
      if (!is_impossible) check(moe_layer_update_selection_bias(layer, counts, (float)real(), decide() % 3));
      break;
    }
    default: {
      size_t size = (size_t)decide() << decide() % 14;
      void *memory = array(size, 1);
      if (!is_impossible) check(moe_tape_bind(tape, memory, size));
    }
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  begin(data, size);
  layer = NULL, tape = NULL, routing = NULL, statistics = NULL, optimizer = NULL;
  most_tokens = 0;
  memset(&report, 0, sizeof report);
  configure();
  context = new_context();
  if (context && !check(moe_layer_create(context, &config, &layer)) && !check(moe_tape_create(layer, &tape)) &&
      !check(moe_routing_create(context, &routing))) {
    static void (*const calls[])(void) = {forward, backward, plan, parameters, step, record, count, rest, forward, backward};
    forward();
    backward();
    for (int n = 0; n < 8 && bytes_left > 0; n++) {
      is_impossible = 0;
      calls[decide() % (sizeof calls / sizeof *calls)]();
    }
  }
  moe_tape_free(tape);
  moe_routing_free(routing);
  moe_statistics_free(statistics);
  moe_optimizer_free(optimizer);
  moe_layer_free(layer);
  return end(context);
}
