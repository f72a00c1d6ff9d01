#include "folders.h"

#include <errno.h>
#include <sys/stat.h>

int32_t moei_folder_make(const char *path) {
  int saved = errno;
  struct stat status;
  int32_t error = mkdir(path, 0777) == 0 ? 0 : errno;
  if (error == EEXIST) error = stat(path, &status) == 0 && S_ISDIR(status.st_mode) ? 0 : ENOTDIR;
  errno = saved;
  return error;
}
