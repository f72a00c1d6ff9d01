#define _GNU_SOURCE
#include "moei.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

char *moei_error_text(void) {
  static _Thread_local char text[MOEI_TEXT_SIZE];
  return text;
}

/* Large blocks on large pages where the system has them: streaming weights through small ones, the processor would spend
 * a good part of its time looking up addresses. */
enum { LARGE_PAGE = 2 << 20 };

void *moei_allocate(size_t size, size_t alignment) {
  void *memory = NULL;
  const int large = size >= LARGE_PAGE;
  if (posix_memalign(&memory, large ? LARGE_PAGE : alignment, size) != 0) return NULL;
  if (large) (void)madvise(memory, size, MADV_HUGEPAGE); /* advice: refusal changes nothing */
  return memory;
}

void moei_deallocate(void *memory) { free(memory); }

void moei_futex_wait(int32_t *word, int32_t value) {
  int saved = errno; /* a good guest leaves errno alone */
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
  errno = saved;
}

void moei_futex_wait_briefly(int32_t *word, int32_t value, int32_t milliseconds) {
  int saved = errno;
  struct timespec most = { milliseconds / 1000, milliseconds % 1000 * 1000000L };
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &most, NULL, 0);
  errno = saved;
}

void moei_futex_wake(int32_t *word, int32_t count) {
  int saved = errno;
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
  errno = saved;
}

/* Kernels and file readers need little; the system's 8 MiB would be counted against limits of the address space, and
 * pages of 2 MiB could come to lie in it. */
enum { STACK_SIZE = 512 << 10 };

int32_t moei_thread_start(uint64_t *thread, void *(*body)(void *), void *argument) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_t id;
  int failed = pthread_attr_init(&attributes);
  if (!failed) {
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    failed = pthread_create(&id, &attributes, body, argument);
    pthread_attr_destroy(&attributes);
  }
  /* The host's thread-local variables lie in the stack too, and may be larger than that. */
  if (failed == EINVAL) failed = pthread_create(&id, NULL, body, argument);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!failed) *thread = (uint64_t)id;
  return failed;
}

void moei_thread_join(uint64_t thread) { pthread_join((pthread_t)thread, NULL); }

int64_t moei_process_id(void) { return getpid(); }

int64_t moei_milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t moei_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t moei_thread_id(void) { return syscall(SYS_gettid); }
