#include "architecture.h"

/* GLM-4.5 and dots.llm1: DeepSeek-V3's MoE behind attention as Llama has it.  GLM's files hold layers that predict further tokens. */

#define COMMON                                                                                              \
  SIZES, RMS_EPSILON, WIDTH_KEY, MOE_WIDTH, CHOICE("n_routed_experts", "num_experts_per_tok"), GROUPS,      \
      GATE_IS("2"), NUMBER_OR("expert_shared_count", "n_shared_experts", "0"),                              \
      UNREAD("expert_shared_feed_forward_length"),                                                          \
      NUMBER_OR("leading_dense_block_count", "first_k_dense_replace", "0"),                                 \
      NUMBER_OR("expert_weights_scale", "routed_scaling_factor", "1.0"), QKV_BIASES("attention_bias")

static const moei_metadata glm_keys[] = {
    COMMON, FLAG_OR("expert_weights_norm", "norm_topk_prob", "true"), HAS("blk.0.attn_q_norm.weight", "use_qk_norm")};
static const moei_metadata dots_keys[] = {
    COMMON, FLAG_OR("expert_weights_norm", "norm_topk_prob", "false"), MUST_BE("attention.sliding_window", "0"),
    ALWAYS("sliding_window", "null")};

static const moei_tensor glm_tensors[] = {EMBEDDINGS, BLOCK_NORMS("post_attention_norm"), HEADS(0), QK_NORMS, DENSE_FFN};
static const moei_tensor dots_tensors[] = {EMBEDDINGS, BLOCK_NORMS("ffn_norm"), HEADS(0), QK_NORMS, DENSE_FFN};
static const moei_family glm_names = {"glm4moe", NAMES(glm_tensors), .further_layers = 1};
static const moei_family dots_names = {"dots1", NAMES(dots_tensors)};

const moei_architecture moei_architecture_glm4moe = {
    "glm4moe", {{"glm4_moe"}}, KEYS(glm_keys), .turn_rule = MOEI_TURN_PART, .names = &glm_names};
const moei_architecture moei_architecture_dots1 = {"dots1", {{"dots1"}}, KEYS(dots_keys), .names = &dots_names};
