#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "thread_ranks.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALL_TO_ALL = -1 }; /* in place of a tag */

/* Seconds that a wait sleeps at once.  Not much more of the clock counts as waiting: the whole process may have been stopped. */
static const double SLICE = 0.1;

/* One side of a message, until both sides are done with it. */
typedef struct part {
  struct part *next;  /* of those that wait for their other side, oldest first */
  struct part *other; /* set when both are there */
  struct request *request;
  unsigned char *data;
  int64_t bytes;
  int32_t from, to, tag;
  int64_t number; /* of the all_to_all it belongs to; 0 of others */
  int32_t sends;
  double arrives; /* when the bytes are there, seconds; of both sides once matched */
} part;

typedef struct request {
  struct request *next; /* all of the group's that have not ended */
  int32_t rank, fault, n_parts;
  int64_t exchange;
  part parts[];
} request;

typedef struct rank_end {
  thread_ranks *ranks;
  int32_t rank;
  int64_t exchanges, all_to_alls;
  int64_t fault_at;
  int32_t fault;
  int32_t told; /* of an error: what has arrived meanwhile is not given out any more */
  double link_free; /* when the way out of this rank is free again, seconds */
  double slept;     /* in waits for bytes that were on their way, seconds */
} rank_end;

struct thread_ranks {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int32_t size;
  int32_t broken;
  char reason[200];
  double patience, bytes_per_second, latency;
  part *waiting;
  request *open;
  int64_t *bytes; /* [size,size], from and to */
  rank_end ends[];
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int32_t fail(thread_ranks *ranks, const char *reason) {
  if (!ranks->broken) snprintf(ranks->reason, sizeof ranks->reason, "%s", reason);
  ranks->broken = 1;
  pthread_cond_broadcast(&ranks->changed);
  return 1;
}

/* ---- matching ---------------------------------------------------------------------------------------------- */

static int32_t belong_together(const part *a, const part *b) {
  return a->sends != b->sends && a->from == b->from && a->to == b->to && a->tag == b->tag && a->number == b->number;
}

static int32_t match(thread_ranks *ranks, part *mine, part *other) {
  if (mine->bytes != other->bytes) {
    const part *out = mine->sends ? mine : other, *in = mine->sends ? other : mine;
    char reason[160];
    snprintf(reason, sizeof reason, "rank %d sends %lld bytes to rank %d, which expects %lld", (int)out->from,
             (long long)out->bytes, (int)out->to, (long long)in->bytes);
    return fail(ranks, reason);
  }
  double arrives = now();
  if (mine->from != mine->to) {
    rank_end *out = &ranks->ends[mine->from];
    if (out->link_free > arrives) arrives = out->link_free;
    if (ranks->bytes_per_second > 0) arrives += (double)mine->bytes / ranks->bytes_per_second;
    out->link_free = arrives;
    arrives += ranks->latency;
  }
  mine->other = other, other->other = mine;
  mine->arrives = other->arrives = arrives;
  ranks->bytes[mine->from * ranks->size + mine->to] += mine->bytes;
  pthread_cond_broadcast(&ranks->changed);
  return 0;
}

/* Finds the other side, or waits for it in the list. */
static int32_t post(thread_ranks *ranks, part *mine) {
  if (!mine->sends && mine->bytes > 0) memset(mine->data, 0xff, (size_t)mine->bytes);
  part **at = &ranks->waiting;
  for (; *at != NULL; at = &(*at)->next) {
    if (belong_together(mine, *at)) {
      part *other = *at;
      *at = other->next;
      return match(ranks, mine, other);
    }
  }
  mine->next = NULL;
  *at = mine;
  return 0;
}

/* The bytes go over when somebody sees that they have arrived, and both sides forget each other. */
static int32_t has_arrived(part *mine, double time) {
  if (mine->request == NULL) return 1;
  if (mine->other == NULL || mine->arrives > time) return 0;
  part *other = mine->other;
  part *out = mine->sends ? mine : other, *in = mine->sends ? other : mine;
  if (out->bytes > 0) memcpy(in->data, out->data, (size_t)out->bytes);
  mine->request = other->request = NULL;
  mine->other = other->other = NULL;
  return 1;
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static void withdraw(thread_ranks *ranks, const request *ended) {
  for (part **at = &ranks->waiting; *at != NULL;) {
    if ((*at)->request == ended) *at = (*at)->next;
    else at = &(*at)->next;
  }
}

static void end(thread_ranks *ranks, request *ended) {
  withdraw(ranks, ended);
  for (int32_t i = 0; i < ended->n_parts; i++) {
    part *mine = &ended->parts[i];
    if (mine->request != NULL && mine->other != NULL) mine->other->other = NULL; /* it will never come */
  }
  for (request **at = &ranks->open; *at != NULL; at = &(*at)->next) {
    if (*at == ended) {
      *at = ended->next;
      break;
    }
  }
  free(ended);
}

/* Counts an exchange, and looks whether it is to fail. */
static int32_t begin(rank_end *mine, int32_t n_parts, request **out) {
  thread_ranks *ranks = mine->ranks;
  if (ranks->broken) return 1;
  mine->exchanges++;
  int32_t fault = mine->exchanges == mine->fault_at ? mine->fault : 0;
  if (fault == THREAD_RANKS_NOT_BEGUN) return fail(ranks, "an exchange was made to fail at its beginning");
  request *made = (request *)calloc(1, sizeof *made + (size_t)n_parts * sizeof(part));
  if (made == NULL) return fail(ranks, "there is no memory for a request");
  made->rank = mine->rank;
  made->fault = fault;
  made->exchange = mine->exchanges;
  made->n_parts = n_parts;
  made->next = ranks->open;
  ranks->open = made;
  *out = made;
  return 0;
}

static int32_t post_all(thread_ranks *ranks, request *made, void **out) {
  int32_t code = 0;
  for (int32_t i = 0; i < made->n_parts; i++) {
    made->parts[i].request = made;
    if (made->fault != THREAD_RANKS_LOST && code == 0) code = post(ranks, &made->parts[i]);
  }
  if (code != 0) end(ranks, made);
  else *out = made;
  return code;
}

static int32_t all_to_all(void *user, const void *send, const int64_t *send_bytes, const int64_t *send_offsets, void *receive,
                          const int64_t *receive_bytes, const int64_t *receive_offsets, void **out) {
  rank_end *mine = (rank_end *)user;
  thread_ranks *ranks = mine->ranks;
  request *made;
  pthread_mutex_lock(&ranks->lock);
  int32_t code = begin(mine, 2 * ranks->size, &made);
  if (code == 0) {
    int64_t number = ++mine->all_to_alls;
    for (int32_t r = 0; r < ranks->size; r++) {
      part *in = &made->parts[2 * r], *gone = &made->parts[2 * r + 1];
      in->from = r, in->to = mine->rank, in->tag = ALL_TO_ALL, in->number = number;
      in->bytes = receive_bytes[r];
      if (in->bytes > 0) in->data = (unsigned char *)receive + receive_offsets[r];
      gone->from = mine->rank, gone->to = r, gone->tag = ALL_TO_ALL, gone->number = number, gone->sends = 1;
      gone->bytes = send_bytes[r];
      if (gone->bytes > 0) gone->data = (unsigned char *)send + send_offsets[r];
    }
    code = post_all(ranks, made, out);
  }
  if (code != 0) mine->told = 1;
  pthread_mutex_unlock(&ranks->lock);
  return code;
}

static int32_t message(rank_end *mine, part one, void **out) {
  thread_ranks *ranks = mine->ranks;
  request *made;
  pthread_mutex_lock(&ranks->lock);
  int32_t code;
  int32_t other = one.sends ? one.to : one.from;
  if (other < 0 || other >= ranks->size || other == mine->rank || one.tag < 0 || one.tag > 16383) {
    code = fail(ranks, "a message is for no other rank, or has no tag from 0 to 16383");
  } else {
    code = begin(mine, 1, &made);
  }
  if (code == 0) {
    made->parts[0] = one;
    code = post_all(ranks, made, out);
  }
  if (code != 0) mine->told = 1;
  pthread_mutex_unlock(&ranks->lock);
  return code;
}

static int32_t send_to(void *user, const void *data, int64_t bytes, int32_t to, int32_t tag, void **out) {
  rank_end *mine = (rank_end *)user;
  part one;
  memset(&one, 0, sizeof one);
  one.data = (unsigned char *)data, one.bytes = bytes, one.sends = 1;
  one.from = mine->rank, one.to = to, one.tag = tag;
  return message(mine, one, out);
}

static int32_t receive_from(void *user, void *data, int64_t bytes, int32_t from, int32_t tag, void **out) {
  rank_end *mine = (rank_end *)user;
  part one;
  memset(&one, 0, sizeof one);
  one.data = (unsigned char *)data, one.bytes = bytes;
  one.from = from, one.to = mine->rank, one.tag = tag;
  return message(mine, one, out);
}

/* Whether all of it has arrived; if not, when the next of it may have, and which rank has not come. */
static int32_t is_done(request *asked, double *soonest, int32_t *missing) {
  int32_t done = 1;
  double time = now();
  for (int32_t i = 0; i < asked->n_parts; i++) {
    part *mine = &asked->parts[i];
    if (has_arrived(mine, time)) continue;
    done = 0;
    if (mine->other == NULL) *missing = mine->sends ? mine->to : mine->from;
    else if (mine->arrives < *soonest) *soonest = mine->arrives;
  }
  return done;
}

/* Whether it is over, and has been ended: done, or with an error in *code. */
static int32_t is_over(rank_end *mine, request *asked, double *soonest, int32_t *missing, int32_t *code) {
  thread_ranks *ranks = mine->ranks;
  if (asked->fault == THREAD_RANKS_NOT_ENDED) fail(ranks, "an exchange was made to fail at its end");
  int32_t done = asked->fault != THREAD_RANKS_NOT_ENDED && !mine->told && is_done(asked, soonest, missing);
  if (!done && !ranks->broken) return 0;
  *code = !done;
  if (!done) mine->told = 1;
  end(ranks, asked);
  return 1;
}

static int32_t test(void *user, void *given, int32_t *done) {
  rank_end *mine = (rank_end *)user;
  double soonest = 0;
  int32_t missing, code = 0;
  pthread_mutex_lock(&mine->ranks->lock);
  *done = is_over(mine, (request *)given, &soonest, &missing, &code) && code == 0;
  pthread_mutex_unlock(&mine->ranks->lock);
  return code;
}

static int32_t wait_for(void *user, void *given) {
  rank_end *mine = (rank_end *)user;
  thread_ranks *ranks = mine->ranks;
  request *asked = (request *)given;
  pthread_mutex_lock(&ranks->lock);
  double spent = 0, before = now();
  int32_t code = 0;
  for (;;) {
    double time = now(), until = time + SLICE;
    int32_t missing = -1;
    if (is_over(mine, asked, &until, &missing, &code)) break;
    spent += time - before < 2 * SLICE ? time - before : 2 * SLICE;
    before = time;
    if (spent >= ranks->patience) {
      char reason[120];
      snprintf(reason, sizeof reason, "rank %d waited %.3g s in its exchange %lld, and rank %d did not come", (int)asked->rank,
               ranks->patience, (long long)asked->exchange, (int)missing);
      fail(ranks, reason);
      continue;
    }
    struct timespec wake = {(time_t)until, (long)(1e9 * (until - (double)(time_t)until))};
    double asleep = now();
    pthread_cond_timedwait(&ranks->changed, &ranks->lock, &wake);
    double awake = now();
    if (missing < 0) mine->slept += (awake < until ? awake : until) - (asleep < until ? asleep : until);
  }
  pthread_mutex_unlock(&ranks->lock);
  return code;
}

static const char *error(void *user, int32_t code) {
  (void)code;
  return ((rank_end *)user)->ranks->reason;
}

static void abandon(void *user, void *given) {
  rank_end *mine = (rank_end *)user;
  thread_ranks *ranks = mine->ranks;
  pthread_mutex_lock(&ranks->lock);
  mine->told = fail(ranks, "an exchange was abandoned");
  end(ranks, (request *)given);
  pthread_mutex_unlock(&ranks->lock);
}

/* ---- the group --------------------------------------------------------------------------------------------- */

thread_ranks *thread_ranks_create(int32_t size, moe_communicator *communicators) {
  thread_ranks *ranks = (thread_ranks *)calloc(1, sizeof *ranks + (size_t)size * sizeof(rank_end));
  int64_t *bytes = (int64_t *)calloc((size_t)size * (size_t)size, sizeof *bytes);
  if (ranks == NULL || bytes == NULL) {
    free(ranks), free(bytes);
    return NULL;
  }
  pthread_condattr_t clock;
  pthread_condattr_init(&clock);
  pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
  pthread_cond_init(&ranks->changed, &clock);
  pthread_condattr_destroy(&clock);
  pthread_mutex_init(&ranks->lock, NULL);
  ranks->size = size;
  ranks->patience = 60;
  ranks->bytes = bytes;
  for (int32_t r = 0; r < size; r++) {
    ranks->ends[r].ranks = ranks;
    ranks->ends[r].rank = r;
    moe_communicator made = MOE_COMMUNICATOR_INIT;
    made.user = &ranks->ends[r];
    made.rank = r, made.size = size, made.flags = MOE_COMMUNICATOR_ANY_THREAD;
    made.all_to_all = all_to_all, made.send = send_to, made.receive = receive_from;
    made.test = test, made.wait = wait_for, made.error = error, made.abandon = abandon;
    communicators[r] = made;
  }
  return ranks;
}

void thread_ranks_free(thread_ranks *ranks) {
  if (ranks == NULL) return;
  while (ranks->open != NULL) end(ranks, ranks->open);
  pthread_cond_destroy(&ranks->changed);
  pthread_mutex_destroy(&ranks->lock);
  free(ranks->bytes);
  free(ranks);
}

void thread_ranks_set_patience(thread_ranks *ranks, double seconds) {
  pthread_mutex_lock(&ranks->lock);
  ranks->patience = seconds;
  pthread_mutex_unlock(&ranks->lock);
}

void thread_ranks_set_link(thread_ranks *ranks, double bytes_per_second, double latency) {
  pthread_mutex_lock(&ranks->lock);
  ranks->bytes_per_second = bytes_per_second, ranks->latency = latency;
  pthread_mutex_unlock(&ranks->lock);
}

int64_t thread_ranks_bytes(thread_ranks *ranks, int32_t from, int32_t to) {
  pthread_mutex_lock(&ranks->lock);
  int64_t bytes = ranks->bytes[from * ranks->size + to];
  pthread_mutex_unlock(&ranks->lock);
  return bytes;
}

double thread_ranks_slept(thread_ranks *ranks, int32_t rank) {
  pthread_mutex_lock(&ranks->lock);
  double slept = ranks->ends[rank].slept;
  pthread_mutex_unlock(&ranks->lock);
  return slept;
}

int64_t thread_ranks_exchanges(thread_ranks *ranks, int32_t rank) {
  pthread_mutex_lock(&ranks->lock);
  int64_t exchanges = ranks->ends[rank].exchanges;
  pthread_mutex_unlock(&ranks->lock);
  return exchanges;
}

void thread_ranks_set_fault(thread_ranks *ranks, int32_t rank, int64_t exchange, int32_t fault) {
  pthread_mutex_lock(&ranks->lock);
  ranks->ends[rank].fault_at = exchange, ranks->ends[rank].fault = fault;
  pthread_mutex_unlock(&ranks->lock);
}

void thread_ranks_break(thread_ranks *ranks) {
  pthread_mutex_lock(&ranks->lock);
  fail(ranks, "a rank has died");
  pthread_mutex_unlock(&ranks->lock);
}
