#define _GNU_SOURCE
#include "moei.h"

#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

/* The name everywhere; Fedora's builds with threads and with OpenMP; the link for those who compile. */
static const char *const names[] = {"libopenblas.so.0", "libopenblasp.so.0", "libopenblaso.so.0", "libopenblas.so"};
enum { NAMES = sizeof names / sizeof names[0] };

/* What OpenBLAS maps for each thread that multiplies, and keeps (its BUFFER_SIZE on x86-64 and arm64); what its code and
 * that of the libraries it needs take, rounded up. */
static const size_t buffer_bytes = (size_t)128 << 20, code_bytes = (size_t)64 << 20;

moei_openblas *moei_openblas_state(void) {
  static moei_openblas state;
  return &state;
}

int64_t moei_openblas_buffer_bytes(void) { return (int64_t)buffer_bytes; }

/* OpenBLAS itself asks again and again, for ever, or ends the process, where the system has no memory for it. */
static int can_map(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  munmap(memory, bytes);
  return 1;
}

static int take(moei_openblas *state, void *library) {
  Dl_info where;
  char *(*config)(void);
  *(void **)&state->sgemm = dlsym(library, "cblas_sgemm");
  *(void **)&state->get_num_threads = dlsym(library, "openblas_get_num_threads");
  *(void **)&state->set_num_threads = dlsym(library, "openblas_set_num_threads");
  *(void **)&state->memory_alloc = dlsym(library, "blas_memory_alloc");
  *(void **)&state->memory_free = dlsym(library, "blas_memory_free");
  *(void **)&config = dlsym(library, "openblas_get_config");
  if (!state->sgemm || !state->get_num_threads || !state->set_num_threads || !state->memory_alloc ||
      !state->memory_free || !config || strstr(config(), "USE64BITINT") ||
      !dladdr(*(void **)&state->sgemm, &where) || !where.dli_fname)
    return MOEI_OPENBLAS_OTHER;
  state->config = config();
  state->path = where.dli_fname;
  return MOEI_OPENBLAS_FOUND;
}

struct loading {
  moei_openblas *state;
  char *reason;
  size_t room;
  int32_t result;
};

/* The first library of a name that is one; `flags` as of dlopen. */
static int32_t open_one(struct loading *loading, int flags) {
  int32_t result = MOEI_OPENBLAS_MISSING;
  for (int i = 0; i < NAMES && result != MOEI_OPENBLAS_FOUND; i++) {
    void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | flags);
    if (library) {
      result = take(loading->state, library);
      if (result != MOEI_OPENBLAS_FOUND) dlclose(library);
    } else if (i == 0 && !flags) {
      const char *reason = dlerror();
      strncpy(loading->reason, reason ? reason : "dlopen failed", loading->room - 1);
      loading->reason[loading->room - 1] = 0;
    }
  }
  return result;
}

/* Loaded, OpenBLAS counts the processors of the calling thread and starts a thread for each but one; it raises SIGINT
 * where the system has none to give. So this thread has one processor meanwhile. Masks have room for 8192. */
static void *load(void *argument) {
  struct loading *loading = argument;
  cpu_set_t before[8], one[8];
  int narrow = sched_getaffinity(0, sizeof before, before) == 0 && CPU_COUNT_S(sizeof before, before) > 1;
  if (narrow) {
    int first = 0;
    while (!CPU_ISSET_S(first, sizeof before, before)) first++;
    CPU_ZERO_S(sizeof one, one);
    CPU_SET_S(first, sizeof one, one);
    if (sched_setaffinity(0, sizeof one, one) != 0) {
      loading->result = MOEI_OPENBLAS_WIDE;
      return NULL;
    }
  }
  loading->result = open_one(loading, 0);
  if (narrow) sched_setaffinity(0, sizeof before, before);
  return NULL;
}

int32_t moei_openblas_load(moei_openblas *state, char *reason, size_t room) {
  int saved = errno;
  struct loading loading = {state, reason, room, MOEI_OPENBLAS_FOUND};
  uint64_t thread;
  reason[0] = 0;
  if (!state->config && open_one(&loading, RTLD_NOLOAD) != MOEI_OPENBLAS_FOUND) {
    state->config = NULL;
    if (!can_map(code_bytes + buffer_bytes)) {
      loading.result = MOEI_OPENBLAS_NO_MEMORY;
    } else if (moei_thread_start(&thread, load, &loading) == 0) {
      moei_thread_join(thread); /* a thread of its own, so that the host's keeps its mask */
    } else {
      load(&loading);
    }
  }
  errno = saved;
  return loading.result;
}

int32_t moei_openblas_reserve(moei_openblas *state, int32_t count) {
  int saved = errno;
  void *taken = NULL; /* each buffer begins with the address of the one before */
  int32_t found = 0;
  while (found < count && can_map(buffer_bytes)) {
    void **buffer = state->memory_alloc(0);
    if (!buffer) break;
    *buffer = taken;
    taken = buffer;
    found++;
  }
  while (taken) {
    void *before = *(void **)taken;
    state->memory_free(taken);
    taken = before;
  }
  errno = saved;
  return found;
}
