#ifndef MOEI_LAYOUTS_H
#define MOEI_LAYOUTS_H

/* Tables of known models.  Layouts of checkpoints: how their tensors are called.  layouts.c has the table. */

#include <stdint.h>

/* How the experts' matrices make up tensors. */
enum {
  MOEI_PLAIN = 0,     /* the parameter as it is */
  MOEI_ROW = 1,       /* [1, n]: a vector as a matrix of one row */
  MOEI_NUMBERED = 2,  /* a tensor for each expert: name, its number, end */
  MOEI_SINGLE = 3,    /* a matrix, of the only expert: name, end */
  MOEI_STACKED = 4,   /* [E, rows, columns] */
  MOEI_FLATTENED = 5, /* [E * rows, columns] */
  MOEI_MXFP4 = 6,     /* bytes: name_blocks [E, rows, columns / 32, 16] and name_scales [E, rows, columns / 32] */
  MOEI_TABLE = 7,     /* [V, K] whole numbers, the hash table that the layer was made with */
  MOEI_REFUSED = 8    /* known, and not supported: first says why */
};

enum {
  MOEI_INTERLEAVED = 1, /* the rows of both parameters in turn, in place of all of the first, then all of the second */
  MOEI_TRANSPOSED = 2,  /* [columns, rows] in place of [rows, columns] */
  MOEI_OPTIONAL = 4     /* layers of this layout may do without */
};

/* How one tensor, or one for each expert, holds one or two parameters of a layer, of the same shape. */
typedef struct moei_rule {
  const char *name;
  const char *end; /* behind the number; else NULL */
  const char *first;
  const char *second; /* or NULL */
  int32_t listing;
  int32_t flags;
} moei_rule;

enum { MOEI_MOST_STARTS = 3, MOEI_MOST_FORMS = 2, MOEI_MOST_PARTS = 4 };

enum {
  MOEI_LOADING_ONLY = 1,
  MOEI_IDENTITIES = 2 /* behind the experts may be some without parameters, of a group of their own */
};

typedef struct moei_form {
  const moei_rule *rules;
  int32_t count;
} moei_form;

typedef struct moei_layout {
  const char *name;                     /* of the moe_layout */
  const char *starts[MOEI_MOST_STARTS]; /* before the layer's number; the first is written, a file may have the others */
  const char *end;                      /* behind it */
  const char *parts[MOEI_MOST_PARTS];   /* which names behind that are the layer's; none = all */
  moei_form forms[MOEI_MOST_FORMS];     /* the first is written, a file may have the other */
  int32_t flags;
} moei_layout;

/* Number `number`, a moe_layout; NULL where there is none. */
const moei_layout *moei_layout_at(int32_t number);

/* The two moe_expert_group of moe_preset_longcat_flash: static memory, which Swift has no spelling for. */
const void *moei_longcat_flash_groups(void);

#endif
