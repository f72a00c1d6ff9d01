#include "family.h"

static const moe_model_config model = {DECODER, .qk_norm = MOE_QK_NORM_ROTATED};
static const moe_layer_config moe = {GATED, .n_shared_experts = 1};

static const moei_key keys[] = {
    SIZES("290943"), KEY_HEADS("0"), HEAD_SIZE("0"), NORM_EPSILON("1e-5"), TIED("false"),
    WIDTH("intermediate_size"), EXPERTS("num_experts|num_local_experts", "1"), TOP_K("moe_topk", "1"), NO_BALANCE,
    QKV_BIAS("attention_bias", "false"), OUTPUT_BIAS("attention_bias", "false"), IS("use_qk_norm", "true"),
    IS("use_cla", "false"), IS("use_mla", "false"), IS("norm_type", "rms|hf_rms|fused"), IS("mlp_bias", "false"),
    IS("num_shared_expert", "1"), IS("use_mixed_mlp_moe", "true"), IS("use_rotary_pos_emb", "true"),
    IS("position_embedding_xdrope", "false"), IS("group_limited_greedy", "false"), IS("norm_topk_prob", "true"),
    IS("routed_scaling_factor", "1.0|0"), IS("moe_layer_num_skipped", "0"), IGNORED("moe_intermediate_size"),
    IGNORED("attention_head_dim"), IGNORED("cla_share_factor"), IGNORED("moe_drop_tokens"),
    IGNORED("moe_random_routing_dropped_token"), IGNORED("capacity_factor"), IGNORED("pool_type"), IGNORED("class_num"),
    IGNORED("add_classification_head"), IGNORED("dense_list"), IGNORED("im_start_id"),
    IGNORED("im_end_id"), IGNORED("im_newline_id"), IGNORED("text_start_id"), IGNORED("text_end_id"),
    IGNORED("video_start_id"), IGNORED("video_end_id"), IGNORED("mask_init_id"),
    IGNORED("org_vocab_size"), IGNORED("pad_id"), IGNORED("num_media_embeds"), IGNORED("n_group"), IGNORED("topk_group"),
    IGNORED("kv_lora_rank"), IGNORED("q_lora_rank"), IGNORED("qk_nope_head_dim"), IGNORED("qk_rope_head_dim"),
    IGNORED("v_head_dim"),
};
static const moei_tensor tensors[] = {
    ENDS, NORMS, ATTENTION,
    TENSOR(LAYER("self_attn.query_layernorm.weight"), LAYER("attention.q_norm.weight")),
    TENSOR(LAYER("self_attn.key_layernorm.weight"), LAYER("attention.k_norm.weight")),
};

const moei_family moei_family_hunyuan_v1_moe = {
    "hunyuan_v1_moe", TEXT_MODEL, TABLES(keys, tensors), .model = &model, .moe = &moe,
    .layouts = {MOE_LAYOUT_HUNYUAN}, .theta = 1e4,
};
