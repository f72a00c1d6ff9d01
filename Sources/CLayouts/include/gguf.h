#ifndef MOEI_GGUF_H
#define MOEI_GGUF_H

/* Tables of architectures in GGUF files: what their metadata mean in the words of a config.json, and how their tensors are called.
 * Each architecture is a file in gguf/, and a line in gguf/gguf.c. */

#include <stdint.h>

#include "families.h"

/* What a key of the metadata is. */
enum {
  MOEI_META_IGNORED = 0, /* nothing that is computed here depends on it */
  MOEI_META_RULE = 1,    /* read by a rule, see below */
  MOEI_META_NUMBER = 2,  /* a number, or several that are all the same */
  MOEI_META_NEEDED = 3,  /* such a number that the file must have */
  MOEI_META_FLAG = 4,    /* true or false */
  MOEI_META_IS = 5,      /* one of the values in `otherwise`, '|' between them; says nothing more */
  /* Of no key: */
  MOEI_META_ALWAYS = 6,  /* `otherwise`, whatever the file says */
  MOEI_META_HAS = 7,     /* true where the file has the tensor `name` */
  MOEI_META_DENSE = 8,   /* the list of layers without experts */
  MOEI_META_SPARSE = 9,  /* the list of those with */
  MOEI_META_LAST = 10,   /* the last one with */
  MOEI_META_BELOW = 11   /* of a key that others read too: whether its number is below `otherwise` */
};

/* A key of the metadata, behind "ARCHITECTURE.". */
typedef struct moei_metadata {
  const char *name;
  const char *key;       /* in config.json; of IGNORED, RULE and IS NULL */
  int32_t kind;
  const char *otherwise; /* as JSON, where the file has none; NULL: then it is not in config.json */
} moei_metadata;

/* Which model_type it is: the first line that fits. */
typedef struct moei_variant {
  const char *model_type;
  const char *name;  /* a key that the file must have, not 0; NULL: always */
  int32_t value;     /* which it must have; 0: any */
} moei_variant;

enum { MOEI_MOST_VARIANTS = 3 };

/* What the keys alone do not say. */
enum {
  MOEI_HEADS_PLAIN = 0,  /* key_length, or the hidden size in equal parts */
  MOEI_HEADS_LATENT = 1  /* latent attention: key_length_mla, value_length_mla, rope.dimension_count */
};
enum {
  MOEI_TURN_WHOLE = 0,    /* of a head as a whole: rope.dimension_count must be that */
  MOEI_TURN_PART = 1,     /* of rope.dimension_count numbers, as partial_rotary_factor has it */
  MOEI_TURN_SIZE = 2,     /* the same, as rotary_dim has it */
  MOEI_TURN_UNROUNDED = 3, /* as WHOLE, and YaRN's boundaries are not rounded (truncate) */
  MOEI_TURN_LATENT = 4,   /* as WHOLE, of a head's last part; the scale of scores is yarn_log_multiplier's */
  MOEI_TURN_SCALED = 5    /* as WHOLE; rope.scaling.attn_factor is LongRoPE's scale, short and long */
};

typedef struct moei_architecture {
  const char *name;            /* general.architecture */
  moei_variant variants[MOEI_MOST_VARIANTS];
  const moei_metadata *keys;
  int32_t key_count;
  int32_t heads_rule;
  int32_t turn_rule;
  const moei_family *names;    /* of its tensors; its model_type is the architecture's name */
  const moei_family *older;    /* of files that have `older_has`; or NULL */
  const char *older_has;
} moei_architecture;

/* Number `number`, from 0; NULL behind the last one. */
const moei_architecture *moei_architecture_at(int32_t number);

#endif
