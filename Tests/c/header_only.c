/* The header needs nothing before it, may come twice, and its initialisers fill every field. */
#include <moe.h>
#include <moe.h>

int main(void) {
  moe_context_config context = MOE_CONTEXT_CONFIG_INIT;
  moe_tensor tensor = MOE_TENSOR_INIT;
  moe_layer_config layer = MOE_LAYER_CONFIG_INIT;
  moe_forward_options options = MOE_FORWARD_OPTIONS_INIT;
  moe_report report = MOE_REPORT_INIT;
  moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
  moe_sgd_config sgd = MOE_SGD_CONFIG_INIT;
  moe_schedule schedule = MOE_SCHEDULE_INIT;
  moe_clip_state clip = MOE_CLIP_STATE_INIT;
  int sizes_right = context.struct_size == sizeof context && tensor.struct_size == sizeof tensor &&
                    layer.struct_size == sizeof layer && options.struct_size == sizeof options &&
                    report.struct_size == sizeof report && adamw.struct_size == sizeof adamw &&
                    sgd.struct_size == sizeof sgd && schedule.struct_size == sizeof schedule &&
                    clip.struct_size == sizeof clip;
  return sizes_right && moe_version() == MOE_VERSION ? 0 : 1;
}
