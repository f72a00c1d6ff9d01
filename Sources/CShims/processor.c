#include "moei.h"

int32_t moei_processor_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  /* AVX2 and FMA, with F16C and whatever else the compiler takes for granted at this level. */
  if (!__builtin_cpu_supports("x86-64-v3")) return 1;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return 2;
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? 4 : 3;
#else
  return 1;
#endif
}
