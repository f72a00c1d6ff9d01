import CLayouts
import CMoE

// Whole configurations of known models, in the order of the header. Sizes are those of the checkpoint named.

/// Mixtral-8x7B-v0.1
@implementation @_cdecl("moe_preset_mixtral")
public func moe_preset_mixtral(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  initialise(config, struct_size, moe_layer_config(hidden: 4096, intermediate: 14336, experts: 8, topK: 2))
}

/// Qwen2-57B-A14B
@implementation @_cdecl("moe_preset_qwen2_moe")
public func moe_preset_qwen2_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 3584, intermediate: 2560, experts: 64, topK: 8)
  c.setNotNormalized()
  c.setShared(width: 20480)
  c.shared_gate = number(MOE_SHARED_SIGMOID)
  initialise(config, struct_size, c)
}

/// Qwen3-235B-A22B
@implementation @_cdecl("moe_preset_qwen3_moe")
public func moe_preset_qwen3_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  initialise(config, struct_size, moe_layer_config(hidden: 4096, intermediate: 1536, experts: 128, topK: 8))
}

/// OLMoE-1B-7B-0924
@implementation @_cdecl("moe_preset_olmoe")
public func moe_preset_olmoe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2048, intermediate: 1024, experts: 64, topK: 8)
  c.setNotNormalized()
  initialise(config, struct_size, c)
}

/// DeepSeek-V2
@implementation @_cdecl("moe_preset_deepseek_v2")
public func moe_preset_deepseek_v2(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 5120, intermediate: 1536, experts: 160, topK: 6)
  c.setNotNormalized()
  c.n_groups = 8
  c.top_groups = 3
  c.group_mask = number(MOE_GROUP_MASK_ZERO)
  c.routed_scale = 16
  c.setShared(width: 2 * 1536)
  initialise(config, struct_size, c)
}

/// DeepSeek-V3
@implementation @_cdecl("moe_preset_deepseek_v3")
public func moe_preset_deepseek_v3(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 7168, intermediate: 2048, experts: 256, topK: 8)
  c.setDeepSeekV3Gate(scale: 2.5)
  c.n_groups = 8
  c.top_groups = 4
  c.group_top_m = 2
  c.setShared(width: 2048)
  initialise(config, struct_size, c)
}

/// GLM-4.5
@implementation @_cdecl("moe_preset_glm4_moe")
public func moe_preset_glm4_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 5120, intermediate: 1536, experts: 160, topK: 8)
  c.setDeepSeekV3Gate(scale: 2.5)
  c.setShared(width: 1536)
  initialise(config, struct_size, c)
}

/// gpt-oss-120b
@implementation @_cdecl("moe_preset_gpt_oss")
public func moe_preset_gpt_oss(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2880, intermediate: 2880, experts: 128, topK: 4)
  c.setTopKSoftmax()
  c.router_bias = number(MOE_BIAS_ON)
  c.expert_bias = number(MOE_BIAS_ON)
  c.glu_limit = 7
  c.glu_alpha = 1.702
  c.glu_offset = 1
  initialise(config, struct_size, c)
}

/// granite-3.0-3b-a800m
@implementation @_cdecl("moe_preset_granite_moe")
public func moe_preset_granite_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 1536, intermediate: 512, experts: 40, topK: 8)
  c.setTopKSoftmax()
  initialise(config, struct_size, c)
}

/// JetMoE-8b
@implementation @_cdecl("moe_preset_jetmoe")
public func moe_preset_jetmoe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2048, intermediate: 5632, experts: 8, topK: 2)
  c.setTopKSoftmax()
  c.output_bias = 1
  initialise(config, struct_size, c)
}

/// Phi-3.5-MoE-instruct, in evaluation
@implementation @_cdecl("moe_preset_phimoe")
public func moe_preset_phimoe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 4096, intermediate: 6400, experts: 16, topK: 2)
  c.router_weights = number(MOE_ROUTER_WEIGHTS_SPARSEMIXER)
  c.setNotNormalized()
  c.mask_threshold = 0.01
  initialise(config, struct_size, c)
}

/// DBRX
@implementation @_cdecl("moe_preset_dbrx")
public func moe_preset_dbrx(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 6144, intermediate: 10752, experts: 16, topK: 4)
  c.router_normalize = number(MOE_NORMALIZE_NORM1)
  initialise(config, struct_size, c)
}

/// Llama-4-Maverick-17B-128E
@implementation @_cdecl("moe_preset_llama4")
public func moe_preset_llama4(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 5120, intermediate: 8192, experts: 128, topK: 1)
  c.router_weights = number(MOE_ROUTER_WEIGHTS_TOPK_SIGMOID)
  c.setNotNormalized()
  c.weight_on_input = 1
  c.setShared(width: 0)
  initialise(config, struct_size, c)
}

/// MiniMax-M2
@implementation @_cdecl("moe_preset_minimax_m2")
public func moe_preset_minimax_m2(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 3072, intermediate: 1536, experts: 256, topK: 8)
  c.score = number(MOE_SCORE_SIGMOID)
  c.selection_bias = 1
  initialise(config, struct_size, c)
}

/// ERNIE-4.5-21B-A3B
@implementation @_cdecl("moe_preset_ernie4_5")
public func moe_preset_ernie4_5(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2560, intermediate: 1536, experts: 64, topK: 6)
  c.selection_bias = 1
  c.epsilon_form = number(MOE_EPSILON_LEAST)
  c.normalize_epsilon = 1e-12
  c.setShared(width: 2 * 1536)
  initialise(config, struct_size, c)
}

/// LongCat-Flash-Chat: 512 experts, then 256 that give back what they get
@implementation @_cdecl("moe_preset_longcat_flash")
public func moe_preset_longcat_flash(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 6144, intermediate: 0, experts: 768, topK: 12)
  c.expert_kind = 0  // as the groups say
  c.activation = 0
  c.expert_groups = moei_longcat_flash_groups().assumingMemoryBound(to: moe_expert_group.self)
  c.n_expert_groups = 2
  c.selection_bias = 1
  c.setNotNormalized()
  c.routed_scale = 6
  initialise(config, struct_size, c)
}

/// switch-base-8
@implementation @_cdecl("moe_preset_switch")
public func moe_preset_switch(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 768, intermediate: 3072, experts: 8, topK: 1)
  c.expert_kind = number(MOE_EXPERT_MLP)
  c.activation = number(MOE_ACTIVATION_RELU)
  c.expert_bias = number(MOE_BIAS_OFF)
  c.dropout = 0.1
  c.setNotNormalized()
  c.capacity_formula = number(MOE_CAPACITY_CONSTANT)
  c.capacity = 64
  c.capacity_per_sequence = 1
  c.jitter = 0.01
  initialise(config, struct_size, c)
}

/// Jamba-v0.1
@implementation @_cdecl("moe_preset_jamba")
public func moe_preset_jamba(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 4096, intermediate: 14336, experts: 16, topK: 2)
  c.setNotNormalized()
  initialise(config, struct_size, c)
}

/// gemma-4-26B-A4B
@implementation @_cdecl("moe_preset_gemma4")
public func moe_preset_gemma4(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2816, intermediate: 704, experts: 128, topK: 8)
  c.activation = number(MOE_ACTIVATION_GELU_TANH)
  c.router_norm = number(MOE_ROUTER_NORM_RMS_WEIGHT)
  c.expert_scale = 1
  initialise(config, struct_size, c)
}

/// llama.cpp's gate for Mixtral: the sum of the weights is at least 2^-14, the smallest normal float16
@implementation @_cdecl("moe_preset_llama_cpp")
public func moe_preset_llama_cpp(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 4096, intermediate: 14336, experts: 8, topK: 2)
  c.epsilon_form = number(MOE_EPSILON_LEAST)
  c.normalize_epsilon = 0x1p-14
  initialise(config, struct_size, c)
}

/// Qwen3-VL-30B-A3B-Instruct
@implementation @_cdecl("moe_preset_qwen3_vl_moe")
public func moe_preset_qwen3_vl_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  initialise(config, struct_size, moe_layer_config(hidden: 2048, intermediate: 768, experts: 128, topK: 8))
}

/// Qwen3.5-35B-A3B
@implementation @_cdecl("moe_preset_qwen3_5_moe")
public func moe_preset_qwen3_5_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2048, intermediate: 512, experts: 256, topK: 8)
  c.setShared(width: 512)
  c.shared_gate = number(MOE_SHARED_SIGMOID)
  initialise(config, struct_size, c)
}

/// dots.llm1
@implementation @_cdecl("moe_preset_dots1")
public func moe_preset_dots1(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 4096, intermediate: 1408, experts: 128, topK: 6)
  c.setDeepSeekV3Gate(scale: 2.5)
  c.setShared(width: 2 * 1408)
  initialise(config, struct_size, c)
}

/// Hunyuan-A13B
@implementation @_cdecl("moe_preset_hunyuan")
public func moe_preset_hunyuan(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 4096, intermediate: 3072, experts: 64, topK: 8)
  c.setShared(width: 3072)
  initialise(config, struct_size, c)
}

/// Nemotron-3-Nano-30B-A3B
@implementation @_cdecl("moe_preset_nemotron_h")
public func moe_preset_nemotron_h(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2688, intermediate: 1856, experts: 128, topK: 6)
  c.expert_kind = number(MOE_EXPERT_MLP)
  c.activation = number(MOE_ACTIVATION_RELU2)
  c.expert_bias = number(MOE_BIAS_OFF)
  c.setDeepSeekV3Gate(scale: 2.5)
  c.setShared(width: 3712)
  initialise(config, struct_size, c)
}

/// LFM2-8B-A1B
@implementation @_cdecl("moe_preset_lfm2_moe")
public func moe_preset_lfm2_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2048, intermediate: 1792, experts: 32, topK: 4)
  c.score = number(MOE_SCORE_SIGMOID)
  c.selection_bias = 1
  c.normalize_epsilon = 1e-6
  initialise(config, struct_size, c)
}

/// Trinity-Mini
@implementation @_cdecl("moe_preset_afmoe")
public func moe_preset_afmoe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2048, intermediate: 1024, experts: 128, topK: 8)
  c.setDeepSeekV3Gate(scale: 2.826)
  c.setShared(width: 1024)
  initialise(config, struct_size, c)
}

/// DeepSeek-V4-Flash, its layers that choose by logits
@implementation @_cdecl("moe_preset_deepseek_v4")
public func moe_preset_deepseek_v4(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 4096, intermediate: 2048, experts: 256, topK: 6)
  c.setDeepSeekV3Gate(scale: 1.5)
  c.score = number(MOE_SCORE_SQRT_SOFTPLUS)
  c.glu_limit = 10
  c.setShared(width: 2048)
  initialise(config, struct_size, c)
}

/// NLLB-MoE-54B, in evaluation: outputs times 0.8, for the tokens that training drops
@implementation @_cdecl("moe_preset_nllb_moe")
public func moe_preset_nllb_moe(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  var c = moe_layer_config(hidden: 2048, intermediate: 8192, experts: 128, topK: 2)
  c.expert_kind = number(MOE_EXPERT_MLP)
  c.activation = number(MOE_ACTIVATION_RELU)
  c.epsilon_form = number(MOE_EPSILON_LEAST)
  c.normalize_epsilon = 0x1p-23
  c.routed_scale = 0.8
  initialise(config, struct_size, c)
}
