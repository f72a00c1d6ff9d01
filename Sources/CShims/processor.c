#define _GNU_SOURCE
#include "moei.h"

#include <sched.h>
#include <stdio.h>

int32_t moei_processor_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return 2;
  return __builtin_cpu_supports("avx512bf16") ? 4 : 3;
#else
  return 1;
#endif
}

/* Whole processors of a cgroup v2 or v1 quota; 0 where there is none. */
static int32_t cgroup_quota(void) {
  long long quota = -1, period = 0;
  FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
  if (file) {
    if (fscanf(file, "%lld %lld", &quota, &period) != 2) quota = -1; /* "max 100000" has no quota */
    fclose(file);
  } else if ((file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re"))) {
    if (fscanf(file, "%lld", &quota) != 1) quota = -1;
    fclose(file);
    if (quota > 0 && (file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re"))) {
      if (fscanf(file, "%lld", &period) != 1) period = 0;
      fclose(file);
    }
  }
  if (quota <= 0 || period <= 0) return 0;
  long long whole = (quota + period - 1) / period;
  return whole > 1024 ? 1024 : (int32_t)whole;
}

int32_t moei_available_processors(void) {
  cpu_set_t set;
  int32_t count = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  int32_t quota = cgroup_quota();
  if (quota > 0 && quota < count) count = quota;
  return count < 1 ? 1 : count;
}
