/* check.h: what programs of this folder share. */
#ifndef CHECK_H
#define CHECK_H

#include <moe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program when something is not as it should be. */
#define CHECK(condition)                                                                                 \
  do {                                                                                                   \
    if (!(condition)) {                                                                                  \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, moe_last_error_message());     \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)

/* Under a sanitizer memory is kept on purpose, and address space is taken by terabytes. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif

/* Does `text` contain `part`? */
static inline int contains(const char *text, const char *part) { return strstr(text, part) != NULL; }

/* Fills `tensors` with the layer's parameters, at most `room`, and returns how many there are. */
static inline int64_t parameters_of(const moe_layer *layer, moe_tensor *tensors, int64_t room) {
  int64_t count = 0;
  CHECK(moe_layer_parameter_count(layer, &count) == MOE_OK && count <= room);
  for (int64_t i = 0; i < count; i++) {
    moe_tensor_init(&tensors[i], sizeof tensors[i]);
    CHECK(moe_layer_parameter(layer, i, &tensors[i]) == MOE_OK);
  }
  return count;
}

#endif
