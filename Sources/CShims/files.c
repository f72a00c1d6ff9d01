#define _GNU_SOURCE
#include "moei.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Each function returns 0 or an errno, and leaves errno itself as the host had it. */
static int32_t result(int saved, int failed) {
  int32_t error = failed ? errno : 0;
  errno = saved;
  return error;
}

int32_t moei_file_map(const char *path, const void **memory, int64_t *size) {
  int saved = errno;
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer does not hold us up */
  if (file < 0) return result(saved, 1);
  struct stat status;
  int failed = fstat(file, &status) != 0;
  if (!failed && !S_ISREG(status.st_mode)) {
    errno = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    failed = 1;
  }
  *memory = NULL;
  *size = failed ? 0 : status.st_size;
  if (!failed && *size > 0) {
    void *mapped = mmap(NULL, (size_t)*size, PROT_READ, MAP_PRIVATE, file, 0);
    failed = mapped == MAP_FAILED;
    if (!failed) *memory = mapped;
  }
  int32_t error = failed ? errno : 0;
  close(file);
  errno = saved;
  return error;
}

void moei_file_unmap(const void *memory, int64_t size) {
  int saved = errno;
  munmap((void *)memory, (size_t)size);
  errno = saved;
}

int32_t moei_file_create(const char *path, char *temporary, size_t capacity, int32_t *file) {
  int saved = errno;
  for (int attempt = 0; attempt < 100; attempt++) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(temporary, capacity, "%s.%ld-%lld%09ld.tmp", path, (long)getpid(), (long long)now.tv_sec, now.tv_nsec);
    if (length < 0 || (size_t)length >= capacity) {
      errno = ENAMETOOLONG;
      return result(saved, 1);
    }
    *file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (*file >= 0 || errno != EEXIST) break; /* EEXIST: another thread at the same nanosecond */
  }
  return result(saved, *file < 0);
}

int32_t moei_file_write(int32_t file, const void *data, int64_t size) {
  int saved = errno;
  const char *from = data;
  while (size > 0) {
    ssize_t written = write(file, from, (size_t)size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return result(saved, 1);
    from += written;
    size -= written;
  }
  return result(saved, 0);
}

int32_t moei_file_finish(int32_t file) {
  int saved = errno;
  int32_t error = fsync(file) != 0 ? errno : 0;
  if (close(file) != 0 && error == 0) error = errno;
  errno = saved;
  return error;
}

int32_t moei_file_exists(const char *path) {
  int saved = errno;
  int32_t found = access(path, F_OK) == 0;
  errno = saved;
  return found;
}

void moei_file_remove(const char *path) {
  int saved = errno;
  unlink(path);
  errno = saved;
}

int32_t moei_file_rename(const char *from, const char *to) {
  int saved = errno;
  if (rename(from, to) != 0) return result(saved, 1);
  char folder[PATH_MAX];
  const char *slash = strrchr(to, '/');
  size_t length = slash == NULL ? 0 : slash == to ? 1 : (size_t)(slash - to);
  memcpy(folder, length == 0 ? "." : to, length == 0 ? 1 : length);
  folder[length == 0 ? 1 : length] = 0;
  int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return result(saved, 1);
  /* Some file systems have no fsync for folders, and say EINVAL. */
  int32_t error = fsync(file) != 0 && errno != EINVAL ? errno : 0;
  close(file);
  errno = saved;
  return error;
}

const char *moei_error_name(int32_t error, char *text, size_t capacity) { return strerror_r(error, text, capacity); }
