/* What each rank of mpiexec does, by the name of the test that Tests/mpi/run gives. */
#include <moe_mpi.h>
#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ranks/contract.h"

#define CHECK(condition)                                                                                \
  do {                                                                                                  \
    if (!(condition)) {                                                                                 \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, moe_mpi_last_error_message()); \
      abort();                                                                                          \
    }                                                                                                   \
  } while (0)

static moe_communicator make(MPI_Comm comm) {
  moe_communicator made = MOE_COMMUNICATOR_INIT;
  CHECK(moe_mpi_communicator(&comm, &made) == MOE_OK);
  return made;
}

static void need(const char *wrong) {
  if (wrong != NULL) fprintf(stderr, "%s\n", wrong);
  CHECK(wrong == NULL);
}

static int32_t ended(const moe_communicator *c, int32_t code, void **request) {
  return code != 0 ? code : c->wait(c->user, *request);
}

/* It is an error, with these words, and so is every later call, at once. */
static void need_broken(const moe_communicator *c, int32_t code, const char *words) {
  int64_t nothing[16] = {0};
  void *request;
  if (code == 0 || strstr(c->error(c->user, code), words) == NULL)
    fprintf(stderr, "expected \"%s\": %s\n", words, code == 0 ? "no error" : c->error(c->user, code));
  CHECK(code != 0 && strstr(c->error(c->user, code), words) != NULL);
  code = c->all_to_all(c->user, NULL, nothing, nothing, NULL, nothing, nothing, &request);
  CHECK(code != 0 && strstr(c->error(c->user, code), words) != NULL);
}

/* ---- what a communicator has to do ------------------------------------------------------------------------- */

/* World, a duplicate beside it, and the halves of a split, in the order in which the halves have them. */
static void keeps_the_contract(void) {
  int rank, level;
  MPI_Comm half;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Query_thread(&level);
  moe_communicator world = make(MPI_COMM_WORLD), beside = make(MPI_COMM_WORLD);
  CHECK(world.rank == rank && world.flags == (level == MPI_THREAD_MULTIPLE ? MOE_COMMUNICATOR_ANY_THREAD : 0));
  need(contract(&world, 5 << 20));
  need(contract_beside(&world, &beside));
  moe_mpi_communicator_free(&beside);
  CHECK(MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half) == MPI_SUCCESS);
  moe_communicator part = make(half);
  MPI_Comm_free(&half);
  need(contract(&part, 1 << 20));
  need(contract(&world, 1));
  moe_mpi_communicator_free(&part);
  moe_mpi_communicator_free(&world);
  moe_mpi_communicator_free(&world);
  moe_mpi_communicator_free(NULL);
  CHECK(world.user == NULL && world.struct_size == sizeof world);
}

/* The user's own messages and errors are his. */
static void leaves_the_users_alone(void) {
  int rank, size, from_user = -1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &size);
  int to = (rank + 1) % size, from = (rank + size - 1) % size;
  moe_communicator c = make(MPI_COMM_WORLD);
  int64_t out = 100 + rank, in = 0;
  void *sent, *received;
  MPI_Request users[2];
  MPI_Status statuses[2];
  MPI_Irecv(&from_user, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &users[0]);
  CHECK(c.receive(c.user, &in, 8, from, 0, &received) == 0 && c.send(c.user, &out, 8, to, 0, &sent) == 0);
  CHECK(c.wait(c.user, received) == 0 && c.wait(c.user, sent) == 0 && in == 100 + from);
  MPI_Isend(&rank, 1, MPI_INT, to, 0, MPI_COMM_WORLD, &users[1]);
  MPI_Waitall(2, users, statuses);
  CHECK(from_user == from);
  MPI_Errhandler theirs;
  MPI_Comm_get_errhandler(MPI_COMM_WORLD, &theirs);
  CHECK(theirs == MPI_ERRORS_ARE_FATAL);
  moe_mpi_communicator_free(&c);
}

/* One message of more bytes than an int counts, from rank 0 to rank 1; only its ends are looked at. */
static void sends_more_than_an_int_counts(void) {
  moe_communicator c = make(MPI_COMM_WORLD);
  int64_t bytes = ((int64_t)1 << 31) + 12345;
  void *request;
  if (c.rank == 0) {
    unsigned char *out = (unsigned char *)calloc(1, (size_t)bytes);
    CHECK(out != NULL);
    out[0] = 1, out[((int64_t)1 << 30) - 1] = 2, out[(int64_t)1 << 30] = 3, out[(int64_t)1 << 31] = 4, out[bytes - 1] = 5;
    CHECK(ended(&c, c.send(c.user, out, bytes, 1, 0, &request), &request) == 0);
    free(out);
  } else if (c.rank == 1) {
    unsigned char *in = (unsigned char *)malloc((size_t)bytes);
    CHECK(in != NULL);
    CHECK(ended(&c, c.receive(c.user, in, bytes, 0, 0, &request), &request) == 0);
    CHECK(in[0] == 1 && in[((int64_t)1 << 30) - 1] == 2 && in[(int64_t)1 << 30] == 3 && in[(int64_t)1 << 31] == 4);
    CHECK(in[bytes - 1] == 5 && in[bytes - 2] == 0 && in[1] == 0);
    free(in);
  }
  moe_mpi_communicator_free(&c);
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

typedef struct share {
  const moe_communicator *c;
  int32_t tag;
  int32_t code;
} share;

static void *talks(void *given) {
  share *mine = (share *)given;
  const moe_communicator *c = mine->c;
  int32_t to = (c->rank + 1) % c->size, from = (c->rank + c->size - 1) % c->size;
  for (int64_t i = 0; i < 200 && mine->code == 0; i++) {
    int64_t out = 1000 * mine->tag + i, in = -1; /* as on every rank */
    void *sent, *received;
    mine->code = c->receive(c->user, &in, 8, from, mine->tag, &received);
    if (mine->code != 0) break;
    CHECK(c->send(c->user, &out, 8, to, mine->tag, &sent) == 0);
    mine->code = c->wait(c->user, received);
    if (mine->code == 0) mine->code = c->wait(c->user, sent);
    CHECK(mine->code != 0 || in == out);
  }
  return NULL;
}

/* Four threads exchange at once, each with its own tag. */
static void serves_several_threads(void) {
  moe_communicator c = make(MPI_COMM_WORLD);
  CHECK(c.flags == MOE_COMMUNICATOR_ANY_THREAD);
  pthread_t threads[4];
  share shares[4];
  for (int i = 0; i < 4; i++) {
    shares[i] = (share){&c, i, 0};
    CHECK(pthread_create(&threads[i], NULL, talks, &shares[i]) == 0);
  }
  for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0 && shares[i].code == 0);
  moe_mpi_communicator_free(&c);
}

static void refuses_another_thread(void) {
  moe_communicator c = make(MPI_COMM_WORLD);
  share mine = {&c, 0, 0};
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, talks, &mine) == 0 && pthread_join(thread, NULL) == 0);
  need_broken(&c, mine.code, "MPI_THREAD_FUNNELED");
  moe_mpi_communicator_free(&c);
}

/* ---- errors ------------------------------------------------------------------------------------------------ */

/* Rank 0 sends so many bytes where rank 1 expects 64.  MPICH's own error is returned by leave of MPI_COMM_WORLD. */
static void sees_a_wrong_length(int64_t sent, const char *words) {
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  moe_communicator c = make(MPI_COMM_WORLD);
  unsigned char data[200] = {0};
  void *request;
  if (c.rank == 0) CHECK(ended(&c, c.send(c.user, data, sent, 1, 0, &request), &request) == 0);
  if (c.rank == 1) need_broken(&c, ended(&c, c.receive(c.user, data, 64, 0, 0, &request), &request), words);
  moe_mpi_communicator_free(&c);
}

/* An exchange that rank 0 alone takes for empty does not take the bytes of the next one. */
static void keeps_exchanges_apart(void) {
  moe_communicator c = make(MPI_COMM_WORLD);
  int64_t out[2] = {1, 2}, in[2] = {0, 0}, none[16] = {0}, one[16] = {0}, at[16] = {0};
  void *first, *second;
  one[1 - c.rank] = 8;
  if (c.rank == 0) {
    CHECK(c.all_to_all(c.user, &out[0], none, at, &in[0], none, at, &first) == 0);
    CHECK(c.all_to_all(c.user, &out[1], one, at, &in[1], none, at, &second) == 0);
  } else {
    CHECK(c.all_to_all(c.user, &out[0], none, at, &in[0], one, at, &first) == 0);
    CHECK(c.all_to_all(c.user, &out[1], none, at, &in[1], one, at, &second) == 0);
  }
  CHECK(c.wait(c.user, second) == 0 && in[1] == (c.rank == 1 ? 2 : 0));
  if (c.rank == 1) {
    int32_t done = 1;
    CHECK(c.test(c.user, first, &done) == 0 && done == 0);
    c.abandon(c.user, first);
    need_broken(&c, 1, "abandoned");
  } else {
    CHECK(c.wait(c.user, first) == 0);
  }
  moe_mpi_communicator_free(&c);
}

static void breaks_when_one_is_abandoned(void) {
  moe_communicator c = make(MPI_COMM_WORLD);
  static unsigned char in[1 << 20];
  void *one, *other;
  int32_t next = (c.rank + 1) % c.size;
  CHECK(c.receive(c.user, in, sizeof in, next, 0, &one) == 0 && c.receive(c.user, in, 8, next, 1, &other) == 0);
  c.abandon(c.user, one);
  need_broken(&c, c.wait(c.user, other), "abandoned");
  moe_mpi_communicator_free(&c);
}

static void refuses_wrong_arguments(void) {
  static const int64_t wrong[][3] = {{-1, 0, 8}, {99, 0, 8}, {0, -1, 8}, {0, 16384, 8}, {0, 0, -8}}; /* step, tag, bytes */
  int64_t out[16] = {0}, in[16] = {0}, at[16] = {0};
  void *request;
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    moe_communicator c = make(MPI_COMM_WORLD);
    int32_t to = wrong[i][0] == 0 ? (c.rank + 1) % c.size : (int32_t)wrong[i][0];
    need_broken(&c, c.send(c.user, out, wrong[i][2], to, (int32_t)wrong[i][1], &request), "a message of");
    moe_mpi_communicator_free(&c);
  }
  moe_communicator c = make(MPI_COMM_WORLD);
  need_broken(&c, c.receive(c.user, in, 8, c.rank, 0, &request), "a message of 8 bytes with the tag 0");
  moe_mpi_communicator_free(&c);
  c = make(MPI_COMM_WORLD);
  out[c.rank] = 8;
  need_broken(&c, c.all_to_all(c.user, out, out, at, in, in, at, &request), "to itself");
  moe_mpi_communicator_free(&c);
}

static int refuses(const void *address, moe_communicator *out, moe_status status, const char *words) {
  return moe_mpi_communicator(address, out) == status && strstr(moe_mpi_last_error_message(), words) != NULL;
}

static void refuses_what_is_no_communicator(void) {
  int rank, size;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm world = MPI_COMM_WORLD, null = MPI_COMM_NULL, half, between;
  moe_communicator out = MOE_COMMUNICATOR_INIT;
  CHECK(refuses(NULL, &out, MOE_ERROR_INVALID_ARGUMENT, "address_of_MPI_Comm is NULL"));
  CHECK(refuses(&world, NULL, MOE_ERROR_INVALID_ARGUMENT, "out is NULL"));
  CHECK(refuses(&null, &out, MOE_ERROR_INVALID_ARGUMENT, "MPI_COMM_NULL"));
  CHECK(out.user == NULL && out.size == 0);
  out.struct_size = 8;
  CHECK(refuses(&world, &out, MOE_ERROR_INVALID_ARGUMENT, "struct_size"));
  if (size < 2) return;
  out.struct_size = sizeof out;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, 1 - rank % 2, 5, &between);
  CHECK(refuses(&between, &out, MOE_ERROR_INVALID_ARGUMENT, "intercommunicator"));
  MPI_Comm_free(&between), MPI_Comm_free(&half);
}

/* ---- the end of MPI, and of ranks -------------------------------------------------------------------------- */

static void outlives_mpi(void) {
  moe_communicator c = make(MPI_COMM_WORLD), out = MOE_COMMUNICATOR_INIT;
  MPI_Comm world = MPI_COMM_WORLD;
  int64_t number = 0;
  void *request;
  MPI_Finalize();
  need_broken(&c, c.send(c.user, &number, 8, 0, 0, &request), "finalized");
  CHECK(refuses(&world, &out, MOE_ERROR_BAD_STATE, "finalized"));
  moe_mpi_communicator_free(&c);
  CHECK(c.user == NULL);
}

/* Ranks that nobody sends anything to, until a signal or the death of the last one ends them. */
static void waits_for_ever(int one_dies) {
  moe_communicator c = make(MPI_COMM_WORLD);
  int64_t number = 0;
  void *request;
  need(contract(&c, 1));
  printf("waiting: %d\n", (int)getpid());
  fflush(stdout);
  if (one_dies && c.rank == c.size - 1) {
    sleep(1); /* the others wait by then, and what they have printed has arrived */
    kill(getpid(), SIGKILL);
  }
  int32_t code = ended(&c, c.receive(c.user, &number, 8, (c.rank + 1) % c.size, 7, &request), &request);
  fprintf(stderr, "the wait has ended: %s\n", c.error(c.user, code));
  exit(3);
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "";
  int wanted = argc > 2 && strcmp(argv[2], "multiple") == 0 ? MPI_THREAD_MULTIPLE : MPI_THREAD_FUNNELED, level;
  moe_communicator out = MOE_COMMUNICATOR_INIT;
  int nothing = 0;
  CHECK(refuses(&nothing, &out, MOE_ERROR_BAD_STATE, "not initialized"));
  MPI_Init_thread(&argc, &argv, wanted, &level);
  CHECK(level >= wanted);
  if (strcmp(name, "contract") == 0) keeps_the_contract();
  else if (strcmp(name, "users") == 0) leaves_the_users_alone();
  else if (strcmp(name, "large") == 0) sends_more_than_an_int_counts();
  else if (strcmp(name, "threads") == 0) serves_several_threads();
  else if (strcmp(name, "another thread") == 0) refuses_another_thread();
  else if (strcmp(name, "shorter") == 0) sees_a_wrong_length(48, "rank 0 sends 48 bytes to rank 1, which expects 64");
  else if (strcmp(name, "longer") == 0) sees_a_wrong_length(128, "MPI_Test");
  else if (strcmp(name, "apart") == 0) keeps_exchanges_apart();
  else if (strcmp(name, "abandon") == 0) breaks_when_one_is_abandoned();
  else if (strcmp(name, "arguments") == 0) refuses_wrong_arguments();
  else if (strcmp(name, "no communicator") == 0) refuses_what_is_no_communicator();
  else if (strcmp(name, "wait") == 0) waits_for_ever(0);
  else if (strcmp(name, "death") == 0) waits_for_ever(1);
  else if (strcmp(name, "finalize") == 0) {
    outlives_mpi();
    return 0;
  } else {
    fprintf(stderr, "there is no test \"%s\"\n", name);
    abort();
  }
  MPI_Finalize();
  return 0;
}
