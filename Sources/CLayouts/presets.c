#include "layouts.h"

/* By its path: the engine, which sees layouts.h, never sees a struct of the public header. */
#include "../../include/moe.h"

const void *moei_longcat_flash_groups(void) {
  static const moe_expert_group groups[2] = {
      {.n_experts = 512, .intermediate_size = 2048, .expert_kind = MOE_EXPERT_GATED, .activation = MOE_ACTIVATION_SILU},
      {.n_experts = 256, .expert_kind = MOE_EXPERT_IDENTITY},
  };
  return groups;
}
