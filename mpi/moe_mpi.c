/* A moe_communicator over MPI.  Every exchange is messages from rank to rank (MPI_Isend, MPI_Irecv): where most ranks have nothing
 * for most others, only what there is travels, a receiver sees when a message is not as long as it should be, and sizes beyond
 * an int are messages one after the other, with every version of MPI alike. */
#include "moe_mpi.h"

#include <mpi.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Bytes of one message of MPI, whose counts are int.  Tests build with fewer. */
#ifndef MOE_MPI_PIECE
#define MOE_MPI_PIECE (1 << 30)
#endif

/* MPI_TAG_UB is at least 32767.  Below are the caller's tags; from here on the exchanges of all with all, by their number: one
 * that counts differently on two ranks does not take the bytes of the next. */
enum { FIRST_EXCHANGE_TAG = 16384, EXCHANGE_TAGS = 16384 };

/* How long a wait only yields before it sleeps between its looks, seconds: ranks may share processors. */
static const double BUSY = 2e-3;

typedef struct {
  MPI_Comm comm;
  int32_t rank, size;
  int main_thread_only;
  atomic_uint exchanges;
  atomic_int broken; /* 1: being said; 2: `reason` has been written */
  char reason[MPI_MAX_ERROR_STRING + 200];
} end;

typedef struct {
  int n, n_receives;     /* receives stand first */
  int next;              /* those before are done */
  MPI_Request *requests; /* [n] */
  int *expected;         /* [n] bytes */
} exchange;

static _Thread_local char message[MPI_MAX_ERROR_STRING + 200];

/* ---- errors ------------------------------------------------------------------------------------------------ */

/* The first error is why every later call fails. */
static int32_t fail(end *mine, const char *format, ...) {
  int none = 0;
  if (atomic_compare_exchange_strong(&mine->broken, &none, 1)) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(mine->reason, sizeof mine->reason, format, arguments);
    va_end(arguments);
    atomic_store(&mine->broken, 2);
  }
  return 1;
}

static int32_t fail_as_mpi_says(end *mine, const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return fail(mine, "%s: %s", what, text);
}

static const char *error(void *user, int32_t code) {
  end *mine = (end *)user;
  (void)code;
  return atomic_load(&mine->broken) == 2 ? mine->reason : "another thread's exchange has just failed";
}

static int is_finalized(void) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return finalized;
}

/* Whether this thread may use MPI now. */
static int32_t enter(end *mine) {
  if (atomic_load(&mine->broken)) return 1;
  if (is_finalized()) return fail(mine, "MPI has been finalized, and the communicator is still used");
  int here = 1;
  if (mine->main_thread_only) MPI_Is_thread_main(&here);
  if (here) return 0;
  return fail(mine, "MPI was initialized for its main thread alone (MPI_THREAD_FUNNELED), and this is another thread: call the "
                    "library in that thread, or initialize MPI with MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE");
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static int64_t pieces(int64_t bytes) { return (bytes + MOE_MPI_PIECE - 1) / MOE_MPI_PIECE; }

static void release(exchange *ended) {
  free(ended->requests), free(ended->expected);
  free(ended);
}

/* Lets go of messages that are still under way.  MPI may use their memory yet. */
static void drop(exchange *ended) {
  if (!is_finalized()) {
    for (int i = ended->next; i < ended->n; i++) {
      if (ended->requests[i] == MPI_REQUEST_NULL) continue;
      if (i < ended->n_receives) MPI_Cancel(&ended->requests[i]);
      MPI_Request_free(&ended->requests[i]);
    }
  }
  release(ended);
}

static exchange *allocate(end *mine, int64_t room) {
  if (room > INT32_MAX) {
    fail(mine, "%lld messages at once are too many", (long long)room);
    return NULL;
  }
  size_t count = room > 0 ? (size_t)room : 1;
  exchange *made = (exchange *)calloc(1, sizeof *made);
  if (made != NULL) {
    made->requests = (MPI_Request *)malloc(count * sizeof *made->requests);
    made->expected = (int *)malloc(count * sizeof *made->expected);
    if (made->requests != NULL && made->expected != NULL) return made;
    release(made);
  }
  fail(mine, "there is no memory for the requests of an exchange");
  return NULL;
}

static int32_t post_receive(end *mine, exchange *to, char *data, int64_t bytes, int32_t from, int tag) {
  for (int64_t at = 0; at < bytes; at += MOE_MPI_PIECE) {
    int count = (int)(bytes - at < MOE_MPI_PIECE ? bytes - at : MOE_MPI_PIECE);
    int code = MPI_Irecv(data + at, count, MPI_BYTE, from, tag, mine->comm, &to->requests[to->n]);
    if (code != MPI_SUCCESS) return fail_as_mpi_says(mine, "MPI_Irecv", code);
    to->expected[to->n++] = count;
    to->n_receives = to->n;
  }
  return 0;
}

static int32_t post_send(end *mine, exchange *to, const char *data, int64_t bytes, int32_t receiver, int tag) {
  for (int64_t at = 0; at < bytes; at += MOE_MPI_PIECE) {
    int count = (int)(bytes - at < MOE_MPI_PIECE ? bytes - at : MOE_MPI_PIECE);
    int code = MPI_Isend(data + at, count, MPI_BYTE, receiver, tag, mine->comm, &to->requests[to->n]);
    if (code != MPI_SUCCESS) return fail_as_mpi_says(mine, "MPI_Isend", code);
    to->expected[to->n++] = count;
  }
  return 0;
}

/* ---- the functions ----------------------------------------------------------------------------------------- */

static int32_t all_to_all(void *user, const void *send, const int64_t *send_bytes, const int64_t *send_offsets, void *receive,
                          const int64_t *receive_bytes, const int64_t *receive_offsets, void **request) {
  end *mine = (end *)user;
  int32_t rank = mine->rank, size = mine->size;
  if (enter(mine) != 0) return 1;
  int64_t own = send_bytes[rank], room = 0;
  if (own != receive_bytes[rank]) {
    return fail(mine, "rank %d sends %lld bytes to itself, and expects %lld", (int)rank, (long long)own,
                (long long)receive_bytes[rank]);
  }
  for (int32_t r = 0; r < size; r++) {
    if (send_bytes[r] < 0 || receive_bytes[r] < 0) return fail(mine, "a number of bytes is negative");
    if (r != rank) room += pieces(send_bytes[r]) + pieces(receive_bytes[r]);
  }
  exchange *made = allocate(mine, room);
  if (made == NULL) return 1;
  int tag = FIRST_EXCHANGE_TAG + (int)(atomic_fetch_add(&mine->exchanges, 1) % EXCHANGE_TAGS);
  int32_t code = 0;
  /* Each begins with its neighbour: not all with the same one. */
  for (int32_t i = 1; i < size && code == 0; i++) {
    int32_t from = (rank + size - i) % size;
    if (receive_bytes[from] > 0)
      code = post_receive(mine, made, (char *)receive + receive_offsets[from], receive_bytes[from], from, tag);
  }
  for (int32_t i = 1; i < size && code == 0; i++) {
    int32_t to = (rank + i) % size;
    if (send_bytes[to] > 0) code = post_send(mine, made, (const char *)send + send_offsets[to], send_bytes[to], to, tag);
  }
  if (code != 0) {
    drop(made);
    return code;
  }
  if (own > 0) memcpy((char *)receive + receive_offsets[rank], (const char *)send + send_offsets[rank], (size_t)own);
  *request = made;
  return 0;
}

static int32_t begin(end *mine, int sends, void *data, int64_t bytes, int32_t other, int32_t tag, void **request) {
  if (enter(mine) != 0) return 1;
  if (other < 0 || other >= mine->size || other == mine->rank || tag < 0 || tag >= FIRST_EXCHANGE_TAG || bytes < 0)
    return fail(mine, "a message of %lld bytes with the tag %d is between the ranks %d and %d of %d", (long long)bytes, (int)tag,
                (int)mine->rank, (int)other, (int)mine->size);
  exchange *made = allocate(mine, pieces(bytes));
  if (made == NULL) return 1;
  int32_t code = sends ? post_send(mine, made, (const char *)data, bytes, other, tag)
                       : post_receive(mine, made, (char *)data, bytes, other, tag);
  if (code != 0) drop(made);
  else *request = made;
  return code;
}

static int32_t send_to(void *user, const void *data, int64_t bytes, int32_t to, int32_t tag, void **request) {
  return begin((end *)user, 1, (void *)data, bytes, to, tag, request);
}

static int32_t receive_from(void *user, void *data, int64_t bytes, int32_t from, int32_t tag, void **request) {
  return begin((end *)user, 0, data, bytes, from, tag, request);
}

static int32_t look_at_length(end *mine, const exchange *asked, const MPI_Status *status) {
  int count = 0, expected = asked->expected[asked->next];
  if (asked->next >= asked->n_receives) return 0;
  MPI_Get_count(status, MPI_BYTE, &count);
  if (count == expected) return 0;
  return fail(mine, "rank %d sends %d bytes to rank %d, which expects %d", status->MPI_SOURCE, count, (int)mine->rank, expected);
}

/* One after the other: while one is not there, MPI makes progress with all. */
static int32_t test(void *user, void *request, int32_t *done) {
  end *mine = (end *)user;
  exchange *asked = (exchange *)request;
  int there = 1;
  *done = 0;
  int32_t failed = enter(mine);
  while (!failed && asked->next < asked->n) {
    MPI_Status status;
    int code = MPI_Test(&asked->requests[asked->next], &there, &status);
    if (code != MPI_SUCCESS) failed = fail_as_mpi_says(mine, "MPI_Test", code);
    else if (!there) return 0;
    else if (look_at_length(mine, asked, &status) != 0) failed = 1;
    else asked->next++;
  }
  *done = !failed;
  if (failed) drop(asked);
  else release(asked);
  return failed;
}

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Not MPI_Waitall, which keeps its processor in most MPIs: the rank that is waited for may need it. */
static int32_t wait_for(void *user, void *request) {
  double begun = seconds();
  for (;;) {
    int32_t done;
    int32_t code = test(user, request, &done);
    if (code != 0 || done) return code;
    if (seconds() - begun < BUSY) {
      sched_yield();
    } else {
      struct timespec pause = {0, 50000};
      nanosleep(&pause, NULL);
    }
  }
}

static void abandon(void *user, void *request) {
  fail((end *)user, "an exchange was abandoned");
  drop((exchange *)request);
}

/* ---- making and freeing ------------------------------------------------------------------------------------ */

static moe_status refuse(moe_status status, const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (code != MPI_SUCCESS) MPI_Error_string(code, text, &length);
  snprintf(message, sizeof message, "%s%s", what, text);
  return status;
}

moe_status moe_mpi_communicator(const void *address_of_MPI_Comm, moe_communicator *out) {
  if (address_of_MPI_Comm == NULL) return refuse(MOE_ERROR_INVALID_ARGUMENT, "address_of_MPI_Comm is NULL", MPI_SUCCESS);
  if (out == NULL) return refuse(MOE_ERROR_INVALID_ARGUMENT, "out is NULL", MPI_SUCCESS);
  if (out->struct_size < sizeof *out)
    return refuse(MOE_ERROR_INVALID_ARGUMENT, "out->struct_size is too small: fill it with MOE_COMMUNICATOR_INIT", MPI_SUCCESS);
  int initialized = 0, between = 0, level = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialized);
  if (!initialized) return refuse(MOE_ERROR_BAD_STATE, "MPI is not initialized: call MPI_Init_thread first", MPI_SUCCESS);
  if (is_finalized()) return refuse(MOE_ERROR_BAD_STATE, "MPI has been finalized", MPI_SUCCESS);
  MPI_Comm given = *(const MPI_Comm *)address_of_MPI_Comm;
  if (given == MPI_COMM_NULL) return refuse(MOE_ERROR_INVALID_ARGUMENT, "the MPI_Comm is MPI_COMM_NULL", MPI_SUCCESS);
  MPI_Comm_test_inter(given, &between);
  if (between) return refuse(MOE_ERROR_INVALID_ARGUMENT, "the MPI_Comm is an intercommunicator", MPI_SUCCESS);

  end *mine = (end *)calloc(1, sizeof *mine);
  if (mine == NULL) return refuse(MOE_ERROR_OUT_OF_MEMORY, "there is no memory for a communicator", MPI_SUCCESS);
  int code = MPI_Comm_dup(given, &mine->comm), rank = 0, size = 0;
  if (code != MPI_SUCCESS) {
    free(mine);
    return refuse(MOE_ERROR_COMMUNICATION, "MPI_Comm_dup: ", code);
  }
  MPI_Comm_set_errhandler(mine->comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(mine->comm, &rank);
  MPI_Comm_size(mine->comm, &size);
  MPI_Query_thread(&level);
  mine->rank = rank, mine->size = size;
  mine->main_thread_only = level < MPI_THREAD_SERIALIZED;

  moe_communicator made = MOE_COMMUNICATOR_INIT;
  made.user = mine;
  made.rank = rank, made.size = size;
  made.flags = level == MPI_THREAD_MULTIPLE ? MOE_COMMUNICATOR_ANY_THREAD : 0;
  made.all_to_all = all_to_all, made.send = send_to, made.receive = receive_from;
  made.test = test, made.wait = wait_for, made.error = error, made.abandon = abandon;
  made.struct_size = out->struct_size;
  memset(out, 0, out->struct_size);
  memcpy(out, &made, sizeof made);
  return MOE_OK;
}

void moe_mpi_communicator_free(moe_communicator *communicator) {
  if (communicator == NULL || communicator->user == NULL) return;
  end *mine = (end *)communicator->user;
  if (!is_finalized()) MPI_Comm_free(&mine->comm);
  free(mine);
  moe_communicator none = MOE_COMMUNICATOR_INIT;
  memcpy(communicator, &none, sizeof none);
}

const char *moe_mpi_last_error_message(void) { return message; }
