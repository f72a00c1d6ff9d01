import CMoE

// Structs as their macros have them, which Swift cannot import. Written by scripts/abi from include/*.h; do not edit.

@implementation @_cdecl("moe_context_config_init")
public func moe_context_config_init(_ given: UnsafeMutablePointer<moe_context_config>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_context_config())
}

@implementation @_cdecl("moe_phase_time_init")
public func moe_phase_time_init(_ given: UnsafeMutablePointer<moe_phase_time>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_phase_time())
}

@implementation @_cdecl("moe_tensor_init")
public func moe_tensor_init(_ given: UnsafeMutablePointer<moe_tensor>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_tensor())
}

@implementation @_cdecl("moe_layer_config_init")
public func moe_layer_config_init(_ given: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_layer_config())
}

@implementation @_cdecl("moe_forward_options_init")
public func moe_forward_options_init(_ given: UnsafeMutablePointer<moe_forward_options>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_forward_options())
}

@implementation @_cdecl("moe_report_init")
public func moe_report_init(_ given: UnsafeMutablePointer<moe_report>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_report())
}

@implementation @_cdecl("moe_plan_init")
public func moe_plan_init(_ given: UnsafeMutablePointer<moe_plan>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_plan())
}

@implementation @_cdecl("moe_backward_options_init")
public func moe_backward_options_init(_ given: UnsafeMutablePointer<moe_backward_options>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_backward_options())
}

extension moe_adamw_config {
  static var standard: moe_adamw_config {
    var own = moe_adamw_config()
    own.struct_size = MemoryLayout<moe_adamw_config>.size
    own.learning_rate = 0.001
    own.beta1 = 0.9
    own.beta2 = 0.999
    own.epsilon = 1e-08
    own.weight_decay = 0.01
    return own
  }
}

@implementation @_cdecl("moe_adamw_config_init")
public func moe_adamw_config_init(_ given: UnsafeMutablePointer<moe_adamw_config>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

extension moe_sgd_config {
  static var standard: moe_sgd_config {
    var own = moe_sgd_config()
    own.struct_size = MemoryLayout<moe_sgd_config>.size
    own.learning_rate = 0.001
    return own
  }
}

@implementation @_cdecl("moe_sgd_config_init")
public func moe_sgd_config_init(_ given: UnsafeMutablePointer<moe_sgd_config>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

extension moe_muon_config {
  static var standard: moe_muon_config {
    var own = moe_muon_config()
    own.struct_size = MemoryLayout<moe_muon_config>.size
    own.learning_rate = 0.001
    own.momentum = 0.95
    own.beta1 = 0.9
    own.beta2 = 0.95
    own.epsilon = 1e-08
    own.weight_decay = 0.1
    return own
  }
}

@implementation @_cdecl("moe_muon_config_init")
public func moe_muon_config_init(_ given: UnsafeMutablePointer<moe_muon_config>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

extension moe_schedule {
  static var standard: moe_schedule {
    var own = moe_schedule()
    own.struct_size = MemoryLayout<moe_schedule>.size
    own.learning_rate = 0.001
    own.pct_start = 0.3
    own.div_factor = 25.0
    own.final_div_factor = 10000.0
    own.base_momentum = 0.85
    own.max_momentum = 0.95
    return own
  }
}

@implementation @_cdecl("moe_schedule_init")
public func moe_schedule_init(_ given: UnsafeMutablePointer<moe_schedule>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

extension moe_clip_state {
  static var standard: moe_clip_state {
    var own = moe_clip_state()
    own.struct_size = MemoryLayout<moe_clip_state>.size
    own.decay = 0.97
    own.threshold = 2.5
    own.warmup_steps = 25
    return own
  }
}

@implementation @_cdecl("moe_clip_state_init")
public func moe_clip_state_init(_ given: UnsafeMutablePointer<moe_clip_state>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

@implementation @_cdecl("moe_stored_tensor_init")
public func moe_stored_tensor_init(_ given: UnsafeMutablePointer<moe_stored_tensor>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_stored_tensor())
}

@implementation @_cdecl("moe_offload_statistics_init")
public func moe_offload_statistics_init(_ given: UnsafeMutablePointer<moe_offload_statistics>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_offload_statistics())
}

@implementation @_cdecl("moe_training_init")
public func moe_training_init(_ given: UnsafeMutablePointer<moe_training>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_training())
}

@implementation @_cdecl("moe_experts_config_init")
public func moe_experts_config_init(_ given: UnsafeMutablePointer<moe_experts_config>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_experts_config())
}

extension moe_experts_call {
  static var standard: moe_experts_call {
    var own = moe_experts_call()
    own.struct_size = MemoryLayout<moe_experts_call>.size
    own.index_dtype = 5
    return own
  }
}

@implementation @_cdecl("moe_experts_call_init")
public func moe_experts_call_init(_ given: UnsafeMutablePointer<moe_experts_call>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

@implementation @_cdecl("moe_experts_gradients_init")
public func moe_experts_gradients_init(_ given: UnsafeMutablePointer<moe_experts_gradients>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_experts_gradients())
}

extension moe_norm_config {
  static var standard: moe_norm_config {
    var own = moe_norm_config()
    own.struct_size = MemoryLayout<moe_norm_config>.size
    own.epsilon = 1e-05
    return own
  }
}

@implementation @_cdecl("moe_norm_config_init")
public func moe_norm_config_init(_ given: UnsafeMutablePointer<moe_norm_config>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

@implementation @_cdecl("moe_linear_config_init")
public func moe_linear_config_init(_ given: UnsafeMutablePointer<moe_linear_config>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_linear_config())
}

extension moe_rotary_config {
  static var standard: moe_rotary_config {
    var own = moe_rotary_config()
    own.struct_size = MemoryLayout<moe_rotary_config>.size
    own.theta = 10000.0
    return own
  }
}

@implementation @_cdecl("moe_rotary_config_init")
public func moe_rotary_config_init(_ given: UnsafeMutablePointer<moe_rotary_config>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

@implementation @_cdecl("moe_attention_config_init")
public func moe_attention_config_init(_ given: UnsafeMutablePointer<moe_attention_config>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_attention_config())
}

@implementation @_cdecl("moe_attention_gradients_init")
public func moe_attention_gradients_init(_ given: UnsafeMutablePointer<moe_attention_gradients>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_attention_gradients())
}

@implementation @_cdecl("moe_embedding_config_init")
public func moe_embedding_config_init(_ given: UnsafeMutablePointer<moe_embedding_config>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_embedding_config())
}

extension moe_cross_entropy_config {
  static var standard: moe_cross_entropy_config {
    var own = moe_cross_entropy_config()
    own.struct_size = MemoryLayout<moe_cross_entropy_config>.size
    own.ignore_index = -100
    own.d_loss = 1.0
    return own
  }
}

@implementation @_cdecl("moe_cross_entropy_config_init")
public func moe_cross_entropy_config_init(
  _ given: UnsafeMutablePointer<moe_cross_entropy_config>?, _ struct_size: Int
) {
  initialise(given, struct_size, .standard)
}

@implementation @_cdecl("moe_model_config_init")
public func moe_model_config_init(_ given: UnsafeMutablePointer<moe_model_config>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_model_config())
}

extension moe_model_input {
  static var standard: moe_model_input {
    var own = moe_model_input()
    own.struct_size = MemoryLayout<moe_model_input>.size
    own.ignore_index = -100
    return own
  }
}

@implementation @_cdecl("moe_model_input_init")
public func moe_model_input_init(_ given: UnsafeMutablePointer<moe_model_input>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

@implementation @_cdecl("moe_model_report_init")
public func moe_model_report_init(_ given: UnsafeMutablePointer<moe_model_report>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_model_report())
}

@implementation @_cdecl("moe_model_plan_init")
public func moe_model_plan_init(_ given: UnsafeMutablePointer<moe_model_plan>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_model_plan())
}

@implementation @_cdecl("moe_calibrated_init")
public func moe_calibrated_init(_ given: UnsafeMutablePointer<moe_calibrated>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_calibrated())
}

@implementation @_cdecl("moe_read_options_init")
public func moe_read_options_init(_ given: UnsafeMutablePointer<moe_read_options>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_read_options())
}

extension moe_sampling {
  static var standard: moe_sampling {
    var own = moe_sampling()
    own.struct_size = MemoryLayout<moe_sampling>.size
    own.top_p = 1.0
    return own
  }
}

@implementation @_cdecl("moe_sampling_init")
public func moe_sampling_init(_ given: UnsafeMutablePointer<moe_sampling>?, _ struct_size: Int) {
  initialise(given, struct_size, .standard)
}

@implementation @_cdecl("moe_generation_init")
public func moe_generation_init(_ given: UnsafeMutablePointer<moe_generation>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_generation())
}

@implementation @_cdecl("moe_pretrained_options_init")
public func moe_pretrained_options_init(_ given: UnsafeMutablePointer<moe_pretrained_options>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_pretrained_options())
}

@implementation @_cdecl("moe_pretrained_info_init")
public func moe_pretrained_info_init(_ given: UnsafeMutablePointer<moe_pretrained_info>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_pretrained_info())
}

@implementation @_cdecl("moe_save_options_init")
public func moe_save_options_init(_ given: UnsafeMutablePointer<moe_save_options>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_save_options())
}

@implementation @_cdecl("moe_communicator_init")
public func moe_communicator_init(_ given: UnsafeMutablePointer<moe_communicator>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_communicator())
}

@implementation @_cdecl("moe_placement_init")
public func moe_placement_init(_ given: UnsafeMutablePointer<moe_placement>?, _ struct_size: Int) {
  initialise(given, struct_size, moe_placement())
}
