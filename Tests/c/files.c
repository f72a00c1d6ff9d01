/* Files in the place of memory: experts that are read from a checkpoint's shards as they are needed; and experts and an
 * optimiser's state in mapped files, trained with backward and step in one.  Both give the bits of the layer in memory. */
#define _POSIX_C_SOURCE 200809L
#include <moe.h>

#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

enum { N_TOKENS = 50, H = 12, I = 20, N_EXPERTS = 6, N_STEPS = 3, N_PARAMETERS = 8, N_MAPPINGS = 8, PATH = 512 };

static float x[N_TOKENS * H], dy[N_TOKENS * H], y[N_TOKENS * H], expected[N_TOKENS * H]; /* [T,H] each */
static char folder[] = "/tmp/libmoe-XXXXXX";

static const char *in_folder(const char *name) {
  static char path[PATH];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return path;
}

static void remove_folder(void) {
  DIR *directory = opendir(folder);
  CHECK(directory != NULL);
  for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
    if (entry->d_name[0] != '.') CHECK(unlink(in_folder(entry->d_name)) == 0);
  }
  closedir(directory);
  CHECK(rmdir(folder) == 0);
}

static moe_layer *new_layer(moe_context *context, int32_t unallocated) {
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = I;
  config.n_experts = N_EXPERTS;
  config.top_k = 2;
  config.unallocated = unallocated;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  return layer;
}

/* ---- Experts in shards ------------------------------------------------------------------------------------- */

static void offload(moe_context *context) {
  moe_layer *whole = new_layer(context, 0);
  CHECK(moe_layer_forward(whole, x, N_TOKENS, NULL, expected, NULL, NULL) == MOE_OK);
  const char *index = in_folder("m.safetensors.index.json");
  CHECK(moe_layer_save_sharded(whole, index, MOE_LAYOUT_LIBMOE, 0, MOE_DTYPE_F32, 4000) == MOE_OK);
  moe_layer_free(whole);

  moe_checkpoint *checkpoint = NULL;
  CHECK(moe_checkpoint_open(context, index, &checkpoint) == MOE_OK);
  moe_layer *layer = new_layer(context, MOE_UNALLOCATED_EXPERT_WEIGHTS);
  /* Two experts at a time: a helper thread reads the others while these are computed. */
  CHECK(moe_layer_offload(layer, checkpoint, MOE_LAYOUT_LIBMOE, 0, 2 * 2 * H * I * sizeof(float)) == MOE_OK);
  moe_checkpoint_free(checkpoint);
  for (int call = 0; call < 5; call++) {
    CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL) == MOE_OK);
    CHECK(memcmp(y, expected, sizeof y) == 0);
  }
  moe_offload_statistics found = MOE_OFFLOAD_STATISTICS_INIT;
  CHECK(moe_layer_offload_statistics(layer, &found) == MOE_OK);
  CHECK(found.n_slots == 2 && found.misses > N_EXPERTS); /* some were read more than once */
  moe_layer_free(layer);
}

/* ---- Training in mapped files ------------------------------------------------------------------------------ */

static moe_mapping *mappings[N_MAPPINGS];
static int n_mappings;

static void *map(moe_context *context, size_t size) {
  char name[16];
  snprintf(name, sizeof name, "mapped%d", n_mappings);
  void *data = NULL;
  CHECK(n_mappings < N_MAPPINGS);
  CHECK(moe_mapping_create(context, in_folder(name), size, &mappings[n_mappings]) == MOE_OK);
  CHECK(moe_mapping_data(mappings[n_mappings++], &data) == MOE_OK);
  return data;
}

/* Leaves the last y in `result`. */
static void train(moe_context *context, moe_layer *layer, int mapped, float *result) {
  moe_tensor parameters[N_PARAMETERS];
  const int64_t count = parameters_of(layer, parameters, N_PARAMETERS);
  moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
  adamw.unallocated_state = mapped;
  moe_optimizer *optimizer = NULL;
  CHECK(moe_adamw_create(context, &adamw, parameters, count, &optimizer) == MOE_OK);
  if (mapped) {
    size_t size = 0;
    CHECK(moe_optimizer_state_size(optimizer, &size) == MOE_OK);
    CHECK(moe_optimizer_bind_state(optimizer, map(context, size), size) == MOE_OK);
  }
  moe_tape *tape = NULL;
  CHECK(moe_tape_create(layer, &tape) == MOE_OK);
  for (int step = 0; step < N_STEPS; step++) {
    CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, result, tape, NULL) == MOE_OK);
    if (mapped) {
      moe_backward_options options = MOE_BACKWARD_OPTIONS_INIT;
      options.optimizer = optimizer;
      CHECK(moe_layer_backward(layer, tape, x, dy, 0.0f, NULL, &options) == MOE_OK);
    } else {
      CHECK(moe_layer_zero_grad(layer) == MOE_OK);
      CHECK(moe_layer_backward(layer, tape, x, dy, 0.0f, NULL, NULL) == MOE_OK);
      CHECK(moe_optimizer_step(optimizer, parameters, count) == MOE_OK);
    }
  }
  moe_tape_free(tape);
  moe_optimizer_free(optimizer);
}

static void train_in_files(moe_context *context) {
  moe_layer *whole = new_layer(context, 0);
  train(context, whole, 0, expected);
  moe_layer_free(whole);

  moe_layer *layer = new_layer(context, MOE_UNALLOCATED_EXPERT_WEIGHTS | MOE_UNALLOCATED_EXPERT_GRADIENTS);
  moe_tensor parameters[N_PARAMETERS];
  const int64_t count = parameters_of(layer, parameters, N_PARAMETERS);
  for (int64_t i = 0; i < count; i++) {
    if (parameters[i].data != NULL) continue;
    size_t size = sizeof(float);
    for (int d = 0; d < parameters[i].rank; d++) size *= (size_t)parameters[i].shape[d];
    CHECK(moe_layer_bind_parameter(layer, i, map(context, size), NULL) == MOE_OK);
  }
  CHECK(n_mappings == 2); /* up and down */
  CHECK(moe_layer_initialize(layer) == MOE_OK);
  train(context, layer, 1, y);
  CHECK(memcmp(y, expected, sizeof y) == 0);
  moe_layer_free(layer);
  for (int i = 0; i < n_mappings; i++) {
    CHECK(moe_mapping_flush(mappings[i]) == MOE_OK);
    moe_mapping_free(mappings[i]);
  }
}

int main(void) {
  for (int i = 0; i < N_TOKENS * H; i++) {
    x[i] = (float)(i * 37 % 101) / 50 - 1;
    dy[i] = (float)(i * 53 % 97) / 48 - 1;
  }
  CHECK(mkdtemp(folder) != NULL);
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.n_threads = 2;
  moe_context *context = NULL;
  CHECK(moe_context_create(&config, &context) == MOE_OK);
  offload(context);
  train_in_files(context);
  moe_context_free(context);
  remove_folder();
  return 0;
}
