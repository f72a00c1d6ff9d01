/* contract.h: what every moe_communicator has to do, whatever moves the bytes. */
#ifndef CONTRACT_H
#define CONTRACT_H

#include <moe_communicator.h>

#ifdef __cplusplus
extern "C" {
#endif

/* All ranks call it.  NULL, or what this rank found wrong; static memory of this thread.  `large` is a number of bytes that
 * the largest message has. */
const char *contract(const moe_communicator *communicator, int64_t large);

/* The same while another communicator of the same ranks has an exchange under way in each step. */
const char *contract_beside(const moe_communicator *communicator, const moe_communicator *other);

#ifdef __cplusplus
}
#endif

#endif
