/* thread_ranks.h: threads of one process as the ranks of a moe_communicator, for tests.
 *
 * Every message is matched with its counterpart, and nothing is forgiven: a count that differs from the other side's, a rank
 * that does not come, a call after an error.  What is to be received is filled with ones (NaN) until it has come, and what
 * is sent is read as late as a real transport may, so that a caller who breaks a rule computes something else.
 */
#ifndef THREAD_RANKS_H
#define THREAD_RANKS_H

#include <moe_communicator.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct thread_ranks thread_ranks;

/* `size` ranks, whose ends are written to communicators [size]; NULL without memory.  Each is one thread's, or several's. */
thread_ranks *thread_ranks_create(int32_t size, moe_communicator *communicators);

/* When no call is under way; requests that have not ended go with it. */
void thread_ranks_free(thread_ranks *ranks);

/* A wait for longer than this is an error that says who did not come: 60 s if nothing is said. */
void thread_ranks_set_patience(thread_ranks *ranks, double seconds);

/* From now on a message takes `latency` and its bytes at this rate, one after the other on the way out of a rank; to itself
 * nothing.  0 bytes per second = no limit. */
void thread_ranks_set_link(thread_ranks *ranks, double bytes_per_second, double latency);

/* Bytes that rank `from` has sent to rank `to`, and exchanges (all_to_all, send, receive) that a rank has begun. */
int64_t thread_ranks_bytes(thread_ranks *ranks, int32_t from, int32_t to);
int64_t thread_ranks_exchanges(thread_ranks *ranks, int32_t rank);

/* Seconds that a rank's waits have lasted while all that they waited for was on its way: time of the link that nothing was
 * computed under. */
double thread_ranks_slept(thread_ranks *ranks, int32_t rank);

/* What is to happen to one of a rank's exchanges, which count from 1. */
enum thread_ranks_fault {
  THREAD_RANKS_NOT_BEGUN = 1, /* the call that begins it returns an error */
  THREAD_RANKS_NOT_ENDED = 2, /* test and wait for it return an error */
  THREAD_RANKS_LOST = 3       /* it begins, and nothing of it ever leaves or arrives: others run out of patience */
};
void thread_ranks_set_fault(thread_ranks *ranks, int32_t rank, int64_t exchange, int32_t fault);

/* As when a rank has died: what is under way, and every call from now on, is an error on all ranks. */
void thread_ranks_break(thread_ranks *ranks);

#ifdef __cplusplus
}
#endif

#endif
