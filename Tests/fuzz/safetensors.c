/* A safetensors file: opened, read, loaded by every layout, offloaded, and gone on from. */
#include "store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  begin(data, size);
  moe_context *context = store_context();
  put("file.safetensors", data, size);
  use(context, "file.safetensors");
  resume(context, "file.safetensors");
  return end(context);
}
