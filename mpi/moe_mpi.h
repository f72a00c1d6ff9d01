/* moe_mpi.h: a moe_communicator over MPI.  libmoe_mpi.so is a library of its own: libmoe.so knows no MPI, and this one is built with
 * the mpicc of the MPI that a program uses (make mpi).
 *
 *     int level;
 *     MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
 *     MPI_Comm world = MPI_COMM_WORLD;
 *     moe_communicator communicator = MOE_COMMUNICATOR_INIT;
 *     if (moe_mpi_communicator(&world, &communicator) != MOE_OK) puts(moe_mpi_last_error_message());
 *     ...
 *     moe_mpi_communicator_free(&communicator);
 *     MPI_Finalize();
 *
 * MPI is the caller's: it is neither initialised nor finalised here.  Of its levels of threads:
 *   MPI_THREAD_SINGLE, MPI_THREAD_FUNNELED   the library is called in the thread that initialised MPI; elsewhere is an error;
 *   MPI_THREAD_SERIALIZED                    in any thread, while no other one uses MPI;
 *   MPI_THREAD_MULTIPLE                      in any thread: the communicator has MOE_COMMUNICATOR_ANY_THREAD.
 */
#ifndef MOE_MPI_H
#define MOE_MPI_H

#include "moe_communicator.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A communicator over the ranks of one of MPI's, which is duplicated: messages do not mix with those of its user, and
 *  errors of MPI come back as codes (MPI_ERRORS_RETURN).  All ranks call it.  Of an error in a message under way MPICH asks the
 *  handler of MPI_COMM_WORLD, which ends all ranks if the program does not set MPI_ERRORS_RETURN there.
 *  @param address_of_MPI_Comm  [in]      an MPI_Comm, an intracommunicator; what mpi4py's MPI._addressof(comm) returns
 *  @param out                  [in, out] struct_size in, the rest out; free it with moe_mpi_communicator_free
 *  @return MOE_OK, INVALID_ARGUMENT, OUT_OF_MEMORY; BAD_STATE: MPI is not initialised, or is finalised; COMMUNICATION: MPI cannot
 *          duplicate it. */
MOE_API MOE_CHECK moe_status moe_mpi_communicator(const void *address_of_MPI_Comm, moe_communicator *out);

/** Frees what moe_mpi_communicator made, and fills the struct with 0; NULL, and one that is filled with 0, are ignored.  All ranks
 *  call it, when nothing uses the communicator any more, in a thread that may use MPI.  After MPI_Finalize it frees memory alone. */
MOE_API void moe_mpi_communicator_free(moe_communicator *communicator);

/** What went wrong in this thread's latest failed moe_mpi_communicator; empty before.  The memory belongs to the thread. */
MOE_API const char *moe_mpi_last_error_message(void);

#ifdef __cplusplus
}
#endif

#endif
