/* OpenBLAS is loaded by the first context that asks for it, without threads of its own; where it is missing, or where there
 * is no memory or no thread for it, a status says so, and nothing hangs.  Each case has a process of its own.  The program
 * answers for the system where a case wants it to refuse. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <moe.h>

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { H = 48, N_TOKENS = 70 };

static float x[N_TOKENS * H]; /* [T,H] */

#ifndef SANITIZED
static int refuse_threads, refuse_libraries;

#ifdef __cplusplus
extern "C" {
#endif
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument)
#ifdef __cplusplus
    noexcept
#endif
{
  typedef int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  static create real;
  if (refuse_threads) return EAGAIN;
  if (!real) {
    void *found = dlsym(RTLD_NEXT, "pthread_create");
    memcpy(&real, &found, sizeof real);
  }
  return real(thread, attributes, body, argument);
}

void *dlopen(const char *name, int flags)
#ifdef __cplusplus
    noexcept
#endif
{
  typedef void *(*opener)(const char *, int);
  static opener real;
  if (!real) {
    void *found = dlsym(RTLD_NEXT, "dlopen");
    memcpy(&real, &found, sizeof real);
  }
  return real(refuse_libraries ? "libnowhere.so.7" : name, flags);
}
#ifdef __cplusplus
}
#endif
#endif

static moe_status create(int32_t matmul, int32_t instructions, int32_t n_threads, moe_context **context) {
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.matmul = matmul;
  config.instructions = instructions;
  config.n_threads = n_threads;
  return moe_context_create(&config, context);
}

static volatile int armed, inside, go_on;

static moe_status forward(moe_context *context, float *y) {
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 64;
  config.n_experts = 4;
  config.top_k = 2;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  armed = 1;
  moe_status status = moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL);
  armed = 0;
  moe_layer_free(layer);
  return status;
}

/* The layer's output as the plain loops have it, and OpenBLAS's beside it. */
static void compare(moe_context *context) {
  static float found[N_TOKENS * H], expected[N_TOKENS * H]; /* [T,H] */
  moe_context *plain = NULL;
  CHECK(create(MOE_MATMUL_REFERENCE, 0, 1, &plain) == MOE_OK);
  CHECK(forward(plain, expected) == MOE_OK && forward(context, found) == MOE_OK);
  for (int i = 0; i < N_TOKENS * H; i++) CHECK(fabsf(found[i] - expected[i]) < 1e-5f);
  moe_context_free(plain);
}

static int is_loaded(void) {
  char line[1024];
  int found = 0;
  FILE *file = fopen("/proc/self/maps", "r");
  CHECK(file != NULL);
  while (fgets(line, sizeof line, file)) found = found || contains(line, "/libopenblas");
  fclose(file);
  return found;
}

static int threads_now(void) {
  DIR *folder = opendir("/proc/self/task");
  CHECK(folder != NULL);
  int count = -2; /* . and .. */
  while (readdir(folder)) count++;
  closedir(folder);
  return count;
}

static void on_request_alone(void) {
  moe_context *context = NULL;
  cpu_set_t before, after;
  CHECK(create(MOE_MATMUL_NATIVE, 0, 1, &context) == MOE_OK || create(MOE_MATMUL_REFERENCE, 0, 1, &context) == MOE_OK);
  compare(context);
  moe_context_free(context);
  CHECK(!is_loaded());

  CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
  CHECK(create(MOE_MATMUL_OPENBLAS, 0, 1, &context) == MOE_OK);
  CHECK(is_loaded());
  CHECK(sched_getaffinity(0, sizeof after, &after) == 0 && CPU_EQUAL(&before, &after));
  CHECK(contains(moe_build_info(context), "matrix products: OpenBLAS ") && contains(moe_build_info(context), "libopenblas"));
  compare(context);
  for (int i = 0; i < 1000 && threads_now() > 1; i++) usleep(1000); /* the kernel takes a moment to forget one */
#ifndef SANITIZED
  CHECK(threads_now() == 1);
#endif
  moe_context_free(context);
}

#ifndef SANITIZED
static void where_no_thread_can_be_started(void) {
  refuse_threads = 1;
  moe_context *context = NULL;
  CHECK(create(MOE_MATMUL_OPENBLAS, 0, 3, &context) == MOE_OK);
  CHECK(threads_now() == 1 && moe_context_threads(context) == 1);
  CHECK(contains(moe_build_info(context), "threads: 1 of 3 asked for"));
  compare(context);
  moe_context_free(context);
}

static void where_there_is_none(void) {
  refuse_libraries = 1;
  moe_context *context = NULL;
  CHECK(create(MOE_MATMUL_OPENBLAS, 0, 1, &context) == MOE_ERROR_IO && context == NULL);
  CHECK(contains(moe_last_error_message(), "libnowhere.so.7") && contains(moe_last_error_message(), "libopenblas0"));
  CHECK(contains(moe_last_error_message(), "MOE_MATMUL_NATIVE"));
#ifdef __x86_64__
  /* Without fused multiply-add the plain loops take its place. */
  CHECK(create(MOE_MATMUL_AUTO, MOE_INSTRUCTIONS_BASE, 2, &context) == MOE_OK);
  CHECK(contains(moe_build_info(context), "matrix products: reference"));
  compare(context);
  moe_context_free(context);
#endif
  refuse_libraries = 0; /* installed meanwhile */
  CHECK(create(MOE_MATMUL_OPENBLAS, 0, 1, &context) == MOE_OK);
  compare(context);
  moe_context_free(context);
}

static void allow(rlim_t bytes) {
  struct rlimit limit;
  CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
  limit.rlim_cur = bytes;
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

static rlim_t address_space(void) {
  unsigned long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL && fscanf(file, "%lu", &pages) == 1);
  fclose(file);
  return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
}

static void in_little_memory(void) {
  moe_context *context = NULL, *other = NULL;
  for (rlim_t size = 20; size <= 180; size += 20) {
    allow(size << 20);
    moe_status status = create(MOE_MATMUL_OPENBLAS, 0, 1, &context);
    CHECK(status == MOE_ERROR_OUT_OF_MEMORY && contains(moe_last_error_message(), "OpenBLAS"));
    allow(RLIM_INFINITY);
  }
  /* Loaded, but without room for a second thread's buffer, and then for the first one's. */
  static float y[N_TOKENS * H]; /* [T,H] */
  CHECK(create(MOE_MATMUL_OPENBLAS, 0, 2, &context) == MOE_OK);
  CHECK(create(MOE_MATMUL_OPENBLAS, 0, 1, &other) == MOE_OK);
  allow((rlim_t)150 << 20);
  CHECK(forward(context, y) == MOE_ERROR_OUT_OF_MEMORY && contains(moe_last_error_message(), "2 threads"));
  CHECK(contains(moe_last_error_message(), "buffer of 134217728 bytes"));
  CHECK(forward(other, y) == MOE_ERROR_OUT_OF_MEMORY);
  allow(RLIM_INFINITY);
  compare(context);
  /* What it has now, it keeps: there is room for the layer, and for no further buffer. */
  allow(address_space() + ((rlim_t)20 << 20));
  compare(context);
  compare(other);
  moe_context_free(context);
  moe_context_free(other);
}
#endif

static int32_t hold(void *user) {
  (void)user;
  if (armed) {
    inside = 1;
    while (!go_on) usleep(1000);
  }
  return 0;
}

static void *call(void *context) {
  static float y[N_TOKENS * H]; /* [T,H] */
  CHECK(forward((moe_context *)context, y) == MOE_OK);
  return NULL;
}

/* A child forked while another thread multiplied: OpenBLAS's own locks may be held there. */
static void forked_beside_a_call(void) {
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.matmul = MOE_MATMUL_OPENBLAS;
  config.cancel = hold;
  moe_context *context = NULL, *own = NULL;
  CHECK(moe_context_create(&config, &context) == MOE_OK);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, call, context) == 0);
  while (!inside) usleep(1000);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(30);
    static float y[N_TOKENS * H]; /* [T,H] */
    CHECK(create(MOE_MATMUL_OPENBLAS, 0, 1, &own) == MOE_OK);
    CHECK(forward(own, y) == MOE_ERROR_BAD_STATE && contains(moe_last_error_message(), "forked"));
    moe_context_free(own);
    CHECK(create(MOE_MATMUL_REFERENCE, 0, 1, &own) == MOE_OK && forward(own, y) == MOE_OK);
    moe_context_free(own);
    _exit(0); /* what the other thread held at the fork is nobody's here, and a check for leaks would report it */
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  go_on = 1;
  CHECK(pthread_join(thread, NULL) == 0);
  /* A child forked while nobody multiplies may. */
  child = fork();
  if (child == 0) {
    alarm(30);
    compare(context);
    exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  compare(context);
  moe_context_free(context);
}

static void in_a_process(void (*test)(void), const char *name) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(60); /* a hang ends the child, and with it the test */
    test();
    exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    fprintf(stderr, "%s: status %d\n", name, status);
    exit(1);
  }
}

int main(void) {
  for (int i = 0; i < N_TOKENS * H; i++) x[i] = (float)(i * 37 % 101) / 50 - 1;
  in_a_process(on_request_alone, "on request alone");
#ifndef SANITIZED
  in_a_process(where_no_thread_can_be_started, "where no thread can be started");
  in_a_process(where_there_is_none, "where there is none");
  in_a_process(in_little_memory, "in little memory");
#endif
  in_a_process(forked_beside_a_call, "forked beside a call");
  return 0;
}
