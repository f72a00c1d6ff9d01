/* llama.cpp for llama_generate.py: what takes or gives its structs by value, which ctypes would have to describe again.
 *
 * Linked against libllama; the functions that Python calls by themselves are those of llama.h. */
#include <llama.h>
#include <stdio.h>
#include <string.h>

static void complain(enum ggml_log_level level, const char *text, void *data) {
  (void)data;
  if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

/* The model of a file, as llama.cpp loads it by default: mapped, and its pages faulted in. 0 if it fails. */
struct llama_model *load(const char *path) {
  llama_log_set(complain, 0);
  return llama_model_load_from_file(path, llama_model_default_params());
}

/* A context for so many sequences of at most `length` tokens; keys and values are float32, or as by default. */
struct llama_context *context_of(struct llama_model *model, int sequences, int length, int threads, int float32) {
  struct llama_context_params params = llama_context_default_params();
  params.n_seq_max = (uint32_t)sequences;
  params.n_ctx = (uint32_t)sequences * (uint32_t)((length + 255) / 256 * 256); /* each has an equal part */
  params.n_batch = params.n_ctx;
  params.n_threads = params.n_threads_batch = threads;
  if (float32) {
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; /* which would round them to float16 */
  }
  return llama_init_from_model(model, params);
}

/* Read tokens [sequences,count] behind the first `before` of each sequence, and forget what else was there.
 * logits [sequences,words] are those of each sequence's last token.  Returns llama_decode's status, 0 for success. */
int read_tokens(struct llama_context *context, const int32_t *tokens, int sequences, int before, int count,
                float *logits) {
  struct llama_batch batch = llama_batch_init(sequences * count, 0, 1);
  for (int s = 0; s < sequences; s++) {
    llama_memory_seq_rm(llama_get_memory(context), s, before, -1);
    for (int t = 0; t < count; t++) {
      int n = batch.n_tokens++;
      batch.token[n] = tokens[n];
      batch.pos[n] = before + t;
      batch.n_seq_id[n] = 1;
      batch.seq_id[n][0] = s;
      batch.logits[n] = t == count - 1;
    }
  }
  int status = llama_decode(context, batch);
  size_t words = (size_t)llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
  for (int s = 0; s < sequences && status == 0; s++)
    memcpy(logits + (size_t)s * words, llama_get_logits_ith(context, s * count + count - 1), words * sizeof *logits);
  llama_batch_free(batch);
  return status;
}
