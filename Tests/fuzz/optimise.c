/* Tensors of any shape, and all that takes a list of them; schedules; clipping. */
#include "fuzz.h"

static moe_tensor tensors[6];
static int64_t n_tensors;

/* Gives every tensor memory as long as its shape says; says whether that was possible, or the shape is no shape at all. */
static int describe(void) {
  int is_possible = 1;
  n_tensors = decide() % 5;
  for (int64_t i = 0; i < n_tensors; i++) {
    moe_tensor tensor = MOE_TENSOR_INIT;
    tensor.rank = 1 + decide() % 3;
    tensor.dtype = decide() % 4 == 1 ? MOE_DTYPE_BF16 : MOE_DTYPE_F32;
    for (int d = 0; d < 4; d++) tensor.shape[d] = decide() % 4 ? decide() % 9 : integer();
    DISTURB(tensor, offsetof(moe_tensor, name), offsetof(moe_tensor, data), offsetof(moe_tensor, grad));
    double elements = 1;
    for (int d = 0; d < tensor.rank && d < 4; d++) elements *= tensor.shape[d] < 0 ? 0 : (double)tensor.shape[d];
    __int128 count = elements > 1e7 ? (__int128)1e7 : (__int128)elements;
    tensor.name = decide() & 1 ? "a tensor of the caller's" : NULL;
    tensor.data = array(count, tensor.dtype == MOE_DTYPE_BF16 ? 2 : 4);
    tensor.grad = array(count, 4);
    is_possible &= !is_impossible || elements > 4e18;
    is_impossible = 0;
    tensors[i] = tensor;
  }
  if (n_tensors > 1 && decide() % 8 == 1) tensors[0] = tensors[1];
  return is_possible;
}

static void rate(void) {
  moe_schedule schedule = MOE_SCHEDULE_INIT;
  double found;
  schedule.kind = decide() % 6;
  schedule.total_steps = decide();
  DISTURB(schedule, 0);
  check(moe_learning_rate(&schedule, integer(), &found));
  check(moe_momentum(&schedule, integer(), &found));
}

static void clip(void) {
  moe_clip_state state = MOE_CLIP_STATE_INIT;
  double found;
  for (int n = 0; n < 4; n++) {
    DISTURB(state, 0);
    check(moe_adaptive_clip(&state, real(), &found));
  }
}

static void pool(void) {
  int64_t sizes[3]; /* layers, sequences, experts */
  __int128 rows = 1, cells = 1;
  for (int i = 0; i < 3; i++) {
    sizes[i] = decide() % 4 ? decide() % 9 : integer();
    if (i < 2) rows = sizes[i] < 0 ? 0 : rows * sizes[i];
    cells = sizes[i] < 0 ? 0 : cells > (__int128)1 << 64 ? cells : cells * sizes[i];
  }
  float loss;
  const int64_t *counts = indices(cells, 8, 100), *valid = indices(rows, 8, 100);
  const float *means = array(cells, 4);
  float *slopes = decide() & 1 ? array(cells, 4) : NULL;
  if (is_impossible && cells < (__int128)1 << 62) return;
  check(moe_pooled_sequence_loss(sizes[0], sizes[1], sizes[2], counts, valid, means, &loss, slopes));
  if (sizes[1] == 1) check(moe_pooled_balance_loss(sizes[0], sizes[2], counts, valid, means, &loss, slopes));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  begin(data, size);
  moe_context *context = new_context();
  moe_optimizer *optimizer = NULL;
  if (context) {
    int is_possible = describe();
    moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
    moe_sgd_config sgd = MOE_SGD_CONFIG_INIT;
    DISTURB(adamw, 0);
    DISTURB(sgd, 0);
    moe_muon_config muon = MOE_MUON_CONFIG_INIT;
    switch (decide() % 3) {
      case 0: check(moe_adamw_create(context, &adamw, tensors, n_tensors, &optimizer)); break;
      case 1: check(moe_sgd_create(context, &sgd, tensors, n_tensors, &optimizer)); break;
      default:
        DISTURB(muon, offsetof(moe_muon_config, by_adamw));
        check(moe_muon_create(context, &muon, tensors, n_tensors, &optimizer));
    }
    double norm;
    moe_clip_state state = MOE_CLIP_STATE_INIT;
    if (is_possible) check(moe_clip_grad_norm(context, tensors, n_tensors, real(), &norm));
    for (int n = 0; n < 6; n++) {
      is_impossible = 0;
      size_t bytes = 0;
      int64_t chosen = decide() % 5;
      switch (decide() % 9) {
        case 0:
          if (optimizer && is_possible) check(moe_optimizer_step(optimizer, tensors, n_tensors));
          break;
        case 1:
          if (optimizer && is_possible) check(moe_optimizer_step_clipped(optimizer, tensors, n_tensors, real(), &norm));
          break;
        case 2:
          if (optimizer && is_possible) check(moe_optimizer_step_adaptive(optimizer, tensors, n_tensors, &state, &norm));
          break;
        case 3: {
          const int64_t *places = indices(chosen, 8, n_tensors);
          if (optimizer) check(moe_optimizer_set_group(optimizer, places, chosen, real(), real()));
          break;
        }
        case 4:
          if (optimizer && !check(moe_optimizer_state_size(optimizer, &bytes))) {
            bytes = decide() % 4 ? bytes : bytes / 2;
            void *memory = array((__int128)bytes, 1);
            if (!is_impossible) check(moe_optimizer_bind_state(optimizer, memory, bytes));
          }
          break;
        case 5:
          if (optimizer) check(moe_optimizer_set_learning_rate(optimizer, real()));
          if (optimizer) check(moe_optimizer_set_momentum(optimizer, real()));
          break;
        case 6: rate(); break;
        case 7: clip(); break;
        default: pool();
      }
    }
  }
  moe_optimizer_free(optimizer);
  return end(context);
}
