/* Every call fits the stack that moe.h promises it fits: each runs in a thread whose stack is that large, a page that nobody may
 * touch below it.  Instruction sets and ways to multiply differ in what they need, so all are tried. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <moe_experts.h>
#include <moe_model.h>
#include <moe_ranks.h>

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

enum { V = 40, H = 32, B = 2, S = 150, T = B * S, STACK = 80 << 10, PATTERN = 0x5a, N_TENSORS = 64 };

static moe_context *context;
static int64_t most_used;
static const char *folder;

#ifndef SANITIZED
struct started {
  void *(*call)(void *);
  void *argument;
  unsigned char *floor; /* [out] the lowest byte that may be touched */
};

/* The stack ends STACK bytes below what the system and this function have taken of it. */
static void *start(void *argument) {
  struct started *started = (struct started *)argument;
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  unsigned char *end = (unsigned char *)((size_t)(unsigned char *)&page / page * page) - STACK;
  CHECK(mprotect(end - page, page, PROT_NONE) == 0);
  started->floor = end;
  return started->call(started->argument);
}

/* A call in a thread of its own; notes how much of the stack it touched. */
static void on_small_stack(const char *name, void *(*call)(void *), void *argument) {
  const size_t size = 16 * STACK;
  unsigned char *memory =
      (unsigned char *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  memset(memory, PATTERN, size);
  struct started started = {call, argument, NULL};
  pthread_attr_t attributes;
  pthread_t thread;
  CHECK(pthread_attr_init(&attributes) == 0);
  CHECK(pthread_attr_setstack(&attributes, memory, size) == 0);
  CHECK(pthread_create(&thread, &attributes, start, &started) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  pthread_attr_destroy(&attributes);
  int64_t untouched = 0;
  while (untouched < STACK && started.floor[untouched] == PATTERN) untouched++;
  if (STACK - untouched > most_used) {
    most_used = STACK - untouched;
    printf("%-24s %lld bytes\n", name, (long long)most_used);
  }
  CHECK(munmap(memory, size) == 0);
}
#else
/* A sanitizer's frames are not those that are shipped: the calls run, and their stack is not measured. */
static void on_small_stack(const char *name, void *(*call)(void *), void *argument) {
  (void)name;
  call(argument);
}
#endif

struct layer_call {
  const moe_layer_config *config;
  int32_t fused;
};

static float x[T * H], y[T * H], dx[T * H];
static moe_tensor tensors[N_TENSORS];

static void *layer_life(void *argument) {
  const struct layer_call *call = (const struct layer_call *)argument;
  moe_layer *layer = NULL;
  moe_tape *tape = NULL;
  moe_optimizer *optimizer = NULL;
  CHECK(moe_layer_create(context, call->config, &layer) == MOE_OK);
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);
  int64_t count = 0;
  CHECK(moe_layer_parameter_count(layer, &count) == MOE_OK && count <= N_TENSORS);
  int64_t trained = 0;
  for (int64_t i = 0; i < count; i++) {
    moe_tensor_init(&tensors[trained], sizeof tensors[0]);
    CHECK(moe_layer_parameter(layer, i, &tensors[trained]) == MOE_OK);
    if (call->fused || tensors[trained].grad) trained++;
  }
  for (size_t limited = 0; limited < 2; limited++) {
    moe_forward_options options = MOE_FORWARD_OPTIONS_INIT;
    moe_plan plan = MOE_PLAN_INIT;
    moe_report report = MOE_REPORT_INIT;
    options.training = 1;
    CHECK(moe_layer_plan(layer, T, &options, 1, &plan) == MOE_OK);
    if (limited) options.tape_policy = MOE_TAPE_LEAN;
    CHECK(moe_layer_forward(layer, x, T, &options, y, tape, &report) == MOE_OK);
    CHECK(moe_layer_backward(layer, tape, x, y, 1.0f, dx, NULL) == MOE_OK);
  }
  const int32_t form = call->config->weight_dtype == MOE_DTYPE_BF16 ? MOE_PREPARED_BF16 : MOE_PREPARED_F32;
  CHECK(moe_layer_prepare(layer, form) == MOE_OK);
  CHECK(moe_layer_forward(layer, x, T, NULL, y, NULL, NULL) == MOE_OK);
  double norm = 0;
  CHECK(moe_adamw_create(context, NULL, tensors, trained, &optimizer) == MOE_OK);
  CHECK(moe_optimizer_step_clipped(optimizer, tensors, trained, 1.0, &norm) == MOE_OK);
  CHECK(moe_clip_grad_norm(context, tensors, trained, 1.0, &norm) == MOE_OK);
  moe_optimizer_free(optimizer);
  char path[256];
  snprintf(path, sizeof path, "%s/layer.safetensors", folder);
  CHECK(moe_layer_save(layer, path, MOE_LAYOUT_LIBMOE, 0, call->config->weight_dtype) == MOE_OK);
  moe_checkpoint *checkpoint = NULL;
  CHECK(moe_checkpoint_open(context, path, &checkpoint) == MOE_OK);
  CHECK(moe_layer_load(layer, checkpoint, MOE_LAYOUT_LIBMOE, 0) == MOE_OK);
  moe_checkpoint_free(checkpoint);
  CHECK(remove(path) == 0);
  moe_tape_free(tape);
  moe_layer_free(layer);
  return NULL;
}

/** Of all parameters of a model that are trained. */
static moe_optimizer *optimizer_of(moe_model *model) {
  static moe_tensor tensors[200];
  int64_t count = 0, trained = 0;
  CHECK(moe_model_parameter_count(model, &count) == MOE_OK && count <= 200);
  for (int64_t i = 0; i < count; i++) {
    moe_tensor_init(&tensors[trained], sizeof(moe_tensor));
    CHECK(moe_model_parameter(model, i, &tensors[trained]) == MOE_OK);
    if (!tensors[trained].buffer) trained++;
  }
  moe_optimizer *optimizer = NULL;
  CHECK(moe_adamw_create(context, NULL, tensors, trained, &optimizer) == MOE_OK);
  return optimizer;
}

static void *model_life(void *argument) {
  const moe_model_config *config = (const moe_model_config *)argument;
  static float logits[T * V];
  int32_t tokens[T];
  for (int t = 0; t < T; t++) tokens[t] = t * t % V;
  uint8_t valid[T];
  for (int t = 0; t < T; t++) valid[t] = t > 3;
  moe_model *model = NULL;
  moe_model_tape *tape = NULL;
  moe_cache *cache = NULL;
  CHECK(moe_model_create(context, config, &model) == MOE_OK);
  CHECK(moe_model_tape_create(model, &tape) == MOE_OK);
  moe_model_input input = MOE_MODEL_INPUT_INIT;
  moe_model_report report = MOE_MODEL_REPORT_INIT;
  moe_model_plan plan = MOE_MODEL_PLAN_INIT;
  input.n_sequences = B;
  input.sequence_length = S;
  input.tokens = tokens;
  input.targets = tokens;
  input.valid_mask = valid;
  input.training = 1;
  moe_optimizer *optimizer = optimizer_of(model);
  for (int limited = 0; limited < 2; limited++) {
    CHECK(moe_model_plan_memory(model, &input, 1, &plan) == MOE_OK);
    CHECK(moe_model_forward(model, &input, y, logits, tape, &report) == MOE_OK);
    CHECK(moe_model_backward(model, tape, &input, 1.0, NULL, NULL) == MOE_OK);
    CHECK(moe_model_backward_step(model, tape, &input, 1.0, NULL, NULL, optimizer, 1) == MOE_OK);
    input.memory_limit = plan.total_bytes * 9 / 10;
  }
  moe_optimizer_free(optimizer);
  CHECK(moe_cache_create(model, B, S + 1, &cache) == MOE_OK);
  CHECK(moe_model_read(model, cache, tokens, S, logits) == MOE_OK);
  CHECK(moe_model_read(model, cache, tokens, 1, logits) == MOE_OK);
  moe_sampling sampling = MOE_SAMPLING_INIT;
  int32_t token = 0;
  sampling.temperature = 1;
  sampling.top_k = 5;
  CHECK(moe_sample(context, logits, V, &sampling, 0, &token) == MOE_OK);
  moe_cache_free(cache);
  moe_model_tape_free(tape);
  moe_model_free(model);
  return NULL;
}

/* A group of one rank, which sends to itself. */
static int32_t to_itself(void *user, const void *send, const int64_t *sent, const int64_t *from, void *receive,
                         const int64_t *received, const int64_t *to, void **request) {
  (void)user, (void)received;
  if (sent[0] > 0) memmove((char *)receive + to[0], (const char *)send + from[0], (size_t)sent[0]);
  *request = NULL;
  return 0;
}
static int32_t send_nothing(void *user, const void *data, int64_t bytes, int32_t to, int32_t tag, void **request) {
  (void)user, (void)data, (void)bytes, (void)to, (void)tag, (void)request;
  return 1;
}
static int32_t receive_nothing(void *user, void *data, int64_t bytes, int32_t from, int32_t tag, void **request) {
  (void)user, (void)data, (void)bytes, (void)from, (void)tag, (void)request;
  return 1;
}
static int32_t is_done(void *user, void *request, int32_t *done) {
  (void)user, (void)request;
  *done = 1;
  return 0;
}
static int32_t wait_for_none(void *user, void *request) {
  (void)user, (void)request;
  return 0;
}
static const char *no_words(void *user, int32_t code) {
  (void)user, (void)code;
  return "";
}
static void abandon_none(void *user, void *request) { (void)user, (void)request; }

/* Experts by call, of gated ones whose matrices lie column after column; over ranks too. */
static void *experts_life(void *argument) {
  enum { I = 48, E = 6, K = 2 };
  static const int64_t outputs[] = {I, I, H}; /* of gate, up, down */
  const int32_t dtype = *(const int32_t *)argument;
  static float matrices[3][E * I * H], sums[3][E * I * H], routing[T * K], d_routing[T * K], rows[T * K * H];
  static uint64_t saved[1 << 16];
  static int64_t indices[T * K];
  for (int i = 0; i < T * K; i++) indices[i] = i % (E + 1); /* one in seven is none */
  moe_experts_config config = MOE_EXPERTS_CONFIG_INIT;
  config.n_experts = E;
  config.hidden_size = H;
  config.intermediate_size = I;
  config.expert_kind = MOE_EXPERT_GATED;
  config.activation = MOE_ACTIVATION_SILU;
  moe_experts_call call = MOE_EXPERTS_CALL_INIT;
  call.n_tokens = T;
  call.top_k = K;
  call.expert_indices = indices;
  call.expert_weights = routing;
  call.index_dtype = MOE_DTYPE_I64;
  moe_expert_tensor weights[3], gradients[3];
  for (int i = 0; i < 3; i++) {
    moe_expert_tensor tensor = {i, dtype, matrices[i], NULL, {I * H, 1, outputs[i]}};
    weights[i] = tensor;
    tensor.dtype = MOE_DTYPE_BF16;
    tensor.data = sums[i];
    gradients[i] = tensor;
  }
  config.weights = weights;
  config.n_weights = 3;
  moe_experts_gradients wanted = MOE_EXPERTS_GRADIENTS_INIT;
  wanted.dx = dx;
  wanted.d_expert_weights = d_routing;
  wanted.tensors = gradients;
  wanted.n_tensors = 3;
  moe_plan plan = MOE_PLAN_INIT;
  CHECK(moe_experts_plan(context, &config, &call, &wanted, 1, &plan) == MOE_OK);
  CHECK(plan.tape_bytes <= sizeof saved);
  CHECK(moe_experts_forward(context, &config, &call, x, y, saved, plan.tape_bytes, rows) == MOE_OK);
  CHECK(moe_experts_backward(context, &config, &call, saved, plan.tape_bytes, x, y, &wanted) == MOE_OK);
  wanted.overwrite = 1;
  CHECK(moe_experts_backward(context, &config, &call, NULL, 0, x, y, &wanted) == MOE_OK);
  moe_experts_prepared *prepared = NULL;
  const moe_status status = moe_experts_prepare(context, &config, MOE_PREPARED_BF16, &prepared);
  CHECK(status == MOE_OK || status == MOE_ERROR_BAD_STATE); /* other products read no packed weights */
  call.prepared = prepared;
  CHECK(moe_experts_forward(context, &config, &call, x, y, NULL, 0, NULL) == MOE_OK);
  moe_experts_prepared_free(prepared);
  call.prepared = NULL;
  const moe_communicator alone = {sizeof alone,    NULL,    0,             1,        0,           to_itself, send_nothing,
                                  receive_nothing, is_done, wait_for_none, no_words, abandon_none};
  CHECK(moe_experts_ranks_create(context, &alone, E, NULL, &call.ranks) == MOE_OK);
  CHECK(moe_experts_plan(context, &config, &call, &wanted, 1, &plan) == MOE_OK);
  CHECK(plan.tape_bytes <= sizeof saved);
  CHECK(moe_experts_forward(context, &config, &call, x, y, saved, plan.tape_bytes, rows) == MOE_OK);
  CHECK(moe_experts_backward(context, &config, &call, saved, plan.tape_bytes, x, y, &wanted) == MOE_OK);
  CHECK(moe_experts_backward(context, &config, &call, NULL, 0, x, y, &wanted) == MOE_OK);
  moe_experts_ranks_free(call.ranks);
  return NULL;
}

static void *context_life(void *argument) {
  CHECK(moe_context_create((const moe_context_config *)argument, &context) == MOE_OK);
  return NULL;
}

static void try_all(void) {
  static const struct {
    const char *name;
    int32_t router, kind, weights, noise, batch_norm;
  } kinds[] = {
      {"mlp", MOE_ROUTER_TOKEN_CHOICE, MOE_EXPERT_MLP, MOE_DTYPE_F32, MOE_NOISE_LEARNED, 1},
      {"gated, bfloat16", MOE_ROUTER_TOKEN_CHOICE, MOE_EXPERT_GATED, MOE_DTYPE_BF16, MOE_NOISE_NONE, 0},
      {"gated, float16", MOE_ROUTER_TOKEN_CHOICE, MOE_EXPERT_GATED, MOE_DTYPE_F16, MOE_NOISE_NONE, 0},
      {"expert choice", MOE_ROUTER_EXPERT_CHOICE, MOE_EXPERT_GATED, MOE_DTYPE_F32, MOE_NOISE_NONE, 0},
      {"sinkhorn", MOE_ROUTER_SINKHORN, MOE_EXPERT_GATED, MOE_DTYPE_F32, MOE_NOISE_NONE, 0},
  };
  for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
    moe_layer_config config = MOE_LAYER_CONFIG_INIT;
    config.hidden_size = H;
    config.intermediate_size = 48;
    config.n_experts = 6;
    config.top_k = kinds[k].router == MOE_ROUTER_SINKHORN ? 1 : 2;
    config.router = kinds[k].router;
    config.expert_kind = kinds[k].kind;
    config.weight_dtype = kinds[k].weights;
    config.activation = k % 2 ? MOE_ACTIVATION_SILU : MOE_ACTIVATION_GELU;
    config.noise = kinds[k].noise;
    config.router_batch_norm = kinds[k].batch_norm;
    config.balance_coef = kinds[k].router == MOE_ROUTER_TOKEN_CHOICE ? 0.01f : 0.0f;
    config.n_shared_experts = 1;
    struct layer_call call = {&config, 0};
    on_small_stack(kinds[k].name, layer_life, &call);
    on_small_stack("experts by call", experts_life, &config.weight_dtype);
    if (kinds[k].kind != MOE_EXPERT_GATED) continue;
    moe_model_config model = MOE_MODEL_CONFIG_INIT;
    config.hidden_size = 0;
    model.hidden_size = H;
    model.n_layers = 3;
    model.n_heads = 4;
    model.n_kv_heads = 2;
    model.vocabulary_size = V;
    model.rope_theta = 10000;
    model.norm = MOE_NORM_RMS;
    model.final_norm = 1;
    model.causal = 1;
    model.qk_norm = 1;
    model.dropout = 0.1f;
    model.weight_dtype = kinds[k].weights;
    model.dense_intermediate_size = 48;
    model.dense_kind = MOE_EXPERT_GATED;
    model.moe = &config;
    model.moe_every = 2;
    on_small_stack(kinds[k].name, model_life, &model);
  }
}

int main(void) {
  static const int32_t matmul[] = {MOE_MATMUL_NATIVE, MOE_MATMUL_REFERENCE};
  static const int32_t instructions[] = {MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_BASE, MOE_INSTRUCTIONS_AVX2};
  char name[] = "/tmp/libmoe-stack-XXXXXX";
  folder = mkdtemp(name);
  CHECK(folder);
  for (int i = 0; i < T * H; i++) x[i] = (float)(i * 37 % 101) / 50 - 1;
  for (size_t i = 0; i < sizeof instructions / sizeof instructions[0]; i++) {
    for (size_t m = 0; m < sizeof matmul / sizeof matmul[0]; m++) {
      moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
      config.n_threads = 2;
      config.matmul = matmul[m];
      config.instructions = instructions[i];
      if (moe_context_create(&config, &context) != MOE_OK) {
        CHECK(strstr(moe_last_error_message(), "fused multiply-add"));
        continue;
      }
      moe_context_free(context);
      on_small_stack("context", context_life, &config);
      try_all();
      moe_context_free(context);
    }
  }
  CHECK(rmdir(folder) == 0);
  if (most_used > 0) printf("%lld bytes of stack at most\n", (long long)most_used);
  return 0;
}
