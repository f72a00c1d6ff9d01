/* The public header as a compiled C target: an edit to it rebuilds what depends on it, and layouts that other
 * languages copy (ctypes among them) are pinned here.  Structs only grow at the end. */
#include "moe_model.h"

_Static_assert(sizeof(moe_context_config) == 88, "moe_context_config layout is ABI");
_Static_assert(sizeof(moe_tensor) == 112, "moe_tensor layout is ABI");
_Static_assert(sizeof(moe_layer_config) == 416, "moe_layer_config layout is ABI");
_Static_assert(sizeof(moe_forward_options) == 160, "moe_forward_options layout is ABI");
_Static_assert(sizeof(moe_report) == 128, "moe_report layout is ABI");
_Static_assert(sizeof(moe_phase_time) == 40, "moe_phase_time layout is ABI");
_Static_assert(sizeof(moe_profile_event) == 48, "moe_profile_event layout is ABI");
_Static_assert(sizeof(moe_backward_options) == 64, "moe_backward_options layout is ABI");
_Static_assert(sizeof(moe_expert_group) == 48, "moe_expert_group layout is ABI");
_Static_assert(sizeof(moe_adamw_config) == 64, "moe_adamw_config layout is ABI");
_Static_assert(sizeof(moe_sgd_config) == 48, "moe_sgd_config layout is ABI");
_Static_assert(sizeof(moe_schedule) == 88, "moe_schedule layout is ABI");
_Static_assert(sizeof(moe_clip_state) == 56, "moe_clip_state layout is ABI");
_Static_assert(sizeof(moe_stored_tensor) == 112, "moe_stored_tensor layout is ABI");
_Static_assert(sizeof(moe_training) == 88, "moe_training layout is ABI");
_Static_assert(sizeof(moe_plan) == 64, "moe_plan layout is ABI");
_Static_assert(sizeof(moe_offload_statistics) == 40, "moe_offload_statistics layout is ABI");
_Static_assert(offsetof(moe_layer_config, dropout) == 68, "moe_layer_config layout is ABI");
_Static_assert(offsetof(moe_layer_config, glu_limit) == 96, "moe_layer_config layout is ABI");
_Static_assert(offsetof(moe_tensor, data) == 88, "moe_tensor layout is ABI");
_Static_assert(sizeof(moe_attention_config) == 144, "moe_attention_config layout is ABI");
_Static_assert(sizeof(moe_attention_gradients) == 40, "moe_attention_gradients layout is ABI");
_Static_assert(sizeof(moe_norm_config) == 40, "moe_norm_config layout is ABI");
_Static_assert(sizeof(moe_linear_config) == 40, "moe_linear_config layout is ABI");
_Static_assert(sizeof(moe_rotary_config) == 80, "moe_rotary_config layout is ABI");
_Static_assert(sizeof(moe_embedding_config) == 56, "moe_embedding_config layout is ABI");
_Static_assert(sizeof(moe_cross_entropy_config) == 56, "moe_cross_entropy_config layout is ABI");
_Static_assert(sizeof(moe_sampling) == 40, "moe_sampling layout is ABI");
_Static_assert(sizeof(moe_model_config) == 192, "moe_model_config layout is ABI");
_Static_assert(sizeof(moe_model_input) == 128, "moe_model_input layout is ABI");
_Static_assert(sizeof(moe_read_options) == 24, "moe_read_options layout is ABI");
_Static_assert(sizeof(moe_model_report) == 64, "moe_model_report layout is ABI");
_Static_assert(sizeof(moe_model_plan) == 72, "moe_model_plan layout is ABI");
