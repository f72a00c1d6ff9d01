/* A config.json, beside the weights of a small Llama; or a GGUF file, where it begins as one. */
#include <moe_pretrained.h>

#include "store.h"

typedef struct matrix {
  const char *name;
  int rows, columns; /* 0 columns: a vector */
} matrix;

static const matrix matrices[] = {
    {"model.embed_tokens.weight", 5, 4},
    {"model.norm.weight", 4, 0},
    {"lm_head.weight", 5, 4},
    {"model.layers.0.input_layernorm.weight", 4, 0},
    {"model.layers.0.post_attention_layernorm.weight", 4, 0},
    {"model.layers.0.self_attn.q_proj.weight", 4, 4},
    {"model.layers.0.self_attn.k_proj.weight", 2, 4},
    {"model.layers.0.self_attn.v_proj.weight", 2, 4},
    {"model.layers.0.self_attn.o_proj.weight", 4, 4},
    {"model.layers.0.mlp.gate_proj.weight", 3, 4},
    {"model.layers.0.mlp.up_proj.weight", 3, 4},
    {"model.layers.0.mlp.down_proj.weight", 4, 3},
};

static void weights(void) {
  static char file[8192];
  int text = 8, data = 0;
  for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
    const matrix *m = &matrices[i];
    int bytes = 4 * m->rows * (m->columns ? m->columns : 1);
    char shape[32];
    snprintf(shape, sizeof shape, m->columns ? "%d,%d" : "%d", m->rows, m->columns);
    text += snprintf(file + text, sizeof file - (size_t)text,
                     "%c\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%d,%d]}", i ? ',' : '{', m->name, shape,
                     data, data + bytes);
    data += bytes;
  }
  file[text++] = '}';
  uint64_t length = (uint64_t)text - 8;
  memcpy(file, &length, 8);
  put("model.safetensors", file, (size_t)(text + data));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int is_prepared;
  begin(data, size);
  if (!is_prepared) {
    weights();
    is_prepared = 1;
  }
  moe_context *context = store_context();
  int is_gguf = size >= 4 && memcmp(data, "GGUF", 4) == 0;
  put(is_gguf ? "model.gguf" : "config.json", data, size);
  moe_model *model = NULL;
  if (context && moe_model_load(context, is_gguf ? "model.gguf" : ".", NULL, &model) == MOE_OK) {
    moe_save_options options = MOE_SAVE_OPTIONS_INIT;
    options.dtype = MOE_FOLDER_DTYPE_BF16;
    (void)!moe_model_save(model, "saved", &options);
    moe_model_free(model);
  }
  return end(context);
}
