#include "contract.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 16 };

static __thread char said[400];

/* Returns from a check with what is wrong. */
#define NEED(condition)                                                                                     \
  do {                                                                                                      \
    if (!(condition)) {                                                                                     \
      snprintf(said, sizeof said, "contract.c:%d: rank %d: %s", __LINE__, (int)c->rank, #condition);        \
      return said;                                                                                          \
    }                                                                                                       \
  } while (0)

/* Likewise with a communicator's own words. */
#define FINE(call)                                                                                          \
  do {                                                                                                      \
    int32_t code_ = (call);                                                                                 \
    if (code_ != 0) {                                                                                       \
      snprintf(said, sizeof said, "contract.c:%d: rank %d: %s: %s", __LINE__, (int)c->rank, #call,          \
               c->error(c->user, code_));                                                                   \
      return said;                                                                                          \
    }                                                                                                       \
  } while (0)

#define CHECKED(call)                                                                                       \
  do {                                                                                                      \
    const char *wrong_ = (call);                                                                            \
    if (wrong_ != NULL) return wrong_;                                                                      \
  } while (0)

/* Byte `i` of what rank `from` sends to rank `to` in a step. */
static unsigned char byte_of(int step, int from, int to, int64_t i) {
  return (unsigned char)(31 * step + 7 * from + 3 * to + 13 * i + (i >> 8));
}

/* A ragged exchange: bytes from one rank to another in a step. */
static int64_t bytes_of(int step, int from, int to) {
  switch (step % 4) {
  case 0: return 0;
  case 1: return from == to ? 0 : 5 + from + 2 * to;
  case 2: return (from + to + step) % 3 == 0 ? 0 : 1000 * (from + 1) + to;
  default: return to == 0 ? 64 * (from + 1) : 0; /* all to one */
  }
}

typedef struct exchange {
  int step;
  int64_t out_bytes[MOST_RANKS], out_at[MOST_RANKS], in_bytes[MOST_RANKS], in_at[MOST_RANKS];
  unsigned char *out, *in;
  void *request;
} exchange;

/* Begins the exchange of a step, pieces in descending order of rank and one byte apart. */
static const char *begin(const moe_communicator *c, exchange *e, int step) {
  int64_t out_end = 1, in_end = 1;
  e->step = step;
  for (int r = c->size - 1; r >= 0; r--) {
    e->out_bytes[r] = bytes_of(step, c->rank, r);
    e->in_bytes[r] = bytes_of(step, r, c->rank);
    e->out_at[r] = out_end, e->in_at[r] = in_end;
    out_end += e->out_bytes[r] + 1, in_end += e->in_bytes[r] + 1;
  }
  e->out = (unsigned char *)malloc((size_t)out_end);
  e->in = (unsigned char *)malloc((size_t)in_end);
  NEED(e->out != NULL && e->in != NULL);
  for (int r = 0; r < c->size; r++)
    for (int64_t i = 0; i < e->out_bytes[r]; i++) e->out[e->out_at[r] + i] = byte_of(step, c->rank, r, i);
  FINE(c->all_to_all(c->user, out_end > c->size + 1 ? e->out : NULL, e->out_bytes, e->out_at, in_end > c->size + 1 ? e->in : NULL,
                     e->in_bytes, e->in_at, &e->request));
  /* Numbers are read before all_to_all returns. */
  memset(e->out_bytes, 0xff, sizeof e->out_bytes), memset(e->out_at, 0xff, sizeof e->out_at);
  memset(e->in_bytes, 0xff, sizeof e->in_bytes);
  return NULL;
}

static const char *look(const moe_communicator *c, exchange *e) {
  for (int r = 0; r < c->size; r++)
    for (int64_t i = 0; i < bytes_of(e->step, r, c->rank); i++)
      NEED(e->in[e->in_at[r] + i] == byte_of(e->step, r, c->rank, i));
  free(e->out), free(e->in);
  return NULL;
}

static const char *poll(const moe_communicator *c, void *request) {
  int32_t done = 0;
  while (!done) FINE(c->test(c->user, request, &done));
  return NULL;
}

/* One after the other, ended by wait or by test. */
static const char *one_by_one(const moe_communicator *c) {
  for (int step = 0; step < 12; step++) {
    exchange e;
    CHECKED(begin(c, &e, step));
    if (step % 2 == (c->rank & 1)) FINE(c->wait(c->user, e.request));
    else CHECKED(poll(c, e.request));
    CHECKED(look(c, &e));
  }
  return NULL;
}

/* Many at once, ended in another order than begun, and another on each rank. */
static const char *many_at_once(const moe_communicator *c) {
  enum { MANY = 9 };
  exchange e[MANY];
  for (int step = 0; step < MANY; step++) CHECKED(begin(c, &e[step], step));
  for (int i = 0; i < MANY; i++) {
    int step = (i * 4 + c->rank) % MANY;
    if (i % 2) FINE(c->wait(c->user, e[step].request));
    else CHECKED(poll(c, e[step].request));
    CHECKED(look(c, &e[step]));
  }
  return NULL;
}

/* Messages of one tag arrive in order, those of several tags apart; an all_to_all in between. */
static const char *messages(const moe_communicator *c) {
  enum { MANY = 6 };
  int to = (c->rank + 1) % c->size, from = (c->rank + c->size - 1) % c->size;
  static const int32_t tags[MANY] = {0, 7, 0, 16383, 7, 0};
  unsigned char out[MANY][100], in[MANY][100];
  void *sent[MANY], *received[MANY];
  for (int i = 0; i < MANY; i++) {
    memset(out[i], 10 * c->rank + i, sizeof out[i]);
    FINE(c->send(c->user, out[i], i == 1 ? 0 : 10 * i + 10, to, tags[i], &sent[i]));
  }
  exchange e;
  CHECKED(begin(c, &e, 2));
  /* Tag by tag, the last first. */
  static const int order[MANY] = {3, 1, 4, 0, 2, 5};
  for (int k = 0; k < MANY; k++) {
    int i = order[k];
    memset(in[i], 0xee, sizeof in[i]);
    FINE(c->receive(c->user, in[i], i == 1 ? 0 : 10 * i + 10, from, tags[i], &received[i]));
  }
  for (int i = MANY - 1; i >= 0; i--) FINE(c->wait(c->user, received[i]));
  for (int i = 0; i < MANY; i++) CHECKED(poll(c, sent[i]));
  for (int i = 0; i < MANY; i++)
    for (int at = 0; at < (i == 1 ? 0 : 10 * i + 10); at++) NEED(in[i][at] == (unsigned char)(10 * from + i));
  for (int i = 0; i < MANY; i++) NEED(in[i][i == 1 ? 0 : 10 * i + 10] == 0xee || i == MANY);
  FINE(c->wait(c->user, e.request));
  return look(c, &e);
}

/* A chain from rank to rank, as sums are passed on: each adds one. */
static const char *chain(const moe_communicator *c) {
  int64_t sum = 0;
  void *request;
  if (c->rank > 0) {
    FINE(c->receive(c->user, &sum, sizeof sum, c->rank - 1, 3, &request));
    FINE(c->wait(c->user, request));
  }
  NEED(sum == c->rank);
  sum++;
  if (c->rank < c->size - 1) {
    FINE(c->send(c->user, &sum, sizeof sum, c->rank + 1, 3, &request));
    FINE(c->wait(c->user, request));
  }
  return NULL;
}

/* More than a transport keeps by itself, in both directions: begun before either side waits. */
static const char *large_ones(const moe_communicator *c, int64_t large) {
  int to = (c->rank + 1) % c->size, from = (c->rank + c->size - 1) % c->size;
  int64_t out_bytes[MOST_RANKS] = {0}, in_bytes[MOST_RANKS] = {0}, at[MOST_RANKS] = {0};
  unsigned char *out = (unsigned char *)malloc((size_t)large), *in = (unsigned char *)malloc((size_t)large);
  NEED(out != NULL && in != NULL);
  for (int64_t i = 0; i < large; i += 997) out[i] = byte_of(5, c->rank, to, i);
  out[large - 1] = byte_of(6, c->rank, to, 0);
  out_bytes[to] = in_bytes[from] = large;
  void *request, *other;
  for (int way = 0; way < (c->size > 1 ? 2 : 1); way++) {
    memset(in, 0xee, (size_t)large);
    if (way == 0) {
      FINE(c->all_to_all(c->user, out, out_bytes, at, in, in_bytes, at, &request));
    } else {
      FINE(c->send(c->user, out, large, to, 1, &other));
      FINE(c->receive(c->user, in, large, from, 1, &request));
      FINE(c->wait(c->user, other));
    }
    FINE(c->wait(c->user, request));
    for (int64_t i = 0; i < large - 1; i += 997) NEED(in[i] == byte_of(5, from, c->rank, i));
    NEED(in[large - 1] == byte_of(6, from, c->rank, 0));
  }
  free(out), free(in);
  return NULL;
}

const char *contract(const moe_communicator *c, int64_t large) {
  NEED(c->struct_size == sizeof *c && c->size >= 1 && c->size <= MOST_RANKS && c->rank >= 0 && c->rank < c->size);
  CHECKED(one_by_one(c));
  CHECKED(many_at_once(c));
  if (c->size > 1) CHECKED(messages(c));
  CHECKED(chain(c));
  return large_ones(c, large);
}

const char *contract_beside(const moe_communicator *c, const moe_communicator *other) {
  for (int step = 0; step < 8; step++) {
    exchange mine, theirs;
    /* The ranks do not begin them in the same order: they are two worlds. */
    if (c->rank % 2) {
      CHECKED(begin(c, &mine, step));
      CHECKED(begin(other, &theirs, step + 1));
    } else {
      CHECKED(begin(other, &theirs, step + 1));
      CHECKED(begin(c, &mine, step));
    }
    CHECKED(poll(c, mine.request));
    FINE(other->wait(other->user, theirs.request));
    CHECKED(look(c, &mine));
    CHECKED(look(other, &theirs));
  }
  return NULL;
}
