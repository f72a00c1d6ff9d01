/* moe_pretrained.h: whole language models from folders and GGUF files as people have them, and back.
 *
 *     moe_model *model;
 *     moe_model_load(context, "OLMoE-1B-7B", NULL, &model);
 *     ...                                                     generate, train
 *     moe_model_save(model, "OLMoE-1B-7B-tuned", NULL);
 *
 * A folder has config.json, and its weights in model.safetensors or in the shards that model.safetensors.index.json names, as
 * transformers writes them.  What the model is follows from model_type in config.json: moe_pretrained_family lists those that
 * are known, docs/models.md says what each is.  Keys of config.json that nobody knows are refused by name, since they may
 * change the numbers; so are values that this library does not compute, and other model types.  Every tensor of the files is
 * used, or named in an error, but for those that the family's models do not read (layers for predicting further tokens, tables
 * of rotary positions, parts for images).
 *
 * Weights may be quantised: by compressed-tensors, AWQ or GPTQ, as FP8 or FP4 with scales, and in the blocks of GGUF.  They become
 * numbers of the model's type while they are read, exactly those that each format defines, rounded once to that type; or they are kept
 * as they are, with MOE_PREPARED_STORED.
 *
 * A folder that moe_model_save wrote of a model whose weights are packed alone (quant_method libmoe) is mapped into memory: its packed
 * weights are multiplied where they lie in the files, are read as they are touched, and may be given back by the system.  Nobody may
 * write into or cut these files as long as such a model is there; new files in their place change nothing.  What is
 * packed is frozen, and the rest of such a model is trained over it.
 *
 * In place of a folder a GGUF file may stand, or the first of several NAME-00001-of-0000N.gguf.  What the model is follows from its
 * keys, by the architecture: docs/models.md lists those that are known.
 *
 * The rules of moe.h hold.  Nothing in a folder or file is believed: sizes, names and places are checked, and weights are read with
 * pread, a tensor or a part of one at a time, so that the most memory is the model's and that of the largest of these.
 */
#ifndef MOE_PRETRAINED_H
#define MOE_PRETRAINED_H

#include "moe_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------
 * Pretrained models: folders
 * ---------------------------------------------------------------------------------------------------------- */

/** In which type weights are kept. */
typedef enum moe_folder_dtype {
  MOE_FOLDER_DTYPE_OWN = 0,  /**< loading: that of which the files have most, BF16 for quantised weights.  Saving: that of which the folder had
                                  most from which the model came; of another model its weight_dtype */
  MOE_FOLDER_DTYPE_F32 = 1,
  MOE_FOLDER_DTYPE_BF16 = 2,
  MOE_FOLDER_DTYPE_F16 = 3
} moe_folder_dtype;

/** How the matrices of a model are kept whose names have a pattern. */
typedef struct moe_prepared_part {
  const char *pattern; /**< of names as moe_model_parameter has them; '*' stands for any characters, or none: "layers.*.ffn.*" */
  int32_t prepared;    /**< a moe_prepared */
  int32_t reserved;    /**< 0 */
} moe_prepared_part;

/** How a folder is opened and its model made. */
typedef struct moe_pretrained_options {
  size_t struct_size;
  int32_t weight_dtype;    /**< a moe_folder_dtype: the model's weight_dtype.  Conversions are exact, or rounded to the nearest */
  int32_t embedding_dtype; /**< a moe_folder_dtype: of the token embedding; OWN = weight_dtype where that is BF16, else F32; not F16 */
  int32_t inference_only;  /**< 1 = no memory for gradients; backward is refused */
  int32_t prepared;        /**< a moe_prepared: what moe_model_prepare packs is packed so while it is read, and nothing else of it is kept: such
                                parameters have no memory, and the model is saved as it is packed.  Few bits are frozen (see moe_tensor), other
                                forms with inference_only */
  size_t resident_limit;   /**< bytes of parameters that may be in memory; where they are more, the routed experts' matrices stay in
                                the files as moe_layer_offload has it, each MoE layer keeping an equal part of the rest in memory; what
                                `prepared` and `prepared_parts` pack counts as it is packed.  With inference_only.  0 = all are in
                                memory */
  /** Told after each tensor how many bytes of the files are read, or written, of how many; a value other than 0 ends the call with
   *  MOE_ERROR_CANCELLED.  NULL = nobody.  Called in the calling thread; it must not call the library on the same model. */
  int32_t (*progress)(void *user, size_t done, size_t total);
  void *progress_user; /**< goes to progress */
  const moe_prepared_part *prepared_parts; /**< [n_prepared_parts] for single matrices, the embedding too, copied: the first whose pattern a matrix's name has says how
                                it is kept, `prepared` where none has.  Each has to have one.  Of one expert's matrices
                                those that would stay as they are go with others of few bits as float32; all or none are for int8 tokens */
  int64_t n_prepared_parts;    /**< a number, 0 to 4096 */
  const moe_calibration *calibration; /**< nullable: by which few bits are chosen while weights are packed, as moe_model_prepare_calibrated
                                           does, of a model with such parameters; with few bits in `prepared` or a part, and not with experts that
                                           stay in the files.  It must live until the model has been read */
  int32_t unallocated;         /**< a sum of moe_unallocated: EXPERT_GRADIENTS without inference_only, of a model with experts; see
                                    moe_model_config.moe */
  int32_t reserved;            /**< 0 */
} moe_pretrained_options;

#define MOE_PRETRAINED_OPTIONS_INIT { sizeof(moe_pretrained_options), 0, 0, 0, 0, 0, NULL, NULL, NULL, 0, NULL, 0, 0 }

/** Fill `options` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_pretrained_options_init(moe_pretrained_options *options, size_t struct_size);

/** A folder: its config.json, and the names, types and places of its tensors.  Keeps its context alive, and the files open. */
typedef struct moe_pretrained moe_pretrained;

/** Open a folder, or a GGUF file.  No weights are read, but all is checked that the files' headers tell: a tensor that is missing, misshapen, of
 *  another type or that no parameter is, is named here.  Of an output beside an embedding that it is tied to, numbers are compared.
 *  @param context [in]
 *  @param folder  [in] its path, or that of a GGUF file
 *  @param options [in, nullable] copied; NULL = the defaults
 *  @param out     [out] free it with moe_pretrained_free
 *  @return MOE_OK, INVALID_ARGUMENT (the message names the file, the key or the tensor), OUT_OF_MEMORY, IO. */
MOE_API MOE_CHECK moe_status moe_pretrained_open(moe_context *context, const char *folder,
                                                 const moe_pretrained_options *options, moe_pretrained **out);
/** Free a folder; NULL is a no-op.  Models that came from it stay. */
MOE_API void moe_pretrained_free(moe_pretrained *pretrained);

/** The configuration of its model, with the options' types.
 *  @param pretrained [in]
 *  @param config     [in, out] struct_size in, the rest out; what its pointers point at lives as long as `pretrained`
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_pretrained_config(const moe_pretrained *pretrained, moe_model_config *config);

/** What a folder has. */
typedef struct moe_pretrained_info {
  size_t struct_size;
  const char *model_type;   /**< as config.json has it; lives as long as the folder is open, as do the other texts */
  const char *ignored_keys; /**< keys of config.json that change no number, ", " between them */
  const char *left_tensors; /**< tensors that the model does not read, the first few, ", " between them */
  int64_t n_left_tensors;   /**< how many there are */
  int64_t n_tensors;        /**< of all files */
  int64_t n_parameters;     /**< numbers in the tensors that are read */
  int64_t n_active;         /**< of these, numbers that one token uses: of the routed experts top_k */
  int64_t n_moe_layers;     /**< of the model's layers, those with experts */
  int32_t dtype;            /**< a moe_folder_dtype: of which the files have most */
  int32_t reserved;         /**< 0 */
  size_t file_bytes;        /**< of the tensors that are read */
  size_t parameter_bytes;   /**< what the model's parameters will take, gradients aside, experts that stay in the files among them */
  size_t expert_bytes;      /**< of these, the routed experts' matrices */
  int64_t max_positions;    /**< max_position_embeddings of config.json; 0 where it has none */
  const char *config;       /**< the text of config.json; of a GGUF file what its keys say in the words of one */
} moe_pretrained_info;

#define MOE_PRETRAINED_INFO_INIT { sizeof(moe_pretrained_info), NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL }

/** Fill `info` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_pretrained_info_init(moe_pretrained_info *info, size_t struct_size);

/** @param pretrained [in]
 *  @param info       [in, out] struct_size in, the rest out
 *  @return MOE_OK, INVALID_ARGUMENT. */
MOE_API MOE_CHECK moe_status moe_pretrained_describe(const moe_pretrained *pretrained, moe_pretrained_info *info);

/** Read the weights into a model that was made with moe_pretrained_config's configuration, or with one that has the same
 *  parameters: dropout, losses and the like may differ, types too.  It does what the options say about progress alone.
 *  @param pretrained [in]
 *  @param model      [in, out] its parameters are overwritten, and it remembers the folder's config.json for moe_model_save
 *  @return MOE_OK, INVALID_ARGUMENT (a tensor that is missing, misshapen or not used: nothing is overwritten then), OUT_OF_MEMORY,
 *          BAD_STATE (a parameter has no memory), CANCELLED and IO (the parameters are then partly the files'). */
MOE_API MOE_CHECK moe_status moe_pretrained_load(const moe_pretrained *pretrained, moe_model *model);

/** Open a folder, make its model and read its weights, in one call.  After an error nothing is left.
 *  @param context [in]
 *  @param folder  [in] its path, or that of a GGUF file
 *  @param options [in, nullable] NULL = the defaults
 *  @param out     [out] free it with moe_model_free
 *  @return as moe_pretrained_open, moe_model_create and moe_pretrained_load. */
MOE_API MOE_CHECK moe_status moe_model_load(moe_context *context, const char *folder, const moe_pretrained_options *options,
                                            moe_model **out);

/** How a folder is written. */
typedef struct moe_save_options {
  size_t struct_size;
  int32_t dtype;         /**< a moe_folder_dtype: of the weights; selection biases stay F32, as transformers keeps them; OWN where
                              weights are packed */
  int32_t reserved;      /**< 0 */
  size_t max_shard_size; /**< bytes of tensors in a file at most, larger tensors aside; 0 = one file, model.safetensors */
  const char *config;    /**< nullable: the text of a config.json, of a model that has its names and shapes: for models that came from
                              no folder, or are to become another family's.  NULL: that of the folder it came from */
  int32_t (*progress)(void *user, size_t done, size_t total); /**< as in moe_pretrained_options */
  void *progress_user;   /**< goes to progress */
} moe_save_options;

#define MOE_SAVE_OPTIONS_INIT { sizeof(moe_save_options), 0, 0, 0, NULL, NULL, NULL }

/** Fill `options` with 0 and NULL.  NULL is ignored. */
MOE_API void moe_save_options_init(moe_save_options *options, size_t struct_size);

/** Write config.json and the weights, under the names and in the forms that transformers' save_pretrained writes.  The folder is made
 *  where there is none.  A model whose weights are kept packed alone is written in a layout of libmoe's own, to be mapped: each parameter
 *  under its name, as it is in memory; NAME.packed.FORM [bytes] of U8, where panels are, FORM being a moe_prepared in small letters,
 *  filled up to 64 bytes and at a multiple of 64 in the file; and in config.json a quantization_config of quant_method libmoe.  The weights are written beside what is there and take its place at once, as moe_checkpoint_write and
 *  moe_checkpoint_write_sharded do; then config.json, with its dtype changed where it changed, and without the quantization_config of
 *  weights that are quantised no longer.  Other files of the folder stay as they are.
 *  @param model   [in]
 *  @param folder  [in] its path
 *  @param options [in, nullable] NULL = the defaults
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BAD_STATE (a parameter has no memory), CANCELLED (what was there is as it was), IO. */
MOE_API MOE_CHECK moe_status moe_model_save(const moe_model *model, const char *folder, const moe_save_options *options);

/** Number `index`, from 0, of the model types that can be loaded; NULL behind the last one.  Never fails; any thread. */
MOE_API const char *moe_pretrained_family(int64_t index);

#ifdef __cplusplus
}
#endif
#endif /* MOE_PRETRAINED_H */
