/* byte_bpe.h: text to tokens and back, with the tokenizer.json of models whose tokenizer is a byte-level BPE: GPT-2, Qwen, Llama 3,
 * OLMoE, DeepSeek and many others.
 *
 *     byte_bpe words;
 *     if (!byte_bpe_open(&words, "tokenizer.json")) puts(words.error);
 *     int64_t count = byte_bpe_encode(&words, "some text", 9, ids, room);
 *
 * Tokens to text is exact.  Text to tokens is exact where the text is ASCII in Unicode's sense of letters, digits and spaces, and
 * approximate elsewhere: the regular expressions that cut text into words before merging are not run.  Instead words are cut as
 * those of GPT-2, Qwen and Llama 3 cut them (which of these is seen from the file), every byte of a character beyond ASCII
 * counting as a letter; no Unicode normalisation is done, and no space is put in front of a text.  Other kinds of tokenizer (SentencePiece, WordPiece) are refused.
 */
#ifndef BYTE_BPE_H
#define BYTE_BPE_H

#include "json.h"

typedef struct byte_bpe_entry {
  uint64_t key; /* of a token the hash of its bytes, of a merge both tokens */
  int32_t value, rank;
  int is_used;
} byte_bpe_entry;

typedef struct byte_bpe_table {
  byte_bpe_entry *entries;
  size_t room; /* a power of two */
} byte_bpe_table;

typedef struct byte_bpe {
  json file;
  char **token;        /* [count] bytes of each; NULL = no such token */
  size_t *size;        /* [count] */
  int32_t count;
  int32_t *added;      /* [n_added] tokens that are found in text as they are */
  int32_t n_added;
  byte_bpe_table words, merges;
  int32_t byte[256];   /* the token of each byte */
  int32_t first;       /* what a text begins with; -1 = nothing */
  int digits;          /* of a word of digits at most; 0 = any number */
  int any_prefix;      /* a word of letters may begin with any one mark; 0 = with a space alone */
  int keeps_words;     /* a word that is a token is not put together by merges */
  char error[256];
} byte_bpe;

static void byte_bpe_free(byte_bpe *words) {
  for (int32_t i = 0; words->token && i < words->count; i++) free(words->token[i]);
  free(words->token);
  free(words->size);
  free(words->added);
  free(words->words.entries);
  free(words->merges.entries);
  json_free(&words->file);
}

static uint64_t byte_bpe_hash(const char *bytes, size_t size) {
  uint64_t hash = 1469598103934665603u; /* FNV-1a */
  for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)bytes[i]) * 1099511628211u;
  return hash;
}

static uint64_t byte_bpe_pair(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static int byte_bpe_grow(byte_bpe_table *table, size_t count) {
  table->room = 16;
  while (table->room < 2 * count) table->room *= 2;
  table->entries = (byte_bpe_entry *)calloc(table->room, sizeof *table->entries);
  return table->entries != NULL;
}

/* The next entry of that key from *place on, or the free one behind them. */
static byte_bpe_entry *byte_bpe_next(const byte_bpe_table *table, uint64_t key, size_t *place) {
  for (;; (*place)++) {
    byte_bpe_entry *entry = &table->entries[*place & (table->room - 1)];
    if (!entry->is_used || entry->key == key) return entry;
  }
}

static size_t byte_bpe_place(uint64_t key) { return (size_t)((key * 0x9E3779B97F4A7C15u) >> 24); }

static void byte_bpe_put(byte_bpe_table *table, uint64_t key, int32_t value, int32_t rank) {
  size_t place = byte_bpe_place(key);
  byte_bpe_entry *entry;
  while ((entry = byte_bpe_next(table, key, &place))->is_used) place++;
  byte_bpe_entry made = {key, value, rank, 1};
  *entry = made;
}

/* The token with these bytes; -1 where there is none. */
static int32_t byte_bpe_find(const byte_bpe *words, const char *bytes, size_t size) {
  uint64_t key = byte_bpe_hash(bytes, size);
  size_t place = byte_bpe_place(key);
  for (byte_bpe_entry *entry; (entry = byte_bpe_next(&words->words, key, &place))->is_used; place++)
    if (words->size[entry->value] == size && !memcmp(words->token[entry->value], bytes, size)) return entry->value;
  return -1;
}

/* The byte that a character of the vocabulary stands for: printable ones for themselves, others from 256 on, in their order
 * [GPT-2].  -1 of any other character. */
static int byte_bpe_byte(unsigned point) {
  if ((point >= 33 && point <= 126) || (point >= 161 && point <= 172) || (point >= 174 && point <= 255)) return (int)point;
  if (point < 256 || point > 323) return -1;
  unsigned n = point - 256; /* 0 to 32, 127 to 160, 173 */
  return n < 33 ? (int)n : n < 67 ? (int)(n + 94) : 173;
}

/* In place: a word of the vocabulary becomes its bytes.  0 where a character stands for none. */
static int byte_bpe_bytes(char *text, size_t *size) {
  size_t to = 0;
  for (size_t i = 0; i < *size; i++) {
    unsigned char c = (unsigned char)text[i];
    unsigned point = c;
    if (c >= 0xC0 && c < 0xE0 && i + 1 < *size) point = (c & 31u) << 6 | ((unsigned char)text[++i] & 63u);
    int byte = byte_bpe_byte(point);
    if (byte < 0 || c >= 0xE0) return 0;
    text[to++] = (char)byte;
  }
  *size = to;
  return 1;
}

static int byte_bpe_fail(byte_bpe *words, const char *what) {
  snprintf(words->error, sizeof words->error, "tokenizer.json: %s", what);
  return 0;
}

static int byte_bpe_keep(byte_bpe *words, int32_t id, const char *bytes, size_t size) {
  free(words->token[id]);
  words->token[id] = (char *)malloc(size + 1);
  if (!words->token[id]) return byte_bpe_fail(words, "out of memory");
  memcpy(words->token[id], bytes, size);
  words->token[id][size] = '\0';
  words->size[id] = size;
  byte_bpe_put(&words->words, byte_bpe_hash(bytes, size), id, 0);
  return 1;
}

static int byte_bpe_vocabulary(byte_bpe *words, int vocabulary, int added) {
  json *file = &words->file;
  int n_added = added < 0 ? 0 : file->values[added].next - added;
  int entries = (file->values[vocabulary].next - vocabulary) / 2 + n_added;
  long long most = 2 * (long long)entries + 100000; /* numbers may have gaps, but no large ones */
  words->count = (int32_t)most;
  words->token = (char **)calloc((size_t)most, sizeof *words->token);
  words->size = (size_t *)calloc((size_t)most, sizeof *words->size);
  words->added = (int32_t *)calloc((size_t)n_added + 1, sizeof *words->added);
  if (!words->token || !words->size || !words->added || !byte_bpe_grow(&words->words, (size_t)entries + 256))
    return byte_bpe_fail(words, "out of memory");
  for (int i = vocabulary + 1; i < file->values[vocabulary].next; i = file->values[i + 1].next) {
    size_t size;
    char *text = (char *)json_text(file, i, &size);
    long long id = json_number(file, i + 1);
    if (id < 0 || id >= most) return byte_bpe_fail(words, "a token's number is out of range");
    int is_word = byte_bpe_bytes(text, &size); /* in place, where it fails too, and is then an added token's */
    if (is_word && !byte_bpe_keep(words, (int32_t)id, text, size)) return 0;
  }
  for (int i = added + 1; added >= 0 && i < file->values[added].next; i = file->values[i].next) {
    long long id = json_number(file, json_find(file, i, "id"));
    int content = json_find(file, i, "content");
    if (id < 0 || id >= most || content < 0) return byte_bpe_fail(words, "an added token has no number, or no content");
    size_t size;
    const char *text = json_text(file, content, &size);
    if (!byte_bpe_keep(words, (int32_t)id, text, size)) return 0;
    words->added[words->n_added++] = (int32_t)id;
  }
  for (int byte = 0; byte < 256; byte++) {
    char c = (char)byte;
    words->byte[byte] = byte_bpe_find(words, &c, 1);
  }
  return 1;
}

/* "a b", or ["a", "b"], most urgent first. */
static int byte_bpe_merges(byte_bpe *words, int merges) {
  json *file = &words->file;
  if (!byte_bpe_grow(&words->merges, (size_t)(file->values[merges].next - merges)))
    return byte_bpe_fail(words, "out of memory");
  int32_t rank = 0;
  for (int i = merges + 1; i < file->values[merges].next; i = file->values[i].next, rank++) {
    char *parts[2] = {NULL, NULL};
    size_t sizes[2] = {0, 0};
    if (file->values[i].kind == '[' && file->values[i].next == i + 3) {
      for (int p = 0; p < 2; p++) parts[p] = (char *)json_text(file, i + 1 + p, &sizes[p]);
    } else if (file->values[i].kind == '"') {
      parts[0] = (char *)json_text(file, i, &sizes[1]);
      char *space = (char *)memchr(parts[0], ' ', sizes[1]);
      if (!space) return byte_bpe_fail(words, "a merge has one part");
      sizes[0] = (size_t)(space - parts[0]);
      parts[1] = space + 1;
      sizes[1] -= sizes[0] + 1;
    }
    if (!parts[0] || !byte_bpe_bytes(parts[0], &sizes[0]) || !byte_bpe_bytes(parts[1], &sizes[1]))
      return byte_bpe_fail(words, "a merge is not of two words of bytes");
    int32_t left = byte_bpe_find(words, parts[0], sizes[0]), right = byte_bpe_find(words, parts[1], sizes[1]);
    char *both = (char *)malloc(sizes[0] + sizes[1] + 1);
    if (!both) return byte_bpe_fail(words, "out of memory");
    memcpy(both, parts[0], sizes[0]);
    memcpy(both + sizes[0], parts[1], sizes[1]);
    int32_t whole = byte_bpe_find(words, both, sizes[0] + sizes[1]);
    free(both);
    if (left >= 0 && right >= 0 && whole >= 0) byte_bpe_put(&words->merges, byte_bpe_pair(left, right), whole, rank);
  }
  return 1;
}

/* Whether a text is among the strings of a value, at any depth. */
static int byte_bpe_says(const json *file, int value, const char *text) {
  if (value < 0) return 0;
  size_t size = strlen(text);
  for (int i = value; i < file->values[value].next; i++) {
    const json_value *v = &file->values[i];
    for (size_t at = v->text; v->kind == '"' && at + size <= v->end; at++)
      if (!memcmp(file->text + at, text, size)) return 1;
  }
  return 0;
}

/* What the template of one text has in front of it, such as <|begin_of_text|>. */
static void byte_bpe_template(byte_bpe *words, int processor) {
  json *file = &words->file;
  words->first = -1;
  int single = json_find(file, processor, "single");
  int list = json_find(file, processor, "processors");
  for (int i = list + 1; single < 0 && list >= 0 && i < file->values[list].next; i = file->values[i].next)
    single = json_find(file, i, "single");
  if (single < 0 || file->values[single].next == single + 1) return;
  int id = json_find(file, json_find(file, single + 1, "SpecialToken"), "id");
  if (id < 0) return;
  size_t size;
  const char *text = json_text(file, id, &size);
  words->first = byte_bpe_find(words, text, size);
}

static int byte_bpe_open(byte_bpe *words, const char *path) {
  memset(words, 0, sizeof *words);
  json *file = &words->file;
  if (!json_read(file, path)) {
    snprintf(words->error, sizeof words->error, "%.250s", file->error);
    return 0;
  }
  int model = json_find(file, 0, "model"), pre = json_find(file, 0, "pre_tokenizer");
  int vocabulary = json_find(file, model, "vocab"), merges = json_find(file, model, "merges");
  if (vocabulary < 0 || merges < 0 || file->values[vocabulary].kind != '{' ||
      !byte_bpe_says(file, json_find(file, 0, "decoder"), "ByteLevel"))
    return byte_bpe_fail(words, "it is no byte-level BPE; give token ids instead of text");
  words->digits = byte_bpe_says(file, pre, "{1,3}") ? 3 : byte_bpe_says(file, pre, "\\\\p{N}|") ? 1 : 0;
  words->any_prefix = byte_bpe_says(file, pre, "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?");
  int keeps = json_find(file, model, "ignore_merges");
  words->keeps_words = keeps >= 0 && json_is(file, keeps, "true");
  if (!byte_bpe_vocabulary(words, vocabulary, json_find(file, 0, "added_tokens")) || !byte_bpe_merges(words, merges)) return 0;
  byte_bpe_template(words, json_find(file, 0, "post_processor"));
  return 1;
}

/* ---- Text to tokens ------------------------------------------------------------------------------------------------ */

static int byte_bpe_letter(char c) { return (c & 0x80) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static int byte_bpe_digit(char c) { return c >= '0' && c <= '9'; }
static int byte_bpe_space(char c) { return c && strchr(" \t\n\v\f\r", c) != NULL; }
static int byte_bpe_mark(char c) { return !byte_bpe_letter(c) && !byte_bpe_digit(c) && !byte_bpe_space(c); }

/* How long the first word of a text is. */
static size_t byte_bpe_word(const byte_bpe *words, const char *text, size_t size) {
  static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
  for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
    size_t length = strlen(endings[i]), k = 1;
    if (text[0] != '\'' || length > size) continue;
    while (k < length && (text[k] == endings[i][k] || (words->any_prefix && (text[k] | 32) == endings[i][k]))) k++;
    if (k == length) return length;
  }
  char line = words->any_prefix; /* these patterns cut at line breaks, GPT-2's do not */
  int prefix = text[0] == ' ' || (words->any_prefix && !byte_bpe_letter(text[0]) && !byte_bpe_digit(text[0]) &&
                                  text[0] != '\n' && text[0] != '\r');
  size_t k = prefix && size > 1 && byte_bpe_letter(text[1]) ? 1 : 0;
  if (byte_bpe_letter(text[k])) {
    while (k < size && byte_bpe_letter(text[k])) k++;
    return k;
  }
  k = text[0] == ' ' && !words->digits && size > 1 && byte_bpe_digit(text[1]) ? 1 : 0;
  if (byte_bpe_digit(text[k])) {
    size_t start = k;
    while (k < size && byte_bpe_digit(text[k]) && (!words->digits || k < start + (size_t)words->digits)) k++;
    return k;
  }
  k = text[0] == ' ' && size > 1 && byte_bpe_mark(text[1]) ? 1 : 0;
  if (byte_bpe_mark(text[k])) {
    while (k < size && byte_bpe_mark(text[k])) k++;
    while (line && k < size && (text[k] == '\n' || text[k] == '\r')) k++;
    return k;
  }
  size_t spaces = 0, lines = 0;
  for (; spaces < size && byte_bpe_space(text[spaces]); spaces++)
    if (text[spaces] == '\n' || text[spaces] == '\r') lines = spaces + 1;
  if (line && lines) return lines;
  return spaces < size && spaces > 1 ? spaces - 1 : spaces; /* the last one belongs to the word behind it */
}

/* Merges the tokens of one word, the most urgent pair first, and returns how many are left. */
static int64_t byte_bpe_merge(const byte_bpe *words, int32_t *ids, int64_t count) {
  for (;;) {
    int64_t best = -1;
    const byte_bpe_entry *chosen = NULL;
    for (int64_t i = 0; i + 1 < count; i++) {
      uint64_t key = byte_bpe_pair(ids[i], ids[i + 1]);
      size_t place = byte_bpe_place(key);
      const byte_bpe_entry *entry = byte_bpe_next(&words->merges, key, &place);
      if (entry->is_used && (!chosen || entry->rank < chosen->rank)) {
        chosen = entry;
        best = i;
      }
    }
    if (!chosen) return count;
    ids[best] = chosen->value;
    memmove(ids + best + 1, ids + best + 2, (size_t)(count - best - 2) * sizeof *ids);
    count--;
  }
}

/* The longest added token that a text begins with; -1 where there is none. */
static int32_t byte_bpe_added(const byte_bpe *words, const char *text, size_t size) {
  int32_t best = -1;
  for (int32_t i = 0; i < words->n_added; i++) {
    int32_t id = words->added[i];
    if (words->size[id] <= size && words->size[id] > (best < 0 ? 0 : words->size[best]) &&
        !memcmp(words->token[id], text, words->size[id]))
      best = id;
  }
  return best;
}

/* `ids` has room for size + 1 tokens.  Returns how many there are; -1 where a byte is no token. */
static int64_t byte_bpe_encode(const byte_bpe *words, const char *text, size_t size, int32_t *ids) {
  int64_t count = 0;
  if (words->first >= 0) ids[count++] = words->first;
  size_t at = 0, plain = 0; /* up to `plain` no added token begins */
  while (at < size) {
    int32_t added = -1;
    for (plain = plain < at ? at : plain; plain < size; plain++)
      if ((added = byte_bpe_added(words, text + plain, size - plain)) >= 0) break;
    while (at < plain) {
      size_t length = byte_bpe_word(words, text + at, plain - at);
      int32_t whole = words->keeps_words ? byte_bpe_find(words, text + at, length) : -1;
      for (size_t i = 0; whole < 0 && i < length; i++)
        if ((ids[count + (int64_t)i] = words->byte[(unsigned char)text[at + i]]) < 0) return -1;
      if (whole >= 0) ids[count++] = whole;
      else count += byte_bpe_merge(words, ids + count, (int64_t)length);
      at += length;
    }
    if (added < 0) break;
    ids[count++] = added;
    at = plain += words->size[added];
  }
  return count;
}

#endif
