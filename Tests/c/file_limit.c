/* A process may not write files beyond a limit: the system would end it by a signal, the library answers with a status, and
 * the old file is there. */
#define _POSIX_C_SOURCE 200809L
#include <moe.h>

#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

enum { COUNT = 1000 };

static off_t size_of(const char *path) {
  struct stat status;
  return stat(path, &status) == 0 ? status.st_size : -1;
}

int main(void) {
  char folder[] = "/tmp/libmoe-XXXXXX";
  CHECK(mkdtemp(folder) != NULL && chdir(folder) == 0);
  moe_context *context = NULL;
  CHECK(moe_context_create(NULL, &context) == MOE_OK);
  static float values[COUNT];
  moe_stored_tensor tensor = MOE_STORED_TENSOR_INIT;
  tensor.name = "x";
  tensor.rank = 1;
  tensor.shape[0] = 10;
  tensor.data = values;
  CHECK(moe_checkpoint_write(context, "file", &tensor, 1) == MOE_OK);
  const off_t before = size_of("file");

  struct rlimit limit = { 1024, RLIM_INFINITY };
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  tensor.shape[0] = COUNT;
  CHECK(moe_checkpoint_write(context, "file", &tensor, 1) == MOE_ERROR_IO);
  CHECK(moe_checkpoint_write_sharded(context, "m.safetensors.index.json", &tensor, 1, 8) == MOE_ERROR_IO);
  moe_mapping *mapping = NULL;
  CHECK(moe_mapping_create(context, "mapping", 4096, &mapping) == MOE_ERROR_IO);
  CHECK(size_of("file") == before && size_of("mapping") == -1);
  CHECK(size_of("m.safetensors.index.json") == -1);

  CHECK(unlink("file") == 0 && chdir("/") == 0);
  CHECK(rmdir(folder) == 0); /* nothing is left over */
  moe_context_free(context);
  return 0;
}
