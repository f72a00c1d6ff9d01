/* check.h: what programs of this folder share. */
#ifndef CHECK_H
#define CHECK_H

#include <moe.h>
#include <stdio.h>
#include <stdlib.h>

/* Ends the program when something is not as it should be. */
#define CHECK(condition)                                                                                 \
  do {                                                                                                   \
    if (!(condition)) {                                                                                  \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, moe_last_error_message());     \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)

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
