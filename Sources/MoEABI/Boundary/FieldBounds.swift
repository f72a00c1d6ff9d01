import CMoE
import MoE

// What fields may be by themselves. Written by scripts/abi from the comments in include/*.h; do not edit.

extension moe_context_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_threads, "n_threads", -1, 1024)
    try check.word(matmul, "matmul", of: "moe_matmul", last: 3)
    try check.word(instructions, "instructions", of: "moe_instructions", last: 4)
    try check.zero(reserved, "reserved")
  }
}

extension moe_phase_time: Bounded {}

extension moe_tensor: Bounded {}

extension moe_loss_term: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.word(kind, "kind", of: "moe_loss", last: 20)
    try check.number(coefficient, "coefficient", atLeast: 0)
  }
}

extension moe_expert_group: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_experts, "n_experts", 1, 2147483647)
    try check.integer(intermediate_size, "intermediate_size", 0, 2147483647)
    try check.word(expert_kind, "expert_kind", of: "moe_expert_kind", last: 5)
    try check.word(activation, "activation", of: "moe_activation", last: 5)
    try check.word(expert_bias, "expert_bias", of: "moe_bias", last: 2)
    try check.share(dropout, "dropout")
    try check.number(glu_limit, "glu_limit", atLeast: 0)
    try check.number(glu_alpha, "glu_alpha", atLeast: 0)
    try check.number(glu_offset, "glu_offset", atLeast: 0)
    try check.zero(reserved, "reserved")
  }
}

extension moe_layer_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(hidden_size, "hidden_size", 1, 2147483647)
    try check.integer(n_experts, "n_experts", 1, 2147483647)
    try check.integer(top_k, "top_k", 1, 2147483647)
    try check.flag(inference_only, "inference_only")
    try check.sum(unallocated, "unallocated", of: "moe_unallocated", 3)
    try check.flag(output_bias, "output_bias")
    try check.integer(intermediate_size, "intermediate_size", 0, 2147483647)
    try check.word(expert_kind, "expert_kind", of: "moe_expert_kind", last: 5)
    try check.word(activation, "activation", of: "moe_activation", last: 5)
    try check.word(expert_bias, "expert_bias", of: "moe_bias", last: 2)
    try check.share(dropout, "dropout")
    try check.number(glu_limit, "glu_limit", atLeast: 0)
    try check.number(glu_alpha, "glu_alpha", atLeast: 0)
    try check.number(glu_offset, "glu_offset", atLeast: 0)
    try check.integer(n_expert_groups, "n_expert_groups", 0, 16)
    try check.integer(n_shared_experts, "n_shared_experts", 0, 2147483647)
    try check.integer(shared_intermediate_size, "shared_intermediate_size", 0, 2147483647)
    try check.word(shared_gate, "shared_gate", of: "moe_shared_gate", last: 2)
    try check.word(router, "router", of: "moe_router", last: 6)
    try check.word(score, "score", of: "moe_score", last: 3)
    try check.word(router_weights, "router_weights", of: "moe_router_weights", last: 5)
    try check.word(router_normalize, "router_normalize", of: "moe_normalize", last: 4)
    try check.word(router_bias, "router_bias", of: "moe_bias", last: 2)
    try check.flag(weight_on_input, "weight_on_input")
    try check.number(normalize_epsilon, "normalize_epsilon", atLeast: 0)
    try check.word(epsilon_form, "epsilon_form", of: "moe_epsilon", last: 1)
    try check.number(normalize_p, "normalize_p", atLeast: 0)
    try check.number(mask_threshold, "mask_threshold", atLeast: 0)
    try check.number(routed_scale, "routed_scale", atLeast: 0)
    try check.flag(expert_scale, "expert_scale")
    try check.flag(selection_bias, "selection_bias")
    try check.word(group_mask, "group_mask", of: "moe_group_mask", last: 1)
    try check.word(dynamic_k, "dynamic_k", of: "moe_dynamic_k", last: 3)
    try check.number(dynamic_value, "dynamic_value", atLeast: 0)
    try check.integer(min_k, "min_k", 0, 2147483647)
    try check.word(router_norm, "router_norm", of: "moe_router_norm", last: 2)
    try check.number(router_norm_scale, "router_norm_scale", atLeast: 0)
    try check.number(router_norm_epsilon, "router_norm_epsilon", atLeast: 0)
    try check.integer(vocabulary_size, "vocabulary_size", 0, 2147483647)
    try check.word(noise, "noise", of: "moe_noise", last: 2)
    try check.number(noise_std, "noise_std", atLeast: 0)
    try check.flag(random_second, "random_second")
    try check.share(jitter, "jitter")
    try check.flag(jitter_experts, "jitter_experts")
    try check.share(router_dropout, "router_dropout")
    try check.word(router_dropout_on, "router_dropout_on", of: "moe_router_dropout", last: 1)
    try check.flag(router_batch_norm, "router_batch_norm")
    try check.fraction(batch_norm_momentum, "batch_norm_momentum")
    try check.number(batch_norm_epsilon, "batch_norm_epsilon", atLeast: 0)
    try check.integer(warmup_steps, "warmup_steps", 0, 2147483647)
    try check.integer(capacity, "capacity", 0, 2147483647)
    try check.integer(min_capacity, "min_capacity", 0, 2147483647)
    try check.word(capacity_formula, "capacity_formula", of: "moe_capacity", last: 11)
    try check.flag(capacity_per_sequence, "capacity_per_sequence")
    try check.finite(capacity_factor, "capacity_factor")
    try check.finite(eval_capacity_factor, "eval_capacity_factor")
    try check.word(drop, "drop", of: "moe_drop", last: 4)
    try check.word(overflow, "overflow", of: "moe_overflow", last: 1)
    try check.word(renormalize, "renormalize", of: "moe_renormalize", last: 1)
    try check.flag(adaptive_capacity, "adaptive_capacity")
    try check.number(adaptive_high, "adaptive_high", atLeast: 0)
    try check.number(adaptive_high_factor, "adaptive_high_factor", atLeast: 0)
    try check.number(adaptive_low, "adaptive_low", atLeast: 0)
    try check.number(adaptive_low_factor, "adaptive_low_factor", atLeast: 0)
    try check.number(balance_coef, "balance_coef", atLeast: 0)
    try check.number(z_coef, "z_coef", atLeast: 0)
    try check.integer(n_losses, "n_losses", 0, 16)
    try check.word(shared_bias, "shared_bias", of: "moe_bias", last: 2)
  }
}

extension moe_forward_options: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.below(step, "step", bits: 56)
    try check.flag(training, "training")
    try check.zero(reserved, "reserved")
    try check.integer(sequence_length, "sequence_length", 0, 2147483647)
    try check.word(tape_policy, "tape_policy", of: "moe_tape_policy", last: 2)
    try check.zero(reserved2, "reserved2")
    try check.integer(chunk_tokens, "chunk_tokens", 0, 2147483647)
  }
}

extension moe_report: Bounded {}

extension moe_plan: Bounded {}

extension moe_backward_options: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.number(clip_factor, "clip_factor", atLeast: 0)
    try check.flag(frozen_experts, "frozen_experts")
  }
}

extension moe_adamw_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.number(learning_rate, "learning_rate", atLeast: 0)
    try check.share(beta1, "beta1")
    try check.share(beta2, "beta2")
    try check.number(epsilon, "epsilon", above: 0)
    try check.number(weight_decay, "weight_decay", atLeast: 0)
    try check.flag(unallocated_state, "unallocated_state")
    try check.flag(stochastic_rounding, "stochastic_rounding")
    try check.zero(reserved, "reserved")
  }
}

extension moe_sgd_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.number(learning_rate, "learning_rate", atLeast: 0)
    try check.share(momentum, "momentum")
    try check.number(weight_decay, "weight_decay", atLeast: 0)
    try check.flag(unallocated_state, "unallocated_state")
    try check.flag(stochastic_rounding, "stochastic_rounding")
    try check.zero(reserved, "reserved")
  }
}

extension moe_muon_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.number(learning_rate, "learning_rate", atLeast: 0)
    try check.share(momentum, "momentum")
    try check.share(beta1, "beta1")
    try check.share(beta2, "beta2")
    try check.number(epsilon, "epsilon", above: 0)
    try check.number(weight_decay, "weight_decay", atLeast: 0)
    try check.flag(unallocated_state, "unallocated_state")
    try check.flag(stochastic_rounding, "stochastic_rounding")
    try check.zero(reserved, "reserved")
  }
}

extension moe_schedule: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.word(kind, "kind", of: "moe_schedule_kind", last: 4)
    try check.zero(reserved, "reserved")
    try check.number(learning_rate, "learning_rate", atLeast: 0)
    try check.integer(warmup_steps, "warmup_steps", 0, .max)
    try check.integer(total_steps, "total_steps", 0, .max)
    try check.fraction(final_fraction, "final_fraction")
    try check.fraction(pct_start, "pct_start")
    try check.number(div_factor, "div_factor", atLeast: 0)
    try check.number(final_div_factor, "final_div_factor", atLeast: 0)
    try check.share(base_momentum, "base_momentum")
    try check.share(max_momentum, "max_momentum")
  }
}

extension moe_clip_state: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.share(decay, "decay")
    try check.number(threshold, "threshold", above: 1)
    try check.integer(warmup_steps, "warmup_steps", 1, .max)
    try check.number(mean, "mean", atLeast: 0)
    try check.number(variance, "variance", atLeast: 0)
    try check.integer(count, "count", 0, .max)
  }
}

extension moe_stored_tensor: Bounded {}

extension moe_offload_statistics: Bounded {}

extension moe_training: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_layers, "n_layers", 0, 2147483647)
    try check.integer(n_optimizers, "n_optimizers", 0, 2147483647)
    try check.integer(n_statistics, "n_statistics", 0, 2147483647)
    try check.flag(without_unallocated, "without_unallocated")
    try check.zero(reserved, "reserved")
  }
}

extension moe_expert_tensor: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.word(part, "part", of: "moe_expert_part", last: 6)
  }
}

extension moe_experts_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_experts, "n_experts", 0, 2147483647)
    try check.integer(hidden_size, "hidden_size", 1, 2147483647)
    try check.integer(intermediate_size, "intermediate_size", 0, 2147483647)
    try check.word(expert_kind, "expert_kind", of: "moe_expert_kind", last: 5)
    try check.word(activation, "activation", of: "moe_activation", last: 5)
    try check.number(glu_limit, "glu_limit", atLeast: 0)
    try check.number(glu_alpha, "glu_alpha", atLeast: 0)
    try check.number(glu_offset, "glu_offset", atLeast: 0)
    try check.flag(weight_on_input, "weight_on_input")
    try check.zero(reserved, "reserved")
    try check.integer(n_weights, "n_weights", 0, 7)
  }
}

extension moe_experts_call: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_tokens, "n_tokens", 0, .max)
    try check.integer(top_k, "top_k", 1, 2147483647)
  }
}

extension moe_experts_gradients: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_tensors, "n_tensors", 0, 7)
    try check.flag(overwrite, "overwrite")
    try check.zero(reserved, "reserved")
  }
}

extension moe_norm_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_tokens, "n_tokens", 0, 2147483647)
    try check.integer(hidden_size, "hidden_size", 1, 2147483647)
    try check.word(norm, "norm", of: "moe_norm", last: 1)
    try check.zero(reserved, "reserved")
  }
}

extension moe_linear_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_tokens, "n_tokens", 0, 2147483647)
    try check.integer(inputs, "inputs", 1, 2147483647)
    try check.integer(outputs, "outputs", 1, 2147483647)
    try check.zero(reserved, "reserved")
  }
}

extension moe_rotary_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_tokens, "n_tokens", 0, 2147483647)
    try check.integer(n_heads, "n_heads", 1, 1048576)
    try check.integer(head_size, "head_size", 2, 1048576)
    try check.integer(sequence_length, "sequence_length", 0, 2147483647)
    try check.integer(first_position, "first_position", 0, 2147483647)
    try check.number(theta, "theta", atLeast: 1)
    try check.flag(inverse, "inverse")
    try check.zero(reserved, "reserved")
    try check.finite(scale, "scale")
  }
}

extension moe_attention_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_sequences, "n_sequences", 1, 2147483647)
    try check.integer(n_queries, "n_queries", 1, 2147483647)
    try check.integer(n_keys, "n_keys", 0, 2147483647)
    try check.integer(n_heads, "n_heads", 1, 1048576)
    try check.integer(n_kv_heads, "n_kv_heads", 0, 1048576)
    try check.integer(head_size, "head_size", 1, 1048576)
    try check.finite(scale, "scale")
    try check.flag(causal, "causal")
    try check.share(dropout, "dropout")
    try check.below(step, "step", bits: 56)
    try check.integer(window, "window", 0, 2147483647)
    try check.integer(chunk, "chunk", 0, 2147483647)
    try check.integer(value_size, "value_size", 0, 1048576)
  }
}

extension moe_attention_gradients: Bounded {}

extension moe_embedding_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_tokens, "n_tokens", 0, 2147483647)
    try check.integer(hidden_size, "hidden_size", 1, 2147483647)
    try check.integer(n_rows, "n_rows", 1, 2147483647)
    try check.integer(n_positions, "n_positions", 0, 2147483647)
    try check.integer(sequence_length, "sequence_length", 0, 2147483647)
    try check.integer(first_position, "first_position", 0, 2147483647)
  }
}

extension moe_cross_entropy_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_tokens, "n_tokens", 0, 2147483647)
    try check.integer(hidden_size, "hidden_size", 1, 2147483647)
    try check.integer(vocabulary_size, "vocabulary_size", 1, 2147483647)
    try check.fraction(label_smoothing, "label_smoothing")
    try check.finite(d_loss, "d_loss")
    try check.finite(logit_scale, "logit_scale")
    try check.number(logit_softcap, "logit_softcap", atLeast: 0)
  }
}

extension moe_rotary_table: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(rotary_size, "rotary_size", 0, 2147483647)
    try check.number(theta, "theta", atLeast: 0)
    try check.finite(scale, "scale")
    try check.finite(long_scale, "long_scale")
    try check.integer(original_length, "original_length", 0, 2147483647)
  }
}

extension moe_model_layer_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.flag(dense, "dense")
    try check.integer(window, "window", 0, 2147483647)
    try check.integer(chunk, "chunk", 0, 2147483647)
    try check.integer(dense_intermediate_size, "dense_intermediate_size", 0, 2147483647)
  }
}

extension moe_model_config: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(hidden_size, "hidden_size", 1, 2147483647)
    try check.integer(n_layers, "n_layers", 1, 1048576)
    try check.integer(n_heads, "n_heads", 1, 2147483647)
    try check.integer(n_kv_heads, "n_kv_heads", 0, 2147483647)
    try check.integer(head_size, "head_size", 0, 2147483647)
    try check.integer(vocabulary_size, "vocabulary_size", 0, 2147483647)
    try check.integer(max_positions, "max_positions", 0, 2147483647)
    try check.number(rope_theta, "rope_theta", atLeast: 0)
    try check.word(norm, "norm", of: "moe_norm", last: 1)
    try check.word(norm_place, "norm_place", of: "moe_norm_place", last: 2)
    try check.flag(final_norm, "final_norm")
    try check.flag(causal, "causal")
    try check.flag(qkv_bias, "qkv_bias")
    try check.flag(output_bias, "output_bias")
    try check.word(qk_norm, "qk_norm", of: "moe_qk_norm", last: 4)
    try check.flag(tied_output, "tied_output")
    try check.share(dropout, "dropout")
    try check.share(attention_dropout, "attention_dropout")
    try check.word(dense_activation, "dense_activation", of: "moe_activation", last: 5)
    try check.flag(dense_no_bias, "dense_no_bias")
    try check.share(dense_dropout, "dense_dropout")
    try check.flag(inference_only, "inference_only")
    try check.integer(dense_intermediate_size, "dense_intermediate_size", 0, 2147483647)
    try check.integer(moe_every, "moe_every", 0, 2147483647)
    try check.number(pooled_balance_coef, "pooled_balance_coef", atLeast: 0)
    try check.number(init_deviation, "init_deviation", atLeast: 0)
    try check.integer(n_rotary_tables, "n_rotary_tables", 0, 64)
    try check.finite(attention_scale, "attention_scale")
    try check.finite(embedding_scale, "embedding_scale")
    try check.finite(residual_scale, "residual_scale")
    try check.finite(logit_scale, "logit_scale")
    try check.number(logit_softcap, "logit_softcap", atLeast: 0)
    try check.finite(temperature_scale, "temperature_scale")
    try check.number(temperature_floor, "temperature_floor", atLeast: 0)
    try check.integer(value_head_size, "value_head_size", 0, 2147483647)
    try check.integer(latent_rank, "latent_rank", 0, 2147483647)
    try check.integer(query_rank, "query_rank", 0, 2147483647)
    try check.flag(sinks, "sinks")
    try check.flag(attention_gate, "attention_gate")
    try check.flag(logit_bias, "logit_bias")
  }
}

extension moe_model_input: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(n_sequences, "n_sequences", 0, 2147483647)
    try check.integer(sequence_length, "sequence_length", 1, 2147483647)
    try check.flag(training, "training")
    try check.share(label_smoothing, "label_smoothing")
    try check.below(step, "step", bits: 56)
    try check.integer(chunk_tokens, "chunk_tokens", 0, 2147483647)
  }
}

extension moe_model_report: Bounded {}

extension moe_model_plan: Bounded {}

extension moe_calibrated: Bounded {}

extension moe_read_options: Bounded {}

extension moe_sampling: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.number(temperature, "temperature", atLeast: 0)
    try check.integer(top_k, "top_k", 0, .max)
    try check.fraction(top_p, "top_p")
    try check.fraction(min_p, "min_p")
    try check.number(repetition_penalty, "repetition_penalty", atLeast: 0)
    try check.integer(n_history, "n_history", 0, 2147483647)
  }
}

extension moe_generation: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(max_new_tokens, "max_new_tokens", 1, 2147483647)
    try check.integer(n_eos, "n_eos", 0, 2147483647)
    try check.integer(chunk_tokens, "chunk_tokens", 0, 2147483647)
  }
}

extension moe_prepared_part: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.word(prepared, "prepared", of: "moe_prepared", last: 49)
    try check.zero(reserved, "reserved")
  }
}

extension moe_pretrained_options: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.word(weight_dtype, "weight_dtype", of: "moe_folder_dtype", last: 3)
    try check.word(embedding_dtype, "embedding_dtype", of: "moe_folder_dtype", last: 3)
    try check.flag(inference_only, "inference_only")
    try check.word(prepared, "prepared", of: "moe_prepared", last: 49)
    try check.integer(n_prepared_parts, "n_prepared_parts", 0, 4096)
    try check.sum(unallocated, "unallocated", of: "moe_unallocated", 3)
    try check.zero(reserved, "reserved")
  }
}

extension moe_pretrained_info: Bounded {}

extension moe_save_options: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.word(dtype, "dtype", of: "moe_folder_dtype", last: 3)
    try check.zero(reserved, "reserved")
  }
}

extension moe_communicator: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.integer(size, "size", 1, 2147483647)
    try check.sum(flags, "flags", of: "moe_communicator_flag", 1)
  }
}

extension moe_placement: Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {
    try check.word(choice_scope, "choice_scope", of: "moe_choice_scope", last: 1)
    try check.word(strategy, "strategy", of: "moe_strategy", last: 2)
    try check.zero(reserved, "reserved")
  }
}
