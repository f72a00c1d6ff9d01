/* The processors that a process may use, where the system's files say all kinds of things; and contexts that are asked for
 * more threads than that.  The program answers for the system: it is asked for files and for the affinity mask. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <moe.h>

#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static int n_processors = 64; /* in the affinity mask */
static char root[64];         /* where the system's files are; "" = the true ones */

#ifdef __cplusplus
extern "C" {
#endif
int sched_getaffinity(pid_t process, size_t size, cpu_set_t *set)
#ifdef __cplusplus
    noexcept
#endif
{
  (void)process;
  if (size < 1024) { /* as a kernel made for 8192 processors */
    errno = EINVAL;
    return -1;
  }
  CPU_ZERO_S(size, set);
  for (int i = 0; i < n_processors; i++) CPU_SET_S(i, size, set);
  return 0;
}

FILE *fopen(const char *path, const char *mode) {
  static FILE *(*real)(const char *, const char *);
  if (!real) {
    void *found = dlsym(RTLD_NEXT, "fopen");
    memcpy(&real, &found, sizeof real);
  }
  char other[4096 + 64];
  if (!root[0] || strcmp(path, "/proc/self/statm") == 0) return real(path, mode);
  if (snprintf(other, sizeof other, "%s%s", root, path) >= (int)sizeof other) return NULL;
  return real(other, mode);
}
#ifdef __cplusplus
}
#endif

/* Files are made under their own paths: `fopen` puts the root in front. */
static void put(const char *path, const char *text) {
  char folder[512];
  snprintf(folder, sizeof folder, "%s%s", root, path);
  for (char *slash = strchr(folder + strlen(root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = 0;
    mkdir(folder, 0700);
    *slash = '/';
  }
  FILE *file = fopen(path, "w");
  CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void begin(void) {
  strcpy(root, "/tmp/moe_processors_XXXXXX");
  CHECK(mkdtemp(root) != NULL);
}

/* Forgets the files. */
static void expect(int32_t wanted, const char *what) {
  int32_t found = moe_processors();
  if (found != wanted) {
    fprintf(stderr, "%s: %d processors, not %d\n", what, (int)found, (int)wanted);
    exit(1);
  }
  char command[128];
  snprintf(command, sizeof command, "rm -rf %s", root);
  CHECK(system(command) == 0);
  root[0] = 0;
}

#define V2 "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
#define V1 "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"

static void version_2(const char *quota, int32_t wanted) {
  begin();
  put("/proc/self/cgroup", "0::/\n");
  put("/proc/self/mountinfo", V2);
  put("/sys/fs/cgroup/cpu.max", quota);
  expect(wanted, quota);
}

static void version_1(const char *quota, const char *period, int32_t wanted) {
  begin();
  put("/proc/self/cgroup", "4:cpu,cpuacct:/\n0::/\n");
  put("/proc/self/mountinfo", V1);
  put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota);
  if (period) put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", period);
  expect(wanted, quota);
}

static void readings(void) {
  begin();
  expect(64, "no files at all");
  version_2("200000 100000\n", 2);
  version_2("250000 100000\n", 3); /* rounded up */
  version_2("1000 100000\n", 1);
  version_2("max 100000\n", 64);
  version_2("6500000 100000\n", 64); /* more than there are */
  version_2("", 64);
  version_2("\n\n", 64);
  version_2("none of your business", 64);
  version_2("200000", 64);
  version_2("200000 0\n", 64);
  version_2("0 100000\n", 64);
  version_2("-200000 100000\n", 64);
  version_2("200000 -100000\n", 64);
  version_2("9223372036854775807 1\n", 64);
  version_2("9223372036854775807 9223372036854775806\n", 2);
  version_2("99999999999999999999999999 100000\n", 64);
  version_1("150000\n", "100000\n", 2);
  version_1("-1\n", "100000\n", 64);
  version_1("150000\n", NULL, 64);
  version_1("max\n", "100000\n", 64);
  version_1("150000\n", "", 64);
}

static void places(void) {
  begin(); /* the group's own files set no limit, but a group it lies in does */
  put("/proc/self/cgroup", "0::/pods/one/inner\n");
  put("/proc/self/mountinfo", "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n" V2);
  put("/sys/fs/cgroup/pods/one/inner/cpu.max", "max 100000\n");
  put("/sys/fs/cgroup/pods/one/cpu.max", "300000 100000\n");
  put("/sys/fs/cgroup/pods/cpu.max", "800000 100000\n");
  expect(3, "nested");

  begin(); /* the group's own is the least */
  put("/proc/self/cgroup", "0::/pods/one\n");
  put("/proc/self/mountinfo", V2);
  put("/sys/fs/cgroup/pods/one/cpu.max", "200000 100000\n");
  put("/sys/fs/cgroup/cpu.max", "800000 100000\n");
  expect(2, "own");

  begin(); /* a container that sees its part of the tree alone */
  put("/proc/self/cgroup", "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc/jobs\n");
  put("/proc/self/mountinfo", "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n");
  put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "500000\n");
  put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  put("/sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us", "-1\n");
  put("/sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us", "100000\n");
  expect(5, "part of the tree");

  begin(); /* a neighbour whose name begins alike: its place is not seen, the mount's own limit is */
  put("/proc/self/cgroup", "4:cpu:/docker/abcdef\n");
  put("/proc/self/mountinfo", "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n");
  put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n");
  put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  put("/sys/fs/cgroup/cpudef/cpu.cfs_quota_us", "100000\n");
  put("/sys/fs/cgroup/cpudef/cpu.cfs_period_us", "100000\n");
  expect(4, "neighbour");

  begin(); /* other controllers are not about processors' time */
  put("/proc/self/cgroup", "3:cpuset:/\n5:cpuacct:/\n");
  put("/proc/self/mountinfo", "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n");
  put("/sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "100000\n");
  put("/sys/fs/cgroup/cpuset/cpu.cfs_period_us", "100000\n");
  expect(64, "cpuset");

  begin(); /* both versions, in a place with a blank, behind a line longer than any */
  static char long_line[9000];
  memset(long_line, 'x', sizeof long_line - 300);
  strcat(long_line, "\n32 31 0:29 / /my\\040groups/cpu rw shared:5 - cgroup cgroup rw,cpu\n"
                    "33 31 0:30 / /my\\040groups/unified rw - cgroup2 none rw\n");
  put("/proc/self/cgroup", "4:cpu:/\n0::/\n");
  put("/proc/self/mountinfo", long_line);
  put("/my groups/cpu/cpu.cfs_quota_us", "700000\n");
  put("/my groups/cpu/cpu.cfs_period_us", "100000\n");
  put("/my groups/unified/cpu.max", "600000 100000\n");
  expect(6, "both versions");

  begin();
  put("/proc/self/cgroup", "\n:\n::\n0:\n0::\n0::no\n4:cpu");
  put("/proc/self/mountinfo", "\n - \n - cgroup2\n1 2 - cgroup2 x y\na b c / - cgroup2 x y\n1 2 3 4 5 6 - cgroup2 x y\n");
  expect(64, "garbage");
}

static long address_space(void) {
  long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL && fscanf(file, "%ld", &pages) == 1);
  fclose(file);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void threads(int32_t asked, int32_t wanted, const char *said) {
  long before = address_space();
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.n_threads = asked;
  moe_context *context = NULL;
  CHECK(moe_context_create(&config, &context) == MOE_OK);
  CHECK(moe_context_threads(context) == wanted);
  const char *info = moe_build_info(context);
  CHECK(strlen(info) > strlen(said) && strcmp(info + strlen(info) - strlen(said), said) == 0);
#ifndef SANITIZED
  CHECK(address_space() - before < 1024L * wanted); /* kilobytes: stacks are small */
#else
  (void)before;
#endif
  moe_context_free(context);
}

int main(void) {
  readings();
  places();
  n_processors = 5000;
  begin();
  expect(5000, "a machine with more processors than cpu_set_t has room for");

  n_processors = 2;
  begin();
  threads(0, 1, "; threads: 1");
  threads(2, 2, "; threads: 2");
  threads(MOE_THREADS_ALL, 2, "; threads: 2");
  threads(3, 3, "; threads: 3 of 3 asked for, on 2 processors");
  threads(999, 8, "; threads: 8 of 999 asked for, on 2 processors");
  threads(1024, 8, "; threads: 8 of 1024 asked for, on 2 processors");
  CHECK(moe_context_threads(NULL) == 0);
  expect(2, "at the end");
  return 0;
}
