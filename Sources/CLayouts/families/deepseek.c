#include "family.h"

/* DeepSeek-V2 and V3: multi-head latent attention [MLA 2024].  The pairs that turn are neighbours in the files. */

static const moe_model_config model = {DECODER};
static const moe_layer_config v2 = {
    GATED, .router_normalize = MOE_NORMALIZE_NONE, .group_mask = MOE_GROUP_MASK_ZERO};
static const moe_layer_config v3 = {GATED, SIGMOID_GATE, .group_top_m = 2};

#define COMMON                                                                                             \
  NORM_EPSILON("1e-6"), TIED("false"), IGNORED("num_key_value_heads"), IGNORED("head_dim"), IGNORED("qk_head_dim"), \
      DENSE_WIDTH("intermediate_size"), WIDTH("moe_intermediate_size"),                                    \
      EXPERTS("n_routed_experts|num_experts|num_local_experts", NULL),                                     \
      {"kv_lora_rank", MOEI_KEY_SIZE, MODEL(latent_rank), "512"},                                          \
      {"q_lora_rank", MOEI_KEY_SIZE, MODEL(query_rank), "1536"},                                              \
      {"v_head_dim", MOEI_KEY_SIZE, MODEL(value_head_size), "128"}, RULE("qk_nope_head_dim"),              \
      RULE("qk_rope_head_dim"), QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"), \
      {"n_group", MOEI_KEY_COUNT, MOE(n_groups), "1"}, {"topk_group", MOEI_KEY_COUNT, MOE(top_groups), "1"}, \
      RULE("first_k_dense_replace"), RULE("moe_layer_freq"), IS("mlp_bias", "false"), NO_BALANCE,          \
      IGNORED("aux_loss_alpha"), IGNORED("seq_aux"), IGNORED("num_nextn_predict_layers"), IGNORED("num_mtp_layers")

static const moei_key v2_keys[] = {
    SIZES("102400"), COMMON, TOP_K("num_experts_per_tok", NULL), ROUTED_SCALE("1.0"),
    {"n_shared_experts", MOEI_KEY_SIZE, MOE(n_shared_experts), "2"}, IS("topk_method", "greedy|group_limited_greedy"),
    IS("norm_topk_prob", "false"),
    IS("scoring_func", "softmax"),
};
static const moei_key v3_keys[] = {
    SIZES("129280"), COMMON, TOP_K("num_experts_per_tok", "8"), ROUTED_SCALE("2.5"),
    {"n_shared_experts", MOEI_KEY_SIZE, MOE(n_shared_experts), "1"}, NORMALIZED("true"), IS("topk_method", "noaux_tc"),
    IS("scoring_func", "sigmoid"), IS("rope_interleave", "true"),
};

static const moei_tensor tensors[] = {
    ENDS, NORMS,
    PAIR(LAYER("self_attn.q_a_proj"), LAYER("attention.q_a"), MOEI_ROWS_ALL, MOEI_RANKED),
    TENSOR(LAYER("self_attn.q_a_layernorm.weight"), LAYER("attention.q_a_norm.weight")),
    {LAYER("self_attn.q_b_proj.weight"), LAYER("attention.q_b.weight"), MOEI_ROWS_HEADS, MOEI_TURNED | MOEI_RANKED},
    {LAYER("self_attn.q_proj.weight"), LAYER("attention.q_b.weight"), MOEI_ROWS_HEADS, MOEI_TURNED | MOEI_UNRANKED},
    PAIR(LAYER("self_attn.kv_a_proj_with_mqa"), LAYER("attention.kv_a"), MOEI_ROWS_LATENT, MOEI_TURNED),
    TENSOR(LAYER("self_attn.kv_a_layernorm.weight"), LAYER("attention.kv_a_norm.weight")),
    TENSOR(LAYER("self_attn.kv_b_proj.weight"), LAYER("attention.kv_b.weight")),
    PAIR(LAYER("self_attn.o_proj"), LAYER("attention.output"), MOEI_ROWS_ALL, 0),
    DENSE("mlp."),
};

#define DEEPSEEK                                                                                              \
  .model = &model, .layouts = {MOE_LAYOUT_DEEPSEEK}, .layer_rule = MOEI_LAYERS_FIRST_DENSE,                   \
  .rope_rule = MOEI_ROPE_LATENT, .further_layers = 1, .theta = 1e4
const moei_family moei_family_deepseek_v2 = {"deepseek_v2", TEXT_MODEL, TABLES(v2_keys, tensors), DEEPSEEK, .moe = &v2};
const moei_family moei_family_deepseek_v3 = {
    "deepseek_v3", TEXT_MODEL, TABLES(v3_keys, tensors), DEEPSEEK, .moe = &v3, .first_dense = 3};
/* Kimi K2 is a DeepSeek-V3 under its own name. */
const moei_family moei_family_kimi_k2 = {
    "kimi_k2", TEXT_MODEL, TABLES(v3_keys, tensors), DEEPSEEK, .moe = &v3, .first_dense = 3};
