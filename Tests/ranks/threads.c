/* Threads as ranks keep the contract, and their faults are what tests take them for. */
#include <moe_communicator.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "contract.h"
#include "thread_ranks.h"

enum { MOST = 4 };

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);         \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

static moe_communicator ends[2][MOST];
static thread_ranks *group;

/* Runs `one` in a thread for each rank. */
static void on_ranks(int size, void *(*one)(void *rank)) {
  pthread_t threads[MOST];
  for (int r = 0; r < size; r++) CHECK(pthread_create(&threads[r], NULL, one, &ends[0][r]) == 0);
  for (int r = 0; r < size; r++) CHECK(pthread_join(threads[r], NULL) == 0);
}

static void *keeps_the_contract(void *end) {
  const moe_communicator *c = (const moe_communicator *)end;
  const char *wrong = contract(c, 3 << 20);
  if (wrong == NULL) wrong = contract_beside(c, &ends[1][c->rank]);
  if (wrong != NULL) fprintf(stderr, "%s\n", wrong);
  CHECK(wrong == NULL);
  return NULL;
}

/* Every rank sends 8 bytes to all.  What it came to. */
static int32_t exchange(const moe_communicator *c) {
  int64_t bytes[MOST], at[MOST], out[MOST], in[MOST];
  for (int r = 0; r < c->size; r++) bytes[r] = 8, at[r] = 8 * r, out[r] = 100 * c->rank + r;
  void *request;
  int32_t code = c->all_to_all(c->user, out, bytes, at, in, bytes, at, &request);
  if (code == 0) code = c->wait(c->user, request);
  for (int r = 0; code == 0 && r < c->size; r++) CHECK(in[r] == 100 * r + c->rank);
  return code;
}

/* The second exchange of rank 1 is an error, with these words; of others, too, or they have it already and see the error in
 * the third.  So is every later one, at once. */
static const char *words;
static void *fails(void *end) {
  const moe_communicator *c = (const moe_communicator *)end;
  CHECK(exchange(c) == 0);
  int32_t code = exchange(c);
  if (code == 0 && c->rank != 1) code = exchange(c);
  CHECK(code != 0 && strstr(c->error(c->user, code), words) != NULL);
  CHECK(exchange(c) != 0);
  return NULL;
}

static void *sends_other_bytes_than_expected(void *end) {
  const moe_communicator *c = (const moe_communicator *)end;
  int64_t number[2] = {0, 0};
  void *request;
  int32_t code;
  if (c->rank == 0) code = c->send(c->user, number, 16, 1, 5, &request);
  else code = c->receive(c->user, number, 8, 0, 5, &request);
  if (code == 0) code = c->wait(c->user, request);
  CHECK(code != 0 && strcmp(c->error(c->user, code), "rank 0 sends 16 bytes to rank 1, which expects 8") == 0);
  return NULL;
}

static void *abandons(void *end) {
  const moe_communicator *c = (const moe_communicator *)end;
  if (c->rank == 0) {
    int64_t number = 0;
    void *request;
    CHECK(c->receive(c->user, &number, 8, 1, 5, &request) == 0);
    c->abandon(c->user, request);
  }
  int32_t code = exchange(c);
  CHECK(code != 0 && strcmp(c->error(c->user, code), "an exchange was abandoned") == 0);
  return NULL;
}

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* 1 MB at 10 MB/s and 50 ms: 150 ms, of which the sender's memory is read last; test does not wait for them. */
static void *takes_its_time(void *end) {
  const moe_communicator *c = (const moe_communicator *)end;
  static unsigned char out[1000000], in[1000000];
  void *request;
  int32_t done = 1;
  double before = seconds();
  if (c->rank == 0) CHECK(c->send(c->user, out, sizeof out, 1, 0, &request) == 0);
  else CHECK(c->receive(c->user, in, sizeof in, 0, 0, &request) == 0);
  CHECK(c->test(c->user, request, &done) == 0 && done == 0);
  if (c->rank == 0) memset(out, 7, sizeof out); /* against the rules: this is what must be seen */
  double waited = seconds();
  CHECK(c->wait(c->user, request) == 0 && seconds() - before >= 0.15);
  CHECK(thread_ranks_slept(group, c->rank) <= seconds() - waited);
  if (c->rank == 1) CHECK(in[0] == 7);
  return NULL;
}

static void with(int size, void *(*one)(void *rank)) {
  on_ranks(size, one);
  thread_ranks_free(group);
}

static void make(int size) {
  group = thread_ranks_create(size, ends[0]);
  CHECK(group != NULL);
}

int main(void) {
  for (int size = 1; size <= MOST; size++) {
    thread_ranks *other = thread_ranks_create(size, ends[1]);
    CHECK(other != NULL);
    make(size);
    with(size, keeps_the_contract);
    thread_ranks_free(other);
  }

  /* Bytes and exchanges are counted. */
  make(2);
  moe_communicator *c = ends[0];
  int64_t number = 5, got = 0;
  void *out, *in;
  CHECK(c[0].send(c[0].user, &number, 8, 1, 0, &out) == 0 && c[1].receive(c[1].user, &got, 8, 0, 0, &in) == 0);
  CHECK(c[0].wait(c[0].user, out) == 0 && c[1].wait(c[1].user, in) == 0 && got == 5);
  CHECK(thread_ranks_bytes(group, 0, 1) == 8 && thread_ranks_bytes(group, 1, 0) == 0);
  CHECK(thread_ranks_exchanges(group, 0) == 1 && thread_ranks_exchanges(group, 1) == 1);
  CHECK(c[0].send(c[0].user, &number, 8, 2, 0, &out) != 0);
  thread_ranks_free(group);

  static const char *const all_words[] = {"made to fail at its beginning", "made to fail at its end", "did not come"};
  for (int fault = THREAD_RANKS_NOT_BEGUN; fault <= THREAD_RANKS_LOST; fault++) {
    make(3);
    thread_ranks_set_fault(group, 1, 2, fault);
    thread_ranks_set_patience(group, 0.3);
    words = all_words[fault - 1];
    with(3, fails);
  }
  make(2);
  with(2, sends_other_bytes_than_expected);
  make(2);
  with(2, abandons);
  make(2);
  thread_ranks_set_link(group, 1e7, 0.05);
  with(2, takes_its_time);
  make(2);
  thread_ranks_break(group);
  CHECK(exchange(&ends[0][0]) != 0);
  thread_ranks_free(group);
  return 0;
}
