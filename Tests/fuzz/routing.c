/* A saved record of routing: loaded, saved again, and replayed where it fits. */
#include "store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  begin(NULL, 0);
  moe_context *context = store_context();
  moe_routing *routing = NULL;
  if (moe_routing_create(context, &routing)) abort();
  void *given = array(size, 1);
  if (is_impossible) return end(context);
  memcpy(given, data, size);
  if (!check(moe_routing_load(routing, given, size))) {
    size_t length = 0;
    if (moe_routing_saved_size(routing, &length)) abort();
    void *saved = array(length, 1);
    if (!is_impossible && (moe_routing_save(routing, saved, length) || moe_routing_load(routing, saved, length))) abort();
  }
  moe_layer_config config = small_layer(MOE_LAYOUT_LIBMOE);
  moe_layer *layer = NULL;
  moe_forward_options options = MOE_FORWARD_OPTIONS_INIT;
  options.replay = routing;
  float x[3 * 4] = {0.25f}, y[3 * 4];
  if (moe_layer_create(context, &config, &layer)) abort();
  for (int64_t tokens = 0; tokens <= 3; tokens++) check(moe_layer_forward(layer, x, tokens, &options, y, NULL, NULL));
  moe_layer_free(layer);
  moe_routing_free(routing);
  return end(context);
}
