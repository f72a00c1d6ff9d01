/* An index of shards, beside two good ones. */
#include "store.h"

static const char first[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}   12345678";
static const char second[] = "{\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}   ";

static void shard(const char *name, const char *text, size_t header) {
  char file[256];
  uint64_t length = header;
  memcpy(file, &length, 8);
  memcpy(file + 8, text, strlen(text));
  put(name, file, 8 + strlen(text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int is_prepared;
  begin(data, size);
  if (!is_prepared) {
    shard("model-00001-of-00002.safetensors", first, sizeof first - 1 - 8);
    shard("model-00002-of-00002.safetensors", second, sizeof second - 1);
    is_prepared = 1;
  }
  moe_context *context = store_context();
  put("model.safetensors.index.json", data, size);
  use(context, "model.safetensors.index.json");
  return end(context);
}
