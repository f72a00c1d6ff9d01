/* The blocks around a layer, with any sizes: sizes that no memory could hold are refused, all others get their arrays. */
#include "fuzz.h"

static moe_context *context;
static const __int128 beyond = (__int128)1 << 63; /* bytes that no array has */
static int is_refused;                            /* some array would have to be that long */

/* A size of an argument. */
static int64_t size_of(void) { return decide() % 16 ? 1 + decide() % 20 : integer(); }

static void *floats(__int128 count) {
  if (count * 4 >= beyond) is_refused = 1;
  return array(count, 4);
}

static __int128 times(int64_t a, int64_t b) { return a < 0 || b < 0 ? 0 : (__int128)a * b; }
/* Of three sizes; beyond 2^124 it is a number as large. */
static __int128 times3(int64_t a, int64_t b, int64_t c) {
  __int128 two = times(a, b);
  return c <= 0 ? 0 : two > beyond ? beyond : two * c;
}

/* Whether the call can be made honestly, or has to be refused whatever its arrays are. */
static int may_call(void) { return !is_impossible || is_refused; }

/* Honest work of seconds is no finding. */
static int is_long(int64_t a, int64_t b, int64_t c) { return times3(a, b, c) > 50000000; }

static void norm(void) {
  int64_t tokens = size_of(), size = size_of();
  moe_norm_config config = MOE_NORM_CONFIG_INIT;
  config.n_tokens = tokens, config.hidden_size = size, config.norm = decide() % 3, config.epsilon = real();
  DISTURB(config, offsetof(moe_norm_config, n_tokens), offsetof(moe_norm_config, hidden_size));
  const float *x = floats(times(tokens, size)), *weight = floats(size), *bias = decide() & 1 ? floats(size) : NULL;
  float *y = decide() & 1 ? (float *)x : floats(times(tokens, size)), *statistics = floats(times(tokens, 2));
  if (may_call() && check(moe_norm_forward(context, &config, x, weight, bias, y, statistics))) return;
  const float *dy = floats(times(tokens, size));
  float *dx = decide() & 1 ? (float *)dy : floats(times(tokens, size)), *dweight = floats(size), *dbias = floats(size);
  if (may_call())
    check(moe_norm_backward(context, &config, x, weight, statistics, dy, dx, dweight, decide() & 1 ? dbias : NULL));
}

static void linear(void) {
  int64_t tokens = size_of(), inputs = size_of(), outputs = size_of();
  moe_linear_config config = MOE_LINEAR_CONFIG_INIT;
  config.n_tokens = tokens, config.inputs = inputs, config.outputs = outputs, config.weight_dtype = decide() % 3;
  const float *x = floats(times(tokens, inputs)), *bias = floats(outputs);
  const void *weight = floats(times(outputs, inputs));
  float *y = floats(times(tokens, outputs)), *dx = floats(times(tokens, inputs));
  float *dweight = floats(times(outputs, inputs)), *dbias = floats(outputs);
  if (!may_call() || (!is_refused && is_long(tokens, inputs, outputs))) return;
  check(moe_linear_forward(context, &config, x, weight, bias, y));
  check(moe_linear_backward(context, &config, x, weight, y, dx, dweight, dbias));
}

static void rotate(void) {
  int64_t tokens = size_of(), heads = size_of(), size = size_of(), stride = decide() & 1 ? 0 : integer();
  __int128 width = times(heads, size), row = stride ? stride : width;
  float *x = floats(row < 0 || row >= beyond ? beyond : times3(tokens, (int64_t)row, 1) + width);
  const int64_t *positions = decide() & 1 ? indices(tokens, 8, 1000) : NULL;
  moe_rotary_config config = MOE_ROTARY_CONFIG_INIT;
  config.n_tokens = tokens, config.n_heads = heads, config.head_size = size, config.stride = stride;
  config.positions = positions, config.inverse = decide() % 3;
  config.sequence_length = decide() & 1 ? tokens : integer(), config.first_position = decide() & 1 ? 0 : integer();
  if (decide() & 1) config.theta = real();
  if (decide() & 1) config.rotary_size = integer();
  if (decide() & 1) config.scale = real();
  /* Of any bits that are below 1000 as integers: next to 0, and what real() makes of the first. */
  double *frequencies = decide() & 1 ? (double *)indices(1 + size / 2, 8, 1000) : NULL;
  if (frequencies) frequencies[0] = real();
  config.frequencies = frequencies;
  if (may_call()) check(moe_rotate(context, &config, x));
}

static void attention(void) {
  moe_attention_config config = MOE_ATTENTION_CONFIG_INIT;
  config.n_sequences = 1 + decide() % 3;
  config.n_queries = 1 + decide() % 40;
  config.n_keys = decide() & 1 ? 0 : 1 + decide() % 140;
  config.n_kv_heads = decide() % 3;
  config.n_heads = config.n_kv_heads ? config.n_kv_heads * (1 + decide() % 3) : 2;
  config.head_size = 1 + decide() % 20;
  DISTURB(config, offsetof(moe_attention_config, mask), offsetof(moe_attention_config, added_mask),
          offsetof(moe_attention_config, valid_mask), offsetof(moe_attention_config, sinks));
  int64_t value_size = config.value_size ? config.value_size : config.head_size;
  int64_t keys = config.n_keys ? config.n_keys : config.n_queries;
  int64_t kv_heads = config.n_kv_heads ? config.n_kv_heads : config.n_heads;
  int64_t strides[] = {config.query_stride, config.key_stride, config.value_stride, config.output_stride};
  float *given[4];
  for (int i = 0; i < 4; i++) {
    int is_key = i == 1 || i == 2;
    __int128 width = times(is_key ? kv_heads : config.n_heads, i < 2 ? config.head_size : value_size);
    __int128 row = strides[i] ? strides[i] : width;
    int64_t rows = times(config.n_sequences, is_key ? keys : config.n_queries) > INT64_MAX
                       ? INT64_MAX
                       : (int64_t)times(config.n_sequences, is_key ? keys : config.n_queries);
    given[i] = floats(row < 0 || row >= beyond ? beyond : times3(rows, (int64_t)row, 1) + width);
  }
  uint8_t masks = decide();
  if (masks & 1) config.mask = mask(times(config.n_queries, keys));
  if (masks & 2) config.added_mask = floats(times(config.n_queries, keys));
  if (masks & 4) config.valid_mask = mask(times(config.n_sequences, keys));
  if (masks & 8) config.sinks = floats(config.n_heads);
  if (masks & 16) config.compute_dtype = MOE_DTYPE_BF16;
  float *sums = floats(times3(config.n_sequences, config.n_heads, config.n_queries));
  /* A stride below the width is refused, or of overlapping rows: either way the arrays are long enough. */
  __int128 pairs = times3(config.n_sequences, config.n_queries, keys);
  if (!is_refused && (pairs > 1 << 22 || is_long((int64_t)pairs, config.n_heads, config.head_size) ||
                      is_long((int64_t)pairs, config.n_heads, value_size)))
    return;
  if (!may_call() || check(moe_attention_forward(context, &config, given[0], given[1], given[2], given[3], sums))) return;
  float *slopes[4];
  for (int i = 0; i < 4; i++) {
    int64_t rows = config.n_sequences * (i == 1 || i == 2 ? keys : config.n_queries);
    int64_t width = (i == 1 || i == 2 ? kv_heads : config.n_heads) * (i < 2 ? config.head_size : value_size);
    slopes[i] = floats(times(rows, strides[i] ? strides[i] : width) + width);
  }
  moe_attention_gradients gradients = {sizeof gradients, slopes[3], slopes[0], slopes[1], slopes[2], NULL};
  if (config.sinks) gradients.dsinks = floats(config.n_heads);
  if (may_call()) check(moe_attention_backward(context, &config, given[0], given[1], given[2], given[3], sums, &gradients));
}

static void embedding(void) {
  int64_t tokens = size_of(), size = size_of(), rows = size_of(), places = size_of();
  moe_embedding_config config = MOE_EMBEDDING_CONFIG_INIT;
  config.n_tokens = tokens, config.hidden_size = size, config.n_rows = rows, config.n_positions = places;
  config.sequence_length = decide() & 1 ? tokens : integer(), config.first_position = decide() & 1 ? 0 : integer();
  const int32_t *ids = indices(tokens, 4, rows);
  float *table = floats(times(rows, size)), *positions = decide() & 1 ? floats(times(places, size)) : NULL;
  float *y = floats(times(tokens, size));
  if (!may_call()) return;
  check(moe_embedding_forward(context, &config, ids, table, positions, y));
  check(moe_embedding_backward(context, &config, ids, y, table, positions));
}

static void cross_entropy(void) {
  int64_t tokens = size_of(), size = size_of(), vocabulary = size_of(), counted;
  moe_cross_entropy_config config = MOE_CROSS_ENTROPY_CONFIG_INIT;
  config.n_tokens = tokens, config.hidden_size = size, config.vocabulary_size = vocabulary;
  config.weight_dtype = decide() % 3, config.d_loss = real();
  if (decide() & 1) config.ignore_index = (int32_t)integer();
  if (decide() & 1) config.label_smoothing = real();
  double loss;
  const float *x = floats(times(tokens, size));
  const void *weight = floats(times(vocabulary, size));
  const int32_t *targets = indices(tokens, 4, vocabulary);
  float *losses = floats(tokens), *dx = floats(times(tokens, size)), *dweight = floats(times(vocabulary, size));
  if (may_call() && (is_refused || !is_long(tokens, vocabulary, size)))
    check(moe_cross_entropy(context, &config, x, weight, targets, &loss, &counted, losses, decide() & 1 ? dx : NULL,
                            decide() & 1 ? dweight : NULL));
}

static void sample(void) {
  moe_sampling sampling = MOE_SAMPLING_INIT;
  sampling.temperature = 1;
  int64_t vocabulary = size_of();
  DISTURB(sampling, offsetof(moe_sampling, history));
  if (decide() & 1) sampling.history = indices(sampling.n_history, 4, vocabulary);
  const float *logits = floats(vocabulary);
  int32_t token = 0;
  if (may_call() && !check(moe_sample(context, logits, vocabulary, &sampling, (uint64_t)integer(), &token)) &&
      (token < 0 || token >= vocabulary))
    abort();
}

static void profile(void) {
  moe_phase_time time = MOE_PHASE_TIME_INIT;
  moe_profile_event events[4];
  int64_t found;
  check(moe_profile_start(context, decide() & 1 ? 4 : integer()));
  DISTURB(time, 0);
  check(moe_profile_phase(context, (int32_t)integer(), (int32_t)integer(), &time));
  check(moe_profile_events(context, integer(), events, decide() % 5, &found));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static void (*const blocks[])(void) = {norm, linear, rotate, attention, embedding, cross_entropy, sample, profile};
  begin(data, size);
  context = new_context();
  for (int n = 0; context && n < 4 && (n == 0 || bytes_left > 0); n++) {
    is_impossible = is_refused = 0;
    blocks[decide() % 8]();
  }
  return end(context);
}
