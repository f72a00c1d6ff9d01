/* What is done with a file that anyone may have written: everything that a host could. */
#ifndef STORE_H
#define STORE_H

#include <fcntl.h>
#include <unistd.h>

#include "fuzz.h"

#define N_LAYOUTS 64 /* more than there are: the rest are refused */

/* Writes a file into the current folder, which scripts/fuzz makes in memory. */
static inline void put(const char *path, const void *data, size_t size) {
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || write(file, data, size) != (ssize_t)size) abort();
  close(file);
}

static inline moe_context *store_context(void) {
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.alloc = take;
  config.dealloc = give_back;
  allocations_left = -1;
  moe_context *context = NULL;
  if (moe_context_create(&config, &context)) abort();
  return context;
}

/* A small layer as a layout's model has it. */
static inline moe_layer_config small_layer(int32_t layout) {
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  if (layout == MOE_LAYOUT_GPT_OSS || layout == MOE_LAYOUT_GPT_OSS_MXFP4) moe_preset_gpt_oss(&config, sizeof config);
  if (layout == MOE_LAYOUT_DEEPSEEK) moe_preset_deepseek_v3(&config, sizeof config);
  if (layout == MOE_LAYOUT_QWEN2_MOE) moe_preset_qwen2_moe(&config, sizeof config);
  if (layout == MOE_LAYOUT_QWEN3_MOE || layout == MOE_LAYOUT_OLMOE) moe_preset_qwen3_moe(&config, sizeof config);
  if (layout == MOE_LAYOUT_MIXTRAL) moe_preset_mixtral(&config, sizeof config);
  if (layout == MOE_LAYOUT_LLAMA4 || layout == MOE_LAYOUT_LLAMA4_TEXT) moe_preset_llama4(&config, sizeof config);
  if (layout == MOE_LAYOUT_GRANITE_MOE) moe_preset_granite_moe(&config, sizeof config);
  if (layout == MOE_LAYOUT_DBRX) moe_preset_dbrx(&config, sizeof config);
  if (layout == MOE_LAYOUT_SWITCH_ENCODER || layout == MOE_LAYOUT_SWITCH_DECODER) moe_preset_switch(&config, sizeof config);
  if (layout == MOE_LAYOUT_TRANSFORMERS_5) moe_preset_qwen3_moe(&config, sizeof config);
  config.hidden_size = layout == MOE_LAYOUT_GPT_OSS_MXFP4 ? 32 : 4;
  config.intermediate_size = layout == MOE_LAYOUT_GPT_OSS_MXFP4 ? 32 : 4;
  config.n_experts = 2;
  config.top_k = 1;
  config.n_groups = config.top_groups = config.group_top_m = config.group_mask = 0;
  if (config.n_shared_experts) config.shared_intermediate_size = 4;
  return config;
}

/* Opens a checkpoint, looks at every tensor, and loads layers and training states from it. */
static inline void use(moe_context *context, const char *path) {
  moe_checkpoint *checkpoint = NULL;
  if (check(moe_checkpoint_open(context, path, &checkpoint))) return;
  int64_t count = 0, index;
  check(moe_checkpoint_tensor_count(checkpoint, &count));
  unsigned sum = 0;
  moe_stored_tensor found[16];
  int64_t kept = 0;
  for (int64_t i = -1; i <= count; i++) {
    moe_stored_tensor tensor = MOE_STORED_TENSOR_INIT;
    if (check(moe_checkpoint_tensor(checkpoint, i, &tensor))) continue;
    if (check(moe_checkpoint_find_tensor(checkpoint, tensor.name, &index)) || index != i) abort();
    for (size_t byte = 0; byte < tensor.size; byte++) sum += ((const uint8_t *)tensor.data)[byte];
    if (kept < 16) found[kept++] = tensor;
  }
  /* What was read can be written, and is then read again with as many tensors. */
  int64_t again = -1;
  moe_checkpoint *copy = NULL;
  if (!check(moe_checkpoint_write(context, "copy", found, kept))) {
    if (moe_checkpoint_open(context, "copy", &copy) || moe_checkpoint_tensor_count(copy, &again) || again != kept) abort();
    moe_checkpoint_free(copy);
  }
  for (int32_t layout = 0; layout < N_LAYOUTS; layout++) {
    moe_layer_config config = small_layer(layout);
    moe_layer *layer = NULL;
    if (moe_layer_create(context, &config, &layer)) abort();
    check(moe_layer_load(layer, checkpoint, layout, layout || sum % 2 ? 0 : MOE_NO_LAYER_NUMBER));
    moe_layer_free(layer);
    config.unallocated = MOE_UNALLOCATED_EXPERT_WEIGHTS;
    config.inference_only = 1;
    if (moe_layer_create(context, &config, &layer)) continue;
    if (!check(moe_layer_offload(layer, checkpoint, layout, 0, 1 << 14))) {
      float x[32] = {0.5f}, y[32];
      check(moe_layer_forward(layer, x, 1, NULL, y, NULL, NULL));
    }
    moe_layer_free(layer);
  }
  moe_checkpoint_free(checkpoint);
}

/* Goes on from a training state. */
static inline void resume(moe_context *context, const char *path) {
  moe_layer_config config = small_layer(MOE_LAYOUT_LIBMOE);
  config.hidden_size = 2, config.intermediate_size = 3;
  moe_layer *layer = NULL;
  moe_optimizer *optimizer = NULL;
  moe_statistics *statistics = NULL;
  float own[3] = {1, 2, 3};
  moe_tensor tensor = MOE_TENSOR_INIT;
  tensor.rank = 1, tensor.shape[0] = 3, tensor.data = own, tensor.name = "own";
  if (moe_layer_create(context, &config, &layer) || moe_sgd_create(context, NULL, &tensor, 1, &optimizer) ||
      moe_statistics_create(context, 2, &statistics))
    abort();
  moe_training training = MOE_TRAINING_INIT;
  training.layers = &layer, training.n_layers = 1;
  training.optimizers = &optimizer, training.n_optimizers = 1;
  training.statistics = &statistics, training.n_statistics = 1;
  training.tensors = &tensor, training.n_tensors = 1;
  static int is_saved;
  if (!is_saved) { /* once: a good one, as a seed for the corpus */
    is_saved = 1;
    check(moe_training_save(context, &training, "training"));
  }
  check(moe_training_load(context, &training, path));
  moe_statistics_free(statistics);
  moe_optimizer_free(optimizer);
  moe_layer_free(layer);
}

#endif
