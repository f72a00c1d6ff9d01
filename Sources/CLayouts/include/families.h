#ifndef MOEI_FAMILIES_H
#define MOEI_FAMILIES_H

/* Tables of known language models: what the keys of a config.json mean, and how the tensors of their files are called.
 * Each family is a file in families/, and a line in families/families.c. */

#include <stddef.h>
#include <stdint.h>

/* What a key's value is. */
enum {
  MOEI_KEY_IGNORED = 0, /* nothing that is computed here depends on it */
  MOEI_KEY_RULE = 1,    /* read by a rule, see below */
  MOEI_KEY_SIZE = 2,    /* a whole number, into an int64_t */
  MOEI_KEY_COUNT = 3,   /* a whole number, into an int32_t */
  MOEI_KEY_DOUBLE = 4,  /* a number, into a double */
  MOEI_KEY_DIVISOR = 5, /* a number, its inverse into a double */
  MOEI_KEY_FLOAT = 6,   /* a number, into a float */
  MOEI_KEY_FLAG = 7,    /* true is 1, in an int32_t */
  MOEI_KEY_NOT = 8,     /* false is 1, in an int32_t */
  MOEI_KEY_FACTOR = 10, /* a number but 0, which would be libmoe's default, into a double */
  MOEI_KEY_IS = 9       /* one of the values in `otherwise`, as JSON without quotes has them, '|' between them */
};

enum { MOEI_OF_NOTHING = 0, MOEI_OF_MODEL = 1, MOEI_OF_MOE = 2 };

/* A key of config.json. */
typedef struct moei_key {
  const char *name;      /* other names of it behind '|' */
  int32_t kind;
  int32_t target;        /* which struct it goes into: moe_model_config or moe_layer_config */
  size_t offset;         /* where in it */
  const char *otherwise; /* its value where the file has none, or null; NULL: the file must have it */
} moei_key;

/* Which rows of a parameter a tensor is. */
enum {
  MOEI_ROWS_ALL = 0,
  MOEI_ROWS_QUERY = 1, /* of attention.qkv */
  MOEI_ROWS_KEY = 2,
  MOEI_ROWS_VALUE = 3,
  MOEI_ROWS_QUERY_AND_GATE = 4, /* of each head queries, then gates */
  MOEI_ROWS_HEADS = 5,          /* all of them, head by head */
  MOEI_ROWS_LATENT = 6,         /* all of them, a single head */
  MOEI_ROWS_LATENT_KEYS = 7,    /* [heads, latent, keys]: of each head what makes keys of the latent, transposed */
  MOEI_ROWS_LATENT_VALUES = 8   /* [heads, values, latent]: what makes values of it */
};

enum {
  MOEI_TURNED = 1,     /* pairs that turn together are neighbours, where the model has them half a head apart */
  MOEI_FROM_ZERO = 2,  /* the file has the parameter minus 1 */
  MOEI_OUTSIDE = 4,    /* its name does not begin as the others' do */
  MOEI_TIED = 8,       /* the file may have it though the model has not: then it must be what the parameter is */
  MOEI_RANKED = 16,    /* of models whose queries come from a latent */
  MOEI_UNRANKED = 32   /* of models whose queries do not */
};

/* A tensor beside those of an MoE block, for which the layouts are. */
typedef struct moei_tensor {
  const char *name;
  const char *parameter; /* of the model, or behind "layers.N." */
  int32_t rows;
  int32_t flags;
} moei_tensor;

/* What the keys alone do not say. */
enum {
  MOEI_LAYERS_ALL = 0,         /* every layer is MoE */
  MOEI_LAYERS_NONE = 1,        /* every layer is dense */
  MOEI_LAYERS_STEP = 2,        /* decoder_sparse_step, mlp_only_layers */
  MOEI_LAYERS_FIRST_DENSE = 3, /* first_k_dense_replace, moe_layer_freq */
  MOEI_LAYERS_INTERVAL = 4,    /* moe_layer_start_index, moe_layer_end_index, moe_layer_interval */
  MOEI_LAYERS_LISTED = 5       /* moe_layers, interleave_moe_layer_step */
};
enum {
  MOEI_WINDOW_NONE = 0,
  MOEI_WINDOW_ALL = 1,        /* sliding_window, of every layer */
  MOEI_WINDOW_IF_USED = 2,    /* the same, where use_sliding_window is true */
  MOEI_WINDOW_ALTERNATES = 3, /* layer_types; without them every other layer slides, the first one among them */
  MOEI_WINDOW_ABOVE = 4,      /* layer_types; without them, layers from max_window_layers on */
  MOEI_WINDOW_BELOW = 5,      /* layer_types; without them every other layer below max_window_layers, with use_sliding_window */
  MOEI_WINDOW_CHUNKS = 6,     /* layer_types; without them layers that turn see chunks of attention_chunk_size */
  MOEI_WINDOW_FULL_ONLY = 7,  /* layer_types, all of which must be full attention */
  MOEI_WINDOW_ABOVE_IF_USED = 8 /* as ABOVE, where use_sliding_window is true */
};
enum {
  MOEI_ROPE_PLAIN = 0,
  MOEI_ROPE_LATENT = 1,  /* of qk_rope_head_dim, and the scale of scores goes with mscale_all_dim */
  MOEI_ROPE_PHIMOE = 2,  /* short_mscale and long_mscale beside the short factors */
  MOEI_ROPE_SOMETIMES = 3, /* no_rope_layers, no_rope_layer_interval: layers without */
  MOEI_ROPE_NEEDED = 4    /* the file must have rope_parameters */
};

enum { MOEI_MOST_LAYOUTS = 2 };

typedef struct moei_family {
  const char *model_type;
  const char *nested;      /* the key that holds the language model's own keys; NULL = none */
  const char *prefix;      /* of the tensors' names */
  const char *outside;     /* the prefix of those that stand outside */
  const void *model;       /* the moe_model_config that the keys complete */
  const void *moe;         /* its moe_layer_config; NULL = dense */
  const moei_key *keys;
  int32_t key_count;
  int32_t tensor_count;
  const moei_tensor *tensors;
  const char *const *left; /* names that may be left, '*' at one end for any text; the last is NULL */
  int32_t layouts[MOEI_MOST_LAYOUTS]; /* each a moe_layout of the MoE blocks, the first that is written; 0 = none */
  int32_t layer_rule;
  int32_t window_rule;
  int32_t rope_rule;
  int32_t further_layers;  /* 1 = the files may have layers behind the last one, which are left (MTP) */
  int32_t first_dense;     /* first_k_dense_replace where the file has none */
  int32_t window;          /* sliding_window where the file has none */
  double theta;            /* where the file has none */
  double rotated;          /* which part of a head turns, where the file does not say */
  const char *layer;       /* before the layer's number in a name; NULL = "layers." */
} moei_family;

/* A model type that is known and not supported. */
typedef struct moei_unsupported {
  const char *model_type;
  const char *missing;
} moei_unsupported;

/* Number `number`, from 0; NULL behind the last one. */
const moei_family *moei_family_at(int32_t number);
const moei_unsupported *moei_unsupported_at(int32_t number);
/* Keys that every config.json may have. */
const moei_key *moei_common_keys(int32_t *count);
/* Names that every file may have, and that are left. */
const char *const *moei_common_left(void);
/* Of moe_layer_config.shared_intermediate_size. */
size_t moei_shared_width_offset(void);

#endif
