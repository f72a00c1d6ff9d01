#include "family.h"

/* The families, and what is no family's own. */

#define FAMILIES(FAMILY)                                                                                              \
  FAMILY(mixtral) FAMILY(qwen2_moe) FAMILY(qwen3_moe) FAMILY(qwen3_vl_moe) FAMILY(qwen3_vl_moe_text)                  \
  FAMILY(qwen3_5_moe) FAMILY(qwen3_5_moe_text) FAMILY(olmoe) FAMILY(granitemoe) FAMILY(granitemoeshared)              \
  FAMILY(phimoe) FAMILY(gpt_oss) FAMILY(glm4_moe) FAMILY(dots1) FAMILY(ernie4_5_moe) FAMILY(minimax_m2)               \
  FAMILY(hunyuan_v1_moe) FAMILY(deepseek_v2) FAMILY(deepseek_v3) FAMILY(kimi_k2) FAMILY(llama4) FAMILY(llama4_text)                   \
  FAMILY(llama) FAMILY(mistral) FAMILY(qwen3)

#define DECLARED(name) extern const moei_family moei_family_##name;
#define LISTED(name) &moei_family_##name,
FAMILIES(DECLARED)
static const moei_family *const families[] = {FAMILIES(LISTED)};

const moei_family *moei_family_at(int32_t number) {
  if (number < 0 || number >= COUNT(families)) return NULL;
  return families[number];
}

/* What configurations of transformers have whatever the model is, and what says nothing about its numbers. */
static const moei_key common_keys[] = {
    RULE("model_type"), RULE("rope_parameters"), RULE("rope_scaling"), RULE("rope_theta"), RULE("partial_rotary_factor"),
    RULE("rotary_dim"), RULE("original_max_position_embeddings"), RULE("max_position_embeddings"),
    RULE("quantization_config"), RULE("text_config"),
    IS("is_encoder_decoder", "false"), IS("add_cross_attention", "false"), IS("chunk_size_feed_forward", "0"),
    IS("pruned_heads", "{}"), IS("layer_types", "full_attention"),
    IGNORED("vision_config"), IGNORED("image_token_id"), IGNORED("video_token_id"), IGNORED("vision_start_token_id"),
    IGNORED("vision_end_token_id"), IGNORED("image_token_index"), IGNORED("boi_token_index"), IGNORED("eoi_token_index"),
    IGNORED("boi_token_id"), IGNORED("eoi_token_id"),
    IGNORED("architectures"), IGNORED("auto_map"), IGNORED("dtype"), IGNORED("torch_dtype"),
    IGNORED("transformers_version"), IGNORED("_name_or_path"), IGNORED("name_or_path"), IGNORED("_commit_hash"),
    IGNORED("use_cache"), IGNORED("bos_token_id"), IGNORED("eos_token_id"), IGNORED("pad_token_id"),
    IGNORED("sep_token_id"), IGNORED("eod_token_id"), IGNORED("unk_token_id"), IGNORED("cls_token_id"),
    IGNORED("mask_token_id"), IGNORED("decoder_start_token_id"), IGNORED("forced_bos_token_id"),
    IGNORED("forced_eos_token_id"), IGNORED("suppress_tokens"), IGNORED("begin_suppress_tokens"),
    IGNORED("bad_words_ids"), IGNORED("initializer_range"), IGNORED("output_attentions"),
    IGNORED("output_hidden_states"), IGNORED("return_dict"), IGNORED("use_return_dict"), IGNORED("return_dict_in_generate"),
    IGNORED("output_scores"), IGNORED("id2label"), IGNORED("label2id"), IGNORED("num_labels"), IGNORED("problem_type"),
    IGNORED("finetuning_task"), IGNORED("task_specific_params"), IGNORED("tokenizer_class"), IGNORED("prefix"),
    IGNORED("torchscript"), IGNORED("is_decoder"), IGNORED("cross_attention_hidden_size"),
    IGNORED("tie_encoder_decoder"), IGNORED("remove_invalid_values"), IGNORED("use_bfloat16"), IGNORED("use_bf16"),
    IGNORED("tf_legacy_loss"), IGNORED("attn_implementation"), IGNORED("_attn_implementation"),
    IGNORED("_attn_implementation_autoset"), IGNORED("_attn_implementation_internal"), IGNORED("_flash_attn_2_enabled"),
    IGNORED("_experts_implementation"), IGNORED("experts_implementation"), IGNORED("use_flash_attention"),
    IGNORED("pretraining_tp"), IGNORED("tensor_parallel_degree"), IGNORED("ep_size"), IGNORED("unsloth_version"),
    IGNORED("unsloth_fixed"), IGNORED("gradient_checkpointing"), IGNORED("cache_implementation"), IGNORED("use_flash_attn"),
    IGNORED("max_sequence_length"), IGNORED("model_max_length"), IGNORED("transformers.js_config"),
    IGNORED("generation_config"), IGNORED("max_length"), IGNORED("min_length"),
    IGNORED("do_sample"), IGNORED("early_stopping"), IGNORED("num_beams"), IGNORED("num_beam_groups"),
    IGNORED("diversity_penalty"), IGNORED("temperature"), IGNORED("top_k"), IGNORED("top_p"), IGNORED("typical_p"),
    IGNORED("repetition_penalty"), IGNORED("length_penalty"), IGNORED("no_repeat_ngram_size"),
    IGNORED("encoder_no_repeat_ngram_size"), IGNORED("num_return_sequences"),
    IGNORED("exponential_decay_length_penalty"), IGNORED("base_model_tp_plan"), IGNORED("base_model_pp_plan"),
};

const moei_key *moei_common_keys(int32_t *count) {
  *count = COUNT(common_keys);
  return common_keys;
}

/* Tables that older versions saved, which follow from the configuration. */
static const char *const common_left[] = {
    "*.rotary_emb.inv_freq", "*.self_attn.masked_bias",
    /* Of keys and values kept in few bits. */
    "*.self_attn.k_scale", "*.self_attn.v_scale", NULL};
const char *const *moei_common_left(void) { return common_left; }

static const moei_unsupported unsupported[] = {
#define LINEAR_ATTENTION "layers of linear attention"
#define STATE_SPACE "state-space layers (Mamba)"
#define SPARSE_ATTENTION "attention over tokens that an indexer chooses"
    {"qwen3_next", LINEAR_ATTENTION},
    {"kimi_linear", LINEAR_ATTENTION},
    {"minimax", LINEAR_ATTENTION},
    {"minimax_m1", LINEAR_ATTENTION},
    {"bailing_moe_linear", LINEAR_ATTENTION},
    {"jamba", STATE_SPACE},
    {"nemotron_h", STATE_SPACE},
    {"granitemoehybrid", STATE_SPACE},
    {"falcon_h1", STATE_SPACE},
    {"bamba", STATE_SPACE},
    {"zamba2", STATE_SPACE},
    {"mamba", STATE_SPACE},
    {"mamba2", STATE_SPACE},
    {"lfm2", "layers of short convolutions"},
    {"lfm2_moe", "layers of short convolutions"},
    {"deepseek_v32", SPARSE_ATTENTION},
    {"deepseek_v4", SPARSE_ATTENTION},
    {"glm_moe_dsa", SPARSE_ATTENTION},
    {"gemma4", "norms after attention and ffn"},
    {"gemma4_text", "norms after attention and ffn"},
    {"gemma2", "norms after attention and ffn"},
    {"gemma3", "norms after attention and ffn"},
    {"gemma3_text", "norms after attention and ffn"},
    {"afmoe", "norms after attention and ffn"},
    {"longcat_flash", "two attentions in a layer"},
    {"dbrx", "LayerNorm without biases, and clipped projections"},
    {"jetmoe", "experts in attention"},
    {"switch_transformers", "an encoder beside the decoder"},
    {"nllb-moe", "an encoder beside the decoder"},
};

const moei_unsupported *moei_unsupported_at(int32_t number) {
  if (number < 0 || number >= COUNT(unsupported)) return NULL;
  return &unsupported[number];
}

size_t moei_shared_width_offset(void) { return offsetof(moe_layer_config, shared_intermediate_size); }
