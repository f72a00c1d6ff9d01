#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Of linux/fs.h, which not every system has beside its C library's headers. */
enum { EXCHANGE = 2, NO_REPLACE = 1 };

static int rename_with(const moei_output *output, unsigned flags) {
  return (int)syscall(SYS_renameat2, output->folder, output->temporary, output->folder, output->name, flags);
}

/* Mode and owner of another file, as far as the system lets us. */
static void take_after(int file, const struct stat *other) {
  mode_t mode = other->st_mode & 07777;
  struct stat own;
  if (fchown(file, other->st_uid, other->st_gid) != 0 && fchown(file, (uid_t)-1, other->st_gid) != 0) errno = 0;
  if (fstat(file, &own) != 0 || own.st_uid != other->st_uid) mode &= 0777;
  /* Its group's rights are not for another group. */
  if (own.st_gid != other->st_gid) mode = (mode & 0707) | (mode & (mode & 07) << 3);
  /* File systems without modes refuse it; there all files are alike. */
  if (fchmod(file, mode) != 0) errno = 0;
}

/* Some of the name, so that it can be told whose it is, and no more, so that any name has room. */
static void temporary_name(moei_output *output) {
  size_t kept = strnlen(output->name, 60);
  while (kept > 0 && (output->name[kept] & 0xC0) == 0x80) kept--; /* not within a character of UTF-8 */
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  snprintf(output->temporary, sizeof output->temporary, "%.*s.%ld-%lld%09ld.tmp", (int)kept, output->name, (long)getpid(),
           (long long)now.tv_sec, now.tv_nsec);
}

static int32_t open_beside(const char *path, const char *like, moei_output *output) {
  struct stat status, model;
  int32_t error = stat(path, &status) != 0 ? errno : moei_kind(&status);
  if (error != 0 && error != ENOENT) return error;
  char place[MOEI_PATH_SIZE];
  error = moei_follow(path, place);
  if (error != 0) return error;
  const char *name;
  output->folder = moei_folder(place, &name);
  if (output->folder < 0) return errno;
  size_t length = strlen(name);
  if (length == 0) return place[0] == 0 ? ENOENT : EISDIR;
  if (length >= MOEI_NAME_SIZE) return ENAMETOOLONG;
  memcpy(output->name, name, length + 1);
  output->replaces = fstatat(output->folder, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
  if (output->replaces) {
    error = moei_kind(&status);
    if (error != 0) return error;
  } else if (errno != ENOENT) {
    return errno;
  }
  int has_model = output->replaces;
  if (has_model) model = status;
  else if (like != NULL) has_model = stat(like, &model) == 0 && S_ISREG(model.st_mode);
  for (int attempt = 0; attempt < 100 && output->file < 0; attempt++) {
    temporary_name(output);
    /* Nobody reads it before it has the mode it is to have. */
    output->file = openat(output->folder, output->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, has_model ? 0600 : 0666);
    if (output->file < 0 && errno != EEXIST) return errno; /* EEXIST: another thread at the same nanosecond */
  }
  if (output->file < 0) return EEXIST;
  output->waits = 1;
  if (has_model) take_after(output->file, &model);
  return 0;
}

int32_t moei_output_open(const char *path, const char *like, moei_output *output) {
  int saved = errno;
  *output = (moei_output){ .folder = -1, .file = -1 };
  int32_t error = open_beside(path, like, output);
  if (error != 0) moei_output_close(output);
  errno = saved;
  return error;
}

int32_t moei_output_write(moei_output *output, const void *data, int64_t size) {
  int saved = errno;
  int64_t end;
  if (__builtin_add_overflow(output->size, size, &end)) return EFBIG;
  int32_t error = moei_room(end);
  if (error != 0) return error;
  output->size = end;
  const char *from = data;
  while (size > 0) {
    ssize_t written = write(output->file, from, (size_t)size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return moei_result(saved, 1);
    from += written;
    size -= written;
  }
  return moei_result(saved, 0);
}

int32_t moei_output_sync(moei_output *output) {
  int saved = errno;
  return moei_result(saved, fsync(output->file) != 0);
}

/* The old file gets the temporary name until the folder is synced, so that it can be brought back. */
static int32_t place(moei_output *output) {
  int exchanged = output->replaces && rename_with(output, EXCHANGE) == 0;
  int is_new = !output->replaces && rename_with(output, NO_REPLACE) == 0;
  /* File systems that know neither; or the file came or went in the meantime. */
  if (!exchanged && !is_new && renameat(output->folder, output->temporary, output->folder, output->name) != 0) return errno;
  output->waits = exchanged;
  int32_t error = moei_sync_folder(output->folder, output->file);
  if (error == 0) return 0;
  if (exchanged && rename_with(output, EXCHANGE) == 0) return error;
  if (is_new && unlinkat(output->folder, output->name, 0) == 0) return error;
  return MOEI_FILE_NOT_LASTING;
}

int32_t moei_output_place(moei_output *output) {
  int saved = errno;
  int32_t error = place(output);
  errno = saved;
  return error;
}

void moei_output_close(moei_output *output) {
  int saved = errno;
  if (output->waits) unlinkat(output->folder, output->temporary, 0);
  if (output->file >= 0) close(output->file);
  if (output->folder >= 0) close(output->folder);
  errno = saved;
}
