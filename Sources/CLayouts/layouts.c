#include <stddef.h>

#include "layouts.h"

/* By its path: the engine, which sees layouts.h, never sees a struct of the public header. */
#include "../../include/moe.h"

/* Names and forms of a layer's tensors in the checkpoints of known models; sources in docs/checkpoints.md.  A model of other
 * names is a row of `layouts` and what it has that is new. */

#define PLAIN(name, parameter, flags) {name, NULL, parameter, NULL, MOEI_PLAIN, flags}
#define REFUSED(name, why) {name, NULL, why, NULL, MOEI_REFUSED, 0}

/* A linear map with the bias that some variants have. */
#define LINEAR(name, parameter) \
  PLAIN(name ".weight", parameter ".weight", 0), PLAIN(name ".bias", parameter ".bias", MOEI_OPTIONAL)
#define GATE(name) LINEAR(name, "router")
#define SELECTION_BIAS(name) PLAIN(name, "router.selection_bias", MOEI_OPTIONAL)

/* One matrix of each expert, N being its number. */
#define NUMBERED(name, matrix, parameter)                                      \
  {name, "." matrix ".weight", parameter ".weight", NULL, MOEI_NUMBERED, 0},   \
      {name, "." matrix ".bias", parameter ".bias", NULL, MOEI_NUMBERED, MOEI_OPTIONAL}
#define UP_AND_DOWN(name, up, down) NUMBERED(name, up, "experts.up"), NUMBERED(name, down, "experts.down")
#define NUMBERED_EXPERTS(gate, up, down) \
  NUMBERED("experts.", gate, "experts.gate"), UP_AND_DOWN("experts.", up, down)
#define PROJECTIONS NUMBERED_EXPERTS("gate_proj", "up_proj", "down_proj")
#define MIXTRAL_NAMES NUMBERED_EXPERTS("w1", "w3", "w2")

/* All experts in two tensors: gate_up [E, 2I, H], gate rows first, and down [E, H, I]; or transposed. */
#define STACKED(gate_up, down, flags)                                                        \
  {gate_up, NULL, "experts.gate.weight", "experts.up.weight", MOEI_STACKED, flags},          \
      {down, NULL, "experts.down.weight", NULL, MOEI_STACKED, (flags) & MOEI_TRANSPOSED}
#define FUSED STACKED("experts.gate_up_proj", "experts.down_proj", 0)

/* One matrix of the shared expert, which is like one more of the numbered ones, without a number. */
#define SHARED_MATRIX(name, matrix, parameter)                                                 \
  {name, matrix ".weight", parameter ".weight", NULL, MOEI_SINGLE, MOEI_OPTIONAL},             \
      {name, matrix ".bias", parameter ".bias", NULL, MOEI_SINGLE, MOEI_OPTIONAL}
#define SHARED(name, gate, up, down)                                                 \
  SHARED_MATRIX(name, gate, "shared.gate"), SHARED_MATRIX(name, up, "shared.up"),    \
      SHARED_MATRIX(name, down, "shared.down")
#define SHARED_PROJECTIONS(name) SHARED(name, "gate_proj", "up_proj", "down_proj")

static const moei_rule mixtral[] = {GATE("gate"), MIXTRAL_NAMES};
static const moei_rule minimax_m2[] = {GATE("gate"), MIXTRAL_NAMES, SELECTION_BIAS("e_score_correction_bias")};
static const moei_rule lfm2_moe[] = {GATE("gate"), MIXTRAL_NAMES, SELECTION_BIAS("expert_bias")};
static const moei_rule deepseek_v4[] = {
    PLAIN("gate.weight", "router.weight", 0),
    SELECTION_BIAS("gate.bias"),
    {"gate.tid2eid", NULL, "hash_table", NULL, MOEI_TABLE, MOEI_OPTIONAL},
    MIXTRAL_NAMES,
    SHARED("shared_experts.", "w1", "w3", "w2"),
};

static const moei_rule projections[] = {GATE("gate"), PROJECTIONS};
static const moei_rule fused[] = {GATE("gate"), FUSED};
static const moei_rule qwen3_vl_moe[] = {
    GATE("gate"), STACKED("experts.gate_up_proj", "experts.down_proj", MOEI_TRANSPOSED)};

static const moei_rule qwen2_moe[] = {
    GATE("gate"), PROJECTIONS, SHARED_PROJECTIONS("shared_expert."),
    PLAIN("shared_expert_gate.weight", "shared.router.weight", MOEI_OPTIONAL)};
static const moei_rule qwen2_moe_fused[] = {
    GATE("gate"), FUSED, SHARED_PROJECTIONS("shared_expert."),
    PLAIN("shared_expert_gate.weight", "shared.router.weight", 0)};

#define DEEPSEEK_BESIDE \
  GATE("gate"), SELECTION_BIAS("gate.e_score_correction_bias"), SHARED_PROJECTIONS("shared_experts.")
static const moei_rule deepseek[] = {DEEPSEEK_BESIDE, PROJECTIONS};
static const moei_rule deepseek_fused[] = {DEEPSEEK_BESIDE, FUSED};
static const moei_rule ernie4_5[] = {
    GATE("gate"),
    {"moe_statics.e_score_correction_bias", NULL, "router.selection_bias", NULL, MOEI_ROW, MOEI_OPTIONAL},
    PROJECTIONS,
    SHARED_PROJECTIONS("shared_experts."),
};
static const moei_rule hunyuan[] = {GATE("gate.wg"), PROJECTIONS, SHARED_PROJECTIONS("shared_mlp.")};
static const moei_rule jamba[] = {GATE("router"), PROJECTIONS};
static const moei_rule afmoe[] = {
    GATE("router.gate"), SELECTION_BIAS("expert_bias"), PROJECTIONS, SHARED_PROJECTIONS("shared_experts.")};
static const moei_rule longcat_flash[] = {
    GATE("router.classifier"), SELECTION_BIAS("router.e_score_correction_bias"), PROJECTIONS};

#define LATENT "the layer has no experts in a space of their own (moe_latent_size)"
static const moei_rule nemotron_h[] = {
    GATE("gate"),
    SELECTION_BIAS("gate.e_score_correction_bias"),
    UP_AND_DOWN("experts.", "up_proj", "down_proj"),
    SHARED_MATRIX("shared_experts.", "up_proj", "shared.up"),
    SHARED_MATRIX("shared_experts.", "down_proj", "shared.down"),
    REFUSED("fc1_latent_proj.weight", LATENT),
    REFUSED("fc1_latent_proj.bias", LATENT),
    REFUSED("fc2_latent_proj.weight", LATENT),
    REFUSED("fc2_latent_proj.bias", LATENT),
};

/* Packed matrices are not transposed: the numbers of a block stand along what is summed. */
#define GPT_OSS_BIASES                                                                                   \
  PLAIN("router.weight", "router.weight", 0), PLAIN("router.bias", "router.bias", 0),                    \
      {"experts.gate_up_proj_bias", NULL, "experts.gate.bias", "experts.up.bias", MOEI_STACKED, MOEI_INTERLEAVED}, \
      {"experts.down_proj_bias", NULL, "experts.down.bias", NULL, MOEI_STACKED, 0}
static const moei_rule gpt_oss[] = {
    GPT_OSS_BIASES, STACKED("experts.gate_up_proj", "experts.down_proj", MOEI_INTERLEAVED | MOEI_TRANSPOSED)};
static const moei_rule gpt_oss_mxfp4[] = {
    GPT_OSS_BIASES,
    {"experts.gate_up_proj", NULL, "experts.gate.weight", "experts.up.weight", MOEI_MXFP4, MOEI_INTERLEAVED},
    {"experts.down_proj", NULL, "experts.down.weight", NULL, MOEI_MXFP4, 0},
};
static const moei_rule llama4[] = {
    GATE("router"), STACKED("experts.gate_up_proj", "experts.down_proj", MOEI_TRANSPOSED),
    SHARED_PROJECTIONS("shared_expert.")};
/* GraniteMoeShared's shared MLP stands beside the block. */
static const moei_rule granite_moe[] = {
    GATE("block_sparse_moe.router.layer"),
    STACKED("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight", 0),
    {"shared_mlp.", "input_linear.weight", "shared.gate.weight", "shared.up.weight", MOEI_SINGLE, MOEI_OPTIONAL},
    {"shared_mlp.", "output_linear.weight", "shared.down.weight", NULL, MOEI_SINGLE, MOEI_OPTIONAL},
};
static const moei_rule jetmoe[] = {
    GATE("router.layer"), STACKED("input_linear.weight", "output_linear.weight", 0),
    PLAIN("bias", "output.bias", MOEI_OPTIONAL)};
static const moei_rule dbrx[] = {
    GATE("router.layer"),
    {"experts.mlp.w1", NULL, "experts.gate.weight", NULL, MOEI_FLATTENED, 0},
    {"experts.mlp.v1", NULL, "experts.up.weight", NULL, MOEI_FLATTENED, 0},
    {"experts.mlp.w2", NULL, "experts.down.weight", NULL, MOEI_FLATTENED, MOEI_TRANSPOSED},
};
static const moei_rule switch_transformers[] = {GATE("router.classifier"), UP_AND_DOWN("experts.expert_", "wi", "wo")};
static const moei_rule nllb_moe[] = {GATE("router.classifier"), UP_AND_DOWN("experts.expert_", "fc1", "fc2")};

/* Gemma 4's router and experts stand in its layer, between other parts. */
static const moei_rule gemma4[] = {
    PLAIN("router.proj.weight", "router.weight", 0),
    PLAIN("router.scale", "router.norm.weight", 0),
    PLAIN("router.per_expert_scale", "router.expert_scale", 0),
    FUSED,
};

/* llama.cpp's names, the same for all models: one stack for each matrix of all experts, or gate and up in one, gate rows first. */
#define GGUF_STACK(name, parameter)                                        \
  {name ".weight", NULL, parameter ".weight", NULL, MOEI_STACKED, 0},      \
      {name ".bias", NULL, parameter ".bias", NULL, MOEI_STACKED, MOEI_OPTIONAL}
#define GGUF_BESIDE                                                                        \
  GATE("ffn_gate_inp"), SELECTION_BIAS("exp_probs_b.bias"), GGUF_STACK("ffn_down_exps", "experts.down"), \
      SHARED("ffn_", "gate_shexp", "up_shexp", "down_shexp"),                              \
      PLAIN("ffn_gate_inp_shexp.weight", "shared.router.weight", MOEI_OPTIONAL)
static const moei_rule gguf[] = {
    GGUF_BESIDE, GGUF_STACK("ffn_gate_exps", "experts.gate"), GGUF_STACK("ffn_up_exps", "experts.up")};
static const moei_rule gguf_fused[] = {
    GGUF_BESIDE,
    {"ffn_gate_up_exps.weight", NULL, "experts.gate.weight", "experts.up.weight", MOEI_STACKED, 0},
    {"ffn_gate_up_exps.bias", NULL, "experts.gate.bias", "experts.up.bias", MOEI_STACKED, MOEI_OPTIONAL},
};

#define FORM(rules) {rules, sizeof(rules) / sizeof(rules)[0]}
#define MLP .starts = {"model.layers."}, .end = ".mlp."
#define LANGUAGE_MODEL .starts = {"model.language_model.layers.", "model.layers.", "language_model.model.layers."}

static const moei_layout layouts[] = {
    [MOE_LAYOUT_LIBMOE] = {"MOE_LAYOUT_LIBMOE", .starts = {"layers."}, .end = ".",
                           .parts = {"router.", "experts.", "shared.", "output."}},
    [MOE_LAYOUT_MIXTRAL] = {"MOE_LAYOUT_MIXTRAL", .starts = {"model.layers."}, .end = ".block_sparse_moe.",
                            .forms = {FORM(mixtral)}},
    [MOE_LAYOUT_QWEN2_MOE] = {"MOE_LAYOUT_QWEN2_MOE", MLP, .forms = {FORM(qwen2_moe)}},
    [MOE_LAYOUT_QWEN3_MOE] = {"MOE_LAYOUT_QWEN3_MOE", MLP, .forms = {FORM(projections)}},
    [MOE_LAYOUT_OLMOE] = {"MOE_LAYOUT_OLMOE", MLP, .forms = {FORM(projections)}},
    [MOE_LAYOUT_DEEPSEEK] = {"MOE_LAYOUT_DEEPSEEK", MLP, .forms = {FORM(deepseek)}},
    [MOE_LAYOUT_GPT_OSS] = {"MOE_LAYOUT_GPT_OSS", MLP, .forms = {FORM(gpt_oss)}},
    [MOE_LAYOUT_GPT_OSS_MXFP4] = {"MOE_LAYOUT_GPT_OSS_MXFP4", MLP, .forms = {FORM(gpt_oss_mxfp4)},
                                  .flags = MOEI_LOADING_ONLY},
    [MOE_LAYOUT_LLAMA4] = {"MOE_LAYOUT_LLAMA4", .starts = {"language_model.model.layers."}, .end = ".feed_forward.",
                           .forms = {FORM(llama4)}},
    [MOE_LAYOUT_GRANITE_MOE] = {"MOE_LAYOUT_GRANITE_MOE", .starts = {"model.layers."}, .end = ".",
                                .parts = {"block_sparse_moe.", "shared_mlp."}, .forms = {FORM(granite_moe)}},
    [MOE_LAYOUT_DBRX] = {"MOE_LAYOUT_DBRX", .starts = {"transformer.blocks."}, .end = ".ffn.", .forms = {FORM(dbrx)}},
    [MOE_LAYOUT_SWITCH_ENCODER] = {"MOE_LAYOUT_SWITCH_ENCODER", .starts = {"encoder.block."}, .end = ".layer.1.mlp.",
                                   .forms = {FORM(switch_transformers)}},
    [MOE_LAYOUT_SWITCH_DECODER] = {"MOE_LAYOUT_SWITCH_DECODER", .starts = {"decoder.block."}, .end = ".layer.2.mlp.",
                                   .forms = {FORM(switch_transformers)}},
    [MOE_LAYOUT_TRANSFORMERS_5] = {"MOE_LAYOUT_TRANSFORMERS_5", MLP,
                                   .forms = {FORM(qwen2_moe_fused), FORM(deepseek_fused)}},
    [MOE_LAYOUT_LLAMA4_TEXT] = {"MOE_LAYOUT_LLAMA4_TEXT", .starts = {"model.layers."}, .end = ".feed_forward.",
                                .forms = {FORM(llama4)}},
    [MOE_LAYOUT_JETMOE] = {"MOE_LAYOUT_JETMOE", MLP, .forms = {FORM(jetmoe)}},
    [MOE_LAYOUT_MINIMAX_M2] = {"MOE_LAYOUT_MINIMAX_M2", .starts = {"model.layers."}, .end = ".block_sparse_moe.",
                               .forms = {FORM(minimax_m2)}},
    [MOE_LAYOUT_ERNIE4_5] = {"MOE_LAYOUT_ERNIE4_5", MLP, .forms = {FORM(ernie4_5)}},
    [MOE_LAYOUT_LONGCAT_FLASH] = {"MOE_LAYOUT_LONGCAT_FLASH", MLP, .forms = {FORM(longcat_flash)},
                                  .flags = MOEI_IDENTITIES},
    [MOE_LAYOUT_JAMBA] = {"MOE_LAYOUT_JAMBA", .starts = {"model.layers."}, .end = ".feed_forward.",
                          .forms = {FORM(jamba)}},
    [MOE_LAYOUT_HUNYUAN] = {"MOE_LAYOUT_HUNYUAN", MLP, .forms = {FORM(hunyuan)}},
    [MOE_LAYOUT_NEMOTRON_H] = {"MOE_LAYOUT_NEMOTRON_H", .starts = {"backbone.layers.", "model.layers."},
                               .end = ".mixer.", .forms = {FORM(nemotron_h)}},
    [MOE_LAYOUT_LFM2_MOE] = {"MOE_LAYOUT_LFM2_MOE", .starts = {"model.layers."}, .end = ".feed_forward.",
                             .forms = {FORM(lfm2_moe)}},
    [MOE_LAYOUT_AFMOE] = {"MOE_LAYOUT_AFMOE", MLP, .forms = {FORM(afmoe)}},
    [MOE_LAYOUT_DEEPSEEK_V4] = {"MOE_LAYOUT_DEEPSEEK_V4", .starts = {"layers.", "model.layers."}, .end = ".ffn.",
                                .forms = {FORM(deepseek_v4)}},
    [MOE_LAYOUT_NLLB_ENCODER] = {"MOE_LAYOUT_NLLB_ENCODER", .starts = {"model.encoder.layers."}, .end = ".ffn.",
                                 .forms = {FORM(nllb_moe)}},
    [MOE_LAYOUT_NLLB_DECODER] = {"MOE_LAYOUT_NLLB_DECODER", .starts = {"model.decoder.layers."}, .end = ".ffn.",
                                 .forms = {FORM(nllb_moe)}},
    [MOE_LAYOUT_QWEN3_VL_MOE] = {"MOE_LAYOUT_QWEN3_VL_MOE", LANGUAGE_MODEL, .end = ".mlp.",
                                 .forms = {FORM(qwen3_vl_moe), FORM(fused)}},
    [MOE_LAYOUT_QWEN3_5_MOE] = {"MOE_LAYOUT_QWEN3_5_MOE", LANGUAGE_MODEL, .end = ".mlp.",
                                .forms = {FORM(qwen2_moe), FORM(qwen2_moe_fused)}},
    [MOE_LAYOUT_GEMMA4] = {"MOE_LAYOUT_GEMMA4", LANGUAGE_MODEL, .end = ".", .parts = {"router.", "experts."},
                           .forms = {FORM(gemma4)}},
    [MOE_LAYOUT_GGUF] = {"MOE_LAYOUT_GGUF", .starts = {"blk."}, .end = ".",
                         .parts = {"ffn_gate_", "ffn_up_", "ffn_down_", "exp_probs_b"},
                         .forms = {FORM(gguf), FORM(gguf_fused)}, .flags = MOEI_LOADING_ONLY},
};

const moei_layout *moei_layout_at(int32_t number) {
  if (number < 0 || number >= (int32_t)(sizeof layouts / sizeof layouts[0])) return NULL;
  return &layouts[number];
}
