#include "architecture.h"

/* The architectures, and what is none's own. */

#define ARCHITECTURES(ROW)                                                                                      \
  ROW(llama) ROW(qwen2moe) ROW(qwen3moe) ROW(qwen3) ROW(olmoe) ROW(granitemoe) ROW(gpt_oss) ROW(glm4moe)         \
  ROW(dots1) ROW(deepseek2) ROW(ernie4_5_moe) ROW(minimax_m2) ROW(hunyuan_moe) ROW(phimoe) ROW(llama4)

#define DECLARED(name) extern const moei_architecture moei_architecture_##name;
#define LISTED(name) &moei_architecture_##name,
ARCHITECTURES(DECLARED)
static const moei_architecture *const architectures[] = {ARCHITECTURES(LISTED)};

const moei_architecture *moei_architecture_at(int32_t number) {
  if (number < 0 || number >= LENGTH(architectures)) return NULL;
  return architectures[number];
}

const char *const moei_gguf_left[] = {
    "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "*.rope_freqs.weight",
    "*.attn_rot_embd.weight", NULL};
