/* What files.c and output.c share. Those that return an int32_t: 0, an errno, or one of moei.h's own errors. */
#ifndef MOEI_FILES_H
#define MOEI_FILES_H

#include "moei.h"

#include <sys/stat.h>

/* 0 or errno; errno itself becomes what the host had. */
int32_t moei_result(int saved, int failed);
/* 0 for a regular file. */
int32_t moei_kind(const struct stat *status);
/* Where links at the end of a path lead, whether there is something or not.  place: [MOEI_PATH_SIZE] */
int32_t moei_follow(const char *path, char *place);
/* Whether a file may be as long: written beyond its limit (RLIMIT_FSIZE), the system would end the process by a signal. */
int32_t moei_room(int64_t end);
/* The folder that a path is in, open, or -1 and errno; and the rest of the path. */
int moei_folder(const char *path, const char **name);
/* What makes names in a folder last.  file: one of the same file system */
int32_t moei_sync_folder(int folder, int file);

#endif
