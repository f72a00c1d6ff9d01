/* json.h: a file of JSON as a list of values, to look things up in.  Numbers stay text.
 *
 *     json file;
 *     if (!json_read(&file, "config.json")) ...                 what is wrong is in file.error
 *     int found = json_find(&file, 0, "eos_token_id");          -1 where there is none
 */
#ifndef JSON_H
#define JSON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct json_value {
  char kind;   /* '{', '[', '"', or 'n' of a number, true, false or null */
  size_t text; /* of a string behind the quote, else its first character */
  size_t end;
  int next;    /* the value behind it and all that is in it; what is in it follows it, keys and values in turn */
} json_value;

typedef struct json {
  char *text;
  size_t size, at;
  json_value *values;
  int count, room, depth;
  char error[256];
} json;

static void json_free(json *file) {
  free(file->text);
  free(file->values);
  memset(file, 0, sizeof *file);
}

static char json_peek(json *file) {
  while (file->at < file->size && file->text[file->at] && strchr(" \t\r\n", file->text[file->at])) file->at++;
  return file->at < file->size ? file->text[file->at] : '\0';
}

static int json_push(json *file, char kind) {
  if (file->count == file->room) {
    int room = file->room ? 2 * file->room : 1024;
    json_value *values = (json_value *)realloc(file->values, (size_t)room * sizeof *values);
    if (!values) return -1;
    file->values = values;
    file->room = room;
  }
  json_value value = {kind, file->at, file->at, 0};
  file->values[file->count] = value;
  return file->count++;
}

static int json_string(json *file, int own) {
  file->values[own].text = ++file->at;
  while (file->at < file->size && file->text[file->at] != '"') file->at += file->text[file->at] == '\\' ? 2 : 1;
  if (file->at >= file->size) return 0;
  file->values[own].end = file->at++;
  return 1;
}

/* Reads one value; 0 where there is none. */
static int json_parse(json *file) {
  char kind = json_peek(file);
  int is_list = kind == '{' || kind == '[';
  int own = json_push(file, is_list || kind == '"' ? kind : 'n');
  if (own < 0 || file->depth > 100) return 0;
  if (kind == '"') {
    if (!json_string(file, own)) return 0;
  } else if (!is_list) {
    while (file->at < file->size && file->text[file->at] && !strchr(",:]} \t\r\n", file->text[file->at])) file->at++;
    file->values[own].end = file->at;
    if (file->values[own].end == file->values[own].text) return 0;
  } else {
    char close = kind == '{' ? '}' : ']';
    file->at++;
    file->depth++;
    while (json_peek(file) != close) {
      if (kind == '{') {
        if (json_peek(file) != '"' || !json_parse(file) || json_peek(file) != ':') return 0;
        file->at++;
      }
      if (!json_parse(file)) return 0;
      if (json_peek(file) == ',') file->at++;
      else if (json_peek(file) != close) return 0;
    }
    file->depth--;
    file->values[own].end = ++file->at;
  }
  file->values[own].next = file->count;
  return 1;
}

static int json_read(json *file, const char *path) {
  memset(file, 0, sizeof *file);
  FILE *stream = fopen(path, "rb");
  long size = -1;
  if (stream && !fseek(stream, 0, SEEK_END)) size = ftell(stream);
  if (size >= 0) {
    rewind(stream);
    file->text = (char *)malloc((size_t)size + 1);
    file->size = file->text ? fread(file->text, 1, (size_t)size, stream) : 0;
  }
  if (stream) fclose(stream);
  if (!file->text || file->size != (size_t)size) {
    snprintf(file->error, sizeof file->error, "%s: cannot be read", path);
    return 0;
  }
  file->text[file->size] = '\0';
  if (json_parse(file) && json_peek(file) == '\0') return 1;
  snprintf(file->error, sizeof file->error, "%s: no JSON at byte %zu", path, file->at);
  return 0;
}

static int json_is(const json *file, int value, const char *text) {
  const json_value *v = &file->values[value];
  return v->end - v->text == strlen(text) && !memcmp(file->text + v->text, text, v->end - v->text);
}

/* The value of a key of an object; -1 where there is none. */
static int json_find(const json *file, int object, const char *key) {
  if (object < 0 || file->values[object].kind != '{') return -1;
  for (int i = object + 1; i < file->values[object].next; i = file->values[i + 1].next)
    if (json_is(file, i, key)) return i + 1;
  return -1;
}

static long long json_number(const json *file, int value) {
  return value < 0 ? -1 : strtoll(file->text + file->values[value].text, NULL, 10);
}

/* A character in UTF-8; returns its bytes. */
static size_t json_put(char *to, unsigned point) {
  size_t tail = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  static const unsigned marks[] = {0, 0xC0, 0xE0, 0xF0};
  to[0] = (char)(marks[tail] | point >> (6 * tail));
  for (size_t i = 1; i <= tail; i++) to[i] = (char)(0x80 | (point >> (6 * (tail - i)) & 63));
  return tail + 1;
}

static unsigned json_hex(const char *text) {
  char digits[5] = {0};
  memcpy(digits, text, 4);
  return (unsigned)strtoul(digits, NULL, 16);
}

/* The text of a string in UTF-8, in place, its size in *size: it is never longer than what was written. */
static const char *json_text(json *file, int value, size_t *size) {
  json_value *v = &file->values[value];
  char *start = file->text + v->text, *end = file->text + v->end, *to = start;
  for (char *from = start; from < end; from++) {
    if (*from != '\\') {
      *to++ = *from;
      continue;
    }
    char c = *++from;
    if (c == 'u' && end - from > 4) {
      unsigned point = json_hex(from + 1);
      from += 4;
      if (point >> 10 == 0x36 && end - from > 6 && from[1] == '\\' && from[2] == 'u') {
        point = 0x10000 + ((point & 0x3FF) << 10) + (json_hex(from + 3) & 0x3FF);
        from += 6;
      }
      to += json_put(to, point);
    } else {
      const char *escapes = "b\bf\fn\nr\rt\t";
      const char *known = strchr(escapes, c);
      *to++ = known && c ? known[1] : c;
    }
  }
  *size = (size_t)(to - start);
  memset(to, ' ', (size_t)(end - to));
  v->end = v->text + *size;
  return start;
}

#endif
