/* generate.c: a folder in, text out.
 *
 *     cc -O2 generate.c $(pkg-config --cflags --libs libmoe) -o generate
 *     ./generate FOLDER --prompt "Once upon a time"
 *
 * FOLDER is a language model as people have it: config.json, safetensors, tokenizer.json.  The text goes to stdout as it is
 * written, times go to stderr.  byte_bpe.h says which tokenizers it knows; of others, and of a GGUF file in place of FOLDER,
 * give --ids 1,2,3 and get ids.
 */
#define _POSIX_C_SOURCE 200112L /* clock_gettime */
#include <moe_pretrained.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "byte_bpe.h"

enum { MOST_TOKENS = 1 << 28 }; /* so that room for them can be asked for */

typedef struct request {
  const char *folder, *prompt, *ids;
  int64_t tokens, threads;
  moe_sampling sampling;
} request;

/* What on_token needs. */
typedef struct writer {
  const byte_bpe *words; /* NULL: ids are written */
  double start, first;   /* seconds */
} writer;

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void stop(const char *what) {
  fprintf(stderr, "generate: %s\n", what);
  exit(1);
}

static void check(moe_status status) {
  if (status != MOE_OK) stop(moe_last_error_message());
}

static void *room(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) stop("out of memory");
  return memory;
}

/* ---- What is asked for --------------------------------------------------------------------------------------------- */

static void usage(void) {
  stop("usage: generate FOLDER (--prompt TEXT | --ids 1,2,3) [--tokens 128] [--temperature 0] [--top-k 0] [--top-p 1]\n"
       "          [--min-p 0] [--repetition-penalty 1] [--seed 0] [--threads 0]");
}

/* A whole number from 0 to most: all of the text, and nothing beside it. */
static uint64_t whole(const char *name, const char *text, uint64_t most) {
  char *end = NULL;
  errno = 0;
  unsigned long long number = strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end || errno || number > most) {
    fprintf(stderr, "generate: %s %s: expected a whole number from 0 to %llu\n", name, text, (unsigned long long)most);
    exit(1);
  }
  return number;
}

static double real(const char *name, const char *text) {
  char *end = NULL;
  double number = strtod(text, &end);
  if (end == text || *end) {
    fprintf(stderr, "generate: %s %s: expected a number\n", name, text);
    exit(1);
  }
  return number;
}

static request asked(int count, char **words) {
  request asked = {NULL, NULL, NULL, 128, 0, MOE_SAMPLING_INIT};
  for (int i = 1; i < count; i++) {
    const char *name = words[i];
    if (name[0] != '-') {
      if (asked.folder) usage();
      asked.folder = name;
      continue;
    }
    if (++i == count) usage();
    const char *value = words[i];
    if (!strcmp(name, "--prompt")) asked.prompt = value;
    else if (!strcmp(name, "--ids")) asked.ids = value;
    else if (!strcmp(name, "--tokens")) asked.tokens = (int64_t)whole(name, value, MOST_TOKENS);
    else if (!strcmp(name, "--threads")) asked.threads = (int64_t)whole(name, value, INT32_MAX);
    else if (!strcmp(name, "--seed")) asked.sampling.seed = whole(name, value, UINT64_MAX);
    else if (!strcmp(name, "--top-k")) asked.sampling.top_k = (int64_t)whole(name, value, INT32_MAX);
    else if (!strcmp(name, "--temperature")) asked.sampling.temperature = real(name, value);
    else if (!strcmp(name, "--top-p")) asked.sampling.top_p = real(name, value);
    else if (!strcmp(name, "--min-p")) asked.sampling.min_p = real(name, value);
    else if (!strcmp(name, "--repetition-penalty")) asked.sampling.repetition_penalty = real(name, value);
    else usage();
  }
  if (!asked.folder || !asked.prompt == !asked.ids) usage();
  return asked;
}

static const char *in_folder(const char *folder, const char *name) {
  static char path[4096];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) stop("the folder's name is too long");
  return path;
}

static int32_t *listed(const char *text, int64_t *count) {
  int32_t *ids = (int32_t *)room((strlen(text) + 1) * sizeof *ids);
  for (*count = 0; *text; (*count)++) {
    size_t length = strcspn(text, ",");
    char id[16] = "";
    if (length >= sizeof id) stop("--ids: a number is longer than any id: expected whole numbers with commas between them");
    memcpy(id, text, length);
    ids[*count] = (int32_t)whole("--ids", id, INT32_MAX);
    text += length;
    if (*text && !*++text) stop("--ids: a number is missing behind the last comma");
  }
  return ids;
}

/* The tokens that end a text: eos_token_id, a number or a list, of the first file that has it. */
static int32_t *ends(const char *folder, int64_t *count) {
  static const char *const files[] = {"generation_config.json", "config.json"};
  *count = 0;
  for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
    json file;
    int found = json_read(&file, in_folder(folder, files[f])) ? json_find(&file, 0, "eos_token_id") : -1;
    if (found >= 0 && !json_is(&file, found, "null")) {
      int32_t *ids = (int32_t *)room((size_t)(file.values[found].next - found) * sizeof *ids);
      int is_list = file.values[found].kind == '[';
      for (int i = found + is_list; i < file.values[found].next; i++) {
        char first = file.text[file.values[i].text];
        long long id = first >= '0' && first <= '9' ? json_number(&file, i) : -1;
        if (id < 0 || id > INT32_MAX) stop("eos_token_id: expected a token's number, or a list of them");
        ids[(*count)++] = (int32_t)id;
      }
      json_free(&file);
      return ids;
    }
    json_free(&file);
  }
  return NULL;
}

/* ---- Writing --------------------------------------------------------------------------------------------------------- */

static int32_t write_token(void *user, int64_t sequence, int64_t number, int32_t token, const float *logits) {
  (void)sequence;
  (void)logits;
  writer *own = (writer *)user;
  if (number == 0) own->first = seconds();
  if (!own->words) printf(number ? ",%d" : "%d", (int)token);
  else if (token < own->words->count && own->words->token[token])
    fwrite(own->words->token[token], 1, own->words->size[token], stdout);
  fflush(stdout);
  return ferror(stdout) ? MOE_NEXT_END_ALL : MOE_NEXT_GO_ON;
}

int main(int count, char **arguments) {
  request wanted = asked(count, arguments);
  byte_bpe words;
  memset(&words, 0, sizeof words);
  if (wanted.prompt && !byte_bpe_open(&words, in_folder(wanted.folder, "tokenizer.json"))) {
    fprintf(stderr, "generate: %s\ngenerate: without a tokenizer.json, as with a GGUF file, give --ids 1,2,3 and get ids\n", words.error);
    exit(1);
  }
  int64_t offsets[2] = {0, 0};
  int32_t *prompt;
  if (wanted.ids) {
    prompt = listed(wanted.ids, &offsets[1]);
  } else {
    prompt = (int32_t *)room((strlen(wanted.prompt) + 1) * sizeof *prompt);
    offsets[1] = byte_bpe_encode(&words, wanted.prompt, strlen(wanted.prompt), prompt);
  }
  if (offsets[1] <= 0) stop(offsets[1] ? "the prompt has a byte that is no token" : "the prompt is empty");

  moe_context_config machine = MOE_CONTEXT_CONFIG_INIT;
  machine.n_threads = (int32_t)wanted.threads;
  moe_context *context;
  check(moe_context_create(&machine, &context));
  moe_pretrained_options how = MOE_PRETRAINED_OPTIONS_INIT;
  how.inference_only = 1;
  moe_model *model;
  double start = seconds();
  check(moe_model_load(context, wanted.folder, &how, &model));

  writer own = {wanted.prompt ? &words : NULL, seconds(), 0};
  moe_generation options = MOE_GENERATION_INIT;
  options.max_new_tokens = wanted.tokens;
  int32_t *eos = ends(wanted.folder, &options.n_eos);
  options.eos = eos;
  options.sampling = &wanted.sampling;
  options.on_token = write_token;
  options.user = &own;
  int32_t *tokens = (int32_t *)room((size_t)(wanted.tokens > 0 ? wanted.tokens : 1) * sizeof *tokens);
  int64_t written = 0;
  check(moe_generate(model, &options, prompt, offsets, 1, tokens, &written));
  double end = seconds();
  printf("\n");
  fprintf(stderr, "loaded in %.2f s; %lld tokens read, the first one written after %.3f s", own.start - start,
          (long long)offsets[1], own.first - own.start);
  if (written > 1) fprintf(stderr, ", then %.1f tokens per second", (double)(written - 1) / (end - own.first));
  fprintf(stderr, "\n");

  moe_model_free(model);
  moe_context_free(context);
  byte_bpe_free(&words);
  free(prompt);
  free(tokens);
  free(eos);
  return 0;
}
