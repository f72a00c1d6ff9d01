/* check.h: what every program of this folder does when something is not as it should be. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                 \
  do {                                                                                                   \
    if (!(condition)) {                                                                                  \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, moe_last_error_message());     \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)

#endif
