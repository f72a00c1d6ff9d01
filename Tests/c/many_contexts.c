/* Ten thousand contexts with threads of their own come and go, and leave neither memory nor threads nor files behind. */
#define _POSIX_C_SOURCE 200809L
#include <moe.h>

#include <dirent.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { N_CONTEXTS = 10000, H = 8 };

static void live_and_die(void) {
  moe_context_config context_config = MOE_CONTEXT_CONFIG_INIT;
  context_config.n_threads = 2;
  moe_context *context = NULL;
  CHECK(moe_context_create(&context_config, &context) == MOE_OK);
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 16;
  config.n_experts = 4;
  config.top_k = 2;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  float x[4 * H] = {0}, y[4 * H]; /* [T,H] */
  CHECK(moe_layer_forward(layer, x, 4, NULL, y, NULL, NULL) == MOE_OK);
  moe_context_free(context); /* the layer keeps it alive */
  moe_layer_free(layer);
}

static long entries(const char *folder) {
  DIR *directory = opendir(folder);
  CHECK(directory != NULL);
  long count = 0;
  while (readdir(directory) != NULL) count++;
  closedir(directory);
  return count;
}

/* Kilobytes of address space and of memory. */
static void measure(long *address_space, long *memory) {
  long pages, resident;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL && fscanf(file, "%ld %ld", &pages, &resident) == 2);
  fclose(file);
  *address_space = pages * (sysconf(_SC_PAGESIZE) / 1024);
  *memory = resident * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Waits for so many threads: a joined one's entry may take the kernel a moment. */
static void wait_for(long threads) {
  for (int i = 0; i < 1000 && entries("/proc/self/task") != threads; i++) {
    struct timespec moment = {0, 1000000};
    nanosleep(&moment, NULL);
  }
}

int main(void) {
  long threads = entries("/proc/self/task");
  for (int i = 0; i < 100; i++) live_and_die(); /* whatever is allocated once */
  wait_for(threads);
  threads = entries("/proc/self/task"); /* with those of a sanitizer */
  long files = entries("/proc/self/fd");
  long space, memory, space_after, memory_after;
  measure(&space, &memory);
  for (int i = 0; i < N_CONTEXTS; i++) live_and_die();
  measure(&space_after, &memory_after);
  wait_for(threads);
  CHECK(entries("/proc/self/task") == threads);
  CHECK(entries("/proc/self/fd") == files);
#ifndef SANITIZED /* sanitizers keep freed memory on purpose, and find leaks in their own way */
  CHECK(memory_after - memory < 2048); /* 0.2 KB a context */
  CHECK(space_after - space < 65536);  /* less than eight threads' stacks */
#endif
  return 0;
}
