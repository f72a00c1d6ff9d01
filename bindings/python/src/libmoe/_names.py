"""What other libraries and papers call the arguments and words of this one."""

from __future__ import annotations

_THEIRS = {
    "activation": "act hidden_act act_fn activation_fn activation_function nonlinearity dense_act_fn",
    "added_mask": "attn_bias attention_bias bias_mask",
    "attention_scale": "attention_multiplier softmax_scale scaling query_pre_attn_scalar",
    "balance_coef": (
        "aux_loss_coef router_aux_loss_coef balance_loss_coef load_balancing_loss_coef "
        "moe_aux_loss_coeff aux_coef aux_loss_weight"
    ),
    "betas": "beta beta1 beta2 adam_beta1 adam_beta2",
    "momentum": "beta betas beta1",
    "capacity_factor": ("cap_factor moe_capacity_factor train_capacity_factor moe_expert_capacity_factor"),
    "capacity": "expert_capacity max_capacity",
    "causal": "is_causal is_decoder causal_mask",
    "chunk": "attention_chunk_size chunk_size",
    "context": "ctx device",
    "dense_activation": "activation hidden_act",
    "dense_intermediate_size": "intermediate_size ffn_dim d_ff dim_feedforward ffn_hidden_size",
    "draw": "index position",
    "dropout": (
        "p drop_rate dropout_rate dropout_p hidden_dropout dropout_prob hidden_dropout_prob resid_pdrop"
    ),
    "attention_dropout": "attn_dropout attn_pdrop attention_probs_dropout_prob",
    "embedding_scale": "embedding_multiplier scale_emb",
    "end_tokens": "eos_token_id eos_token_ids eos eos_token eos_ids stop_token_ids stop_tokens",
    "epsilon": "eps adam_epsilon",
    "norm_epsilon": "eps epsilon rms_norm_eps layer_norm_eps layer_norm_epsilon",
    "expert_bias": "bias use_bias mlp_bias",
    "expert_indices": "topk_ids topk_indices selected_experts indices",
    "expert_weights": "topk_weights routing_weights",
    "expert_kind": "expert_type expert ffn_type mlp_type",
    "expert_scale": "per_expert_scale",
    "final_fraction": "min_lr_ratio min_lr_rate end_fraction eta_min min_lr",
    "head_size": "head_dim d_head attention_head_size kv_channels",
    "hidden_size": (
        "hidden_dim d_model dim model_dim embed_dim n_embd embedding_dim embed_size input_dim "
        "input_size hidden in_features"
    ),
    "ignore_index": "ignore_id pad_token_id",
    "init_deviation": "initializer_range init_std",
    "intermediate_size": (
        "ffn_dim d_ff ffn_hidden_size ffn_hidden dim_feedforward moe_intermediate_size expert_dim "
        "expert_hidden_size hidden_dim mlp_dim n_inner inner_dim"
    ),
    "io_dtype": "dtype activation_dtype compute_dtype",
    "jitter": "jitter_eps router_jitter_noise router_jitter moe_input_jitter_eps jitter_noise",
    "kind": "name lr_scheduler_type schedule type",
    "latent_rank": "kv_lora_rank",
    "layers": "layer_types mlp_only_layers moe_layers no_rope_layers first_k_dense_replace",
    "logit_bias": "lm_head_bias",
    "logit_scale": "logits_scaling logits_scale logit_multiplier lm_head_multiplier",
    "logit_softcap": "final_logit_softcapping logit_softcapping softcap",
    "learning_rate": "lr max_lr alpha rate base_lr step_size eta",
    "losses": "loss aux_losses",
    "matmul": "backend",
    "max_norm": "max_grad_norm clip clip_norm grad_clip clip_grad",
    "max_positions": (
        "max_position_embeddings max_seq_len max_sequence_length n_positions n_ctx block_size context_length"
    ),
    "max_length": "max_seq_len max_tokens",
    "max_shard_size": "shard_size max_shard",
    "memory_limit": "max_memory memory_budget memory max_bytes",
    "moe": "experts moe_config",
    "moe_every": "moe_layer_freq decoder_sparse_step moe_step expert_interval expert_layer_period",
    "n_experts": (
        "num_experts experts num_local_experts n_routed_experts num_routed_experts num_moe_experts "
        "moe_num_experts number_of_experts expert_count"
    ),
    "n_groups": "n_group num_expert_group num_groups moe_router_num_groups",
    "n_heads": "num_heads nhead n_head num_attention_heads heads",
    "n_kv_heads": "num_kv_heads num_key_value_heads kv_heads num_query_groups",
    "n_layers": "num_layers num_hidden_layers n_layer depth layers",
    "n_sequences": "batch batch_size",
    "n_shared_experts": "num_shared_experts shared_experts num_shared_expert",
    "n_threads": "num_threads threads n_jobs num_workers nthreads cores",
    "n_tokens": "max_new_tokens num_tokens max_tokens length max_length tokens",
    "norm_place": "norm_first pre_norm post_norm norm_position",
    "out": "output y out_tensor",
    "overflow": "overflow_policy",
    "parameters": "params param_groups",
    "part_tokens": "prefill_chunk_size prefill_tokens chunk_size n_batch",
    "prompts": "input_ids inputs texts",
    "qk_norm": "use_qk_norm qk_layernorm",
    "query_rank": "q_lora_rank",
    "repetition_penalty": "repeat_penalty penalty",
    "resident_limit": "max_memory memory_limit memory",
    "residual_scale": "residual_multiplier",
    "rotary_size": "rotary_dim qk_rope_head_dim",
    "rotary_tables": "rope_parameters rope_scaling",
    "router": "gate router_type routing gating",
    "router_bias": "gate_bias bias",
    "router_normalize": (
        "normalize norm_topk_prob renormalize_weights norm_topk_probs normalize_expert_weights"
    ),
    "routed_scale": "routed_scaling_factor moe_router_topk_scaling_factor route_scale routing_scale",
    "rope_theta": "rope_base theta rotary_base rotary_emb_base",
    "score": "scoring_func score_func score_function scoring moe_router_score_function",
    "seed": "random_state rng random_seed generator manual_seed",
    "sequence_length": "seq_len seq_length length",
    "sequences": "batch_size",
    "shared_intermediate_size": "shared_expert_intermediate_size moe_shared_expert_intermediate_size",
    "step": "iteration global_step",
    "stop": "stop_strings stop_words stop_sequences stop_texts",
    "targets": "labels target y",
    "sinks": "attention_sinks",
    "temperature": "temp",
    "temperature_floor": "floor_scale",
    "temperature_scale": "attn_scale",
    "tied_output": "tie_word_embeddings tie_embeddings tied_embeddings tied weight_tying",
    "token_ids": "input_ids ids",
    "tokens": "input_ids ids inputs x input",
    "top_groups": "topk_group topk_groups moe_router_group_topk num_limited_groups",
    "top_k": (
        "topk k num_experts_per_tok num_experts_per_token experts_per_token moe_top_k moe_router_topk "
        "num_selected_experts n_experts_per_tok num_experts_per_topk"
    ),
    "top_p": "p nucleus",
    "total_steps": "num_training_steps max_steps steps t_max total_iters",
    "training": "train is_training mode",
    "value_head_size": "v_head_dim",
    "window": "sliding_window window_size",
    "valid_mask": ("attention_mask padding_mask src_key_padding_mask key_padding_mask pad_mask token_mask"),
    "mask": "attn_mask attention_mask src_mask",
    "vocabulary_size": "vocab_size vocab n_vocab num_embeddings n_tokens",
    "warmup_steps": "warmup num_warmup_steps warmup_iters",
    "weight_decay": "wd decay l2 regularization",
    "weight_dtype": "dtype params_dtype param_dtype torch_dtype precision",
    "z_coef": "z_loss_coef router_z_loss_coef z_loss_weight moe_z_loss_coeff",
    # Words, which are values.
    "silu": "swish swiglu",
    "gelu_tanh": "gelu_new gelu_pytorch_tanh gelu_approx gelu_approximate",
    "quick_gelu": "gelu_quick",
    "relu2": "relu_squared squared_relu",
    "gated": "glu swiglu geglu reglu",
    "f32": "float32 fp32 float",
    "bf16": "bfloat16",
    "rms": "rmsnorm",
    "layer": "layernorm",
}

OTHERS: dict[str, list[str]] = {}
"""Their names, without underscores: ours, of which those count that the function in question has."""

for _ours, _names in _THEIRS.items():
    for _name in _names.split():
        OTHERS.setdefault(_name.replace("_", ""), []).append(_ours)
