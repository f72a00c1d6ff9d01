/* moe_communicator.h: what moves bytes between the processes that a layer's experts are spread over.
 *
 * A moe_communicator is a rank's own end of a group of ranks: a struct of functions that somebody fills.  For MPI that is
 * libmoe_mpi.so (mpi/moe_mpi.h), in Python libmoe.mpi and libmoe.torch; a program that has another transport fills one itself.
 * The functions move bytes and compute nothing: every sum is the library's, so its bits do not depend on the transport.
 *
 *     int64_t to[2] = { 0, 8 }, from[2] = { 0, 16 }, at[2] = { 0, 0 };       rank 0 of 2: 8 bytes go, 16 come
 *     void *request;
 *     code = c.all_to_all(c.user, out, to, at, in, from, at, &request);
 *     if (code == 0) code = c.wait(c.user, request);
 *     if (code != 0) puts(c.error(c.user, code));
 *
 * Whoever fills one keeps these rules.
 *   Codes      a function returns 0, or a number of its own that `error` has the words of.
 *   Order      all ranks call all_to_all equally often and in the same order, with nothing to send and receive too: what
 *              rank r says it sends to rank s is what s says it receives from r.  Messages of one sender to one receiver
 *              with one tag arrive in the order they were sent.  Those of send, receive and all_to_all do not mix.
 *   Sizes      are any number of bytes, 0 and more than 2^31 included.  One that differs from the other side's is an error where
 *              the transport sees it.
 *   Requests   all_to_all, send and receive begin, and return before the other side is there.  What they put into *request
 *              stands for the exchange until `wait` returns, `test` says that it is done or fails, or `abandon`: one of these ends
 *              it, also with an error.  On an error of all_to_all, send or receive there is no request.  Several may be
 *              under way at once, and be ended in any order.
 *   Memory     arrays of numbers are read before all_to_all returns.  What is sent is not written, and what is received not
 *              touched at all, until the request has ended without an error; after an error, and after abandon, a transport that
 *              cannot call its messages back may use that memory for as long as the process lives, so it is not freed.
 *              Where nothing is sent or received, the address may be NULL.
 *   Progress   is made within these functions, if not beside them: a caller that computes calls test now and then.
 *   Errors     break a communicator: after one, and after abandon, every further call of it returns an error at once, without
 *              waiting for another rank.  Other ranks learn of it where the transport can tell them.
 *   Threads    one call at a time, all in the thread that calls the library; with MOE_COMMUNICATOR_ANY_THREAD in any thread, also
 *              at the same time, where each request belongs to one thread at a time.
 */
#ifndef MOE_COMMUNICATOR_H
#define MOE_COMMUNICATOR_H

#include "moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------
 * Communicators: bytes between processes
 * ---------------------------------------------------------------------------------------------------------- */

/** What a communicator can do beside what all can. */
typedef enum moe_communicator_flag {
  MOE_COMMUNICATOR_ANY_THREAD = 1 /**< its functions may be called in any thread, and in several at once; this version calls all of them in the
                                       thread that calls the library */
} moe_communicator_flag;

/** One rank's end of a group of ranks: functions that move bytes.  The rules are at the top of moe_communicator.h.
 *  What takes one copies the struct; `user` and the functions have to live as long as what was made with it. */
typedef struct moe_communicator {
  size_t struct_size;
  void *user;    /**< goes to every function */
  int32_t rank;  /**< a number: this rank's, from 0 to size - 1 */
  int32_t size;  /**< a number: how many ranks there are, at least 1 */
  int32_t flags; /**< a sum of moe_communicator_flag */
  /** Begins an exchange of all ranks with all: send_bytes[r] bytes at send + send_offsets[r] go to rank r, and receive_bytes[r]
   *  from rank r come to receive + receive_offsets[r].  The four arrays are [size]; r is this rank itself, too. */
  int32_t (*all_to_all)(void *user, const void *send, const int64_t *send_bytes, const int64_t *send_offsets, void *receive,
                        const int64_t *receive_bytes, const int64_t *receive_offsets, void **request);
  /** Begins to send `bytes` bytes to another rank.  A tag is 0 to 16383.  A wait for it may last until the other side receives. */
  int32_t (*send)(void *user, const void *data, int64_t bytes, int32_t to, int32_t tag, void **request);
  /** Begins to receive what another rank sends with this tag. */
  int32_t (*receive)(void *user, void *data, int64_t bytes, int32_t from, int32_t tag, void **request);
  /** Moves exchanges on; *done = 1 when this one is done and its request has ended, else 0.  Never waits. */
  int32_t (*test)(void *user, void *request, int32_t *done);
  /** Returns when the exchange is done.  The request has ended. */
  int32_t (*wait)(void *user, void *request);
  /** Words for a code of this communicator's, without a newline.  They stay until this thread asks for others. */
  const char *(*error)(void *user, int32_t code);
  /** Ends a request that nobody will wait for, after an error of another one.  Returns at once. */
  void (*abandon)(void *user, void *request);
} moe_communicator;

#define MOE_COMMUNICATOR_INIT { sizeof(moe_communicator), NULL, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL }

/** Fill `communicator` with 0.  NULL is ignored.  For whoever fills one; give sizeof of the struct as you compiled it. */
MOE_API void moe_communicator_init(moe_communicator *communicator, size_t struct_size);

#ifdef __cplusplus
}
#endif

#endif
