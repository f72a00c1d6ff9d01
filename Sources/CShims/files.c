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

int32_t moei_file_map(const char *path, const void **memory, int64_t *size, int32_t *descriptor) {
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
  *descriptor = file;
  int32_t error = failed ? errno : 0;
  if (failed) close(file);
  errno = saved;
  return error;
}

void moei_file_unmap(const void *memory, int64_t size, int32_t file) {
  int saved = errno;
  if (size > 0) munmap((void *)memory, (size_t)size);
  close(file);
  errno = saved;
}

int32_t moei_file_duplicate(int32_t file, int32_t *copy) {
  int saved = errno;
  *copy = fcntl(file, F_DUPFD_CLOEXEC, 0);
  return result(saved, *copy < 0);
}

void moei_file_close(int32_t file) {
  int saved = errno;
  close(file);
  errno = saved;
}

int32_t moei_file_read(int32_t file, void *memory, int64_t size, int64_t offset) {
  int saved = errno;
  char *to = memory;
  while (size > 0) {
    ssize_t got = pread(file, to, (size_t)size, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return result(saved, 1);
    if (got == 0) return MOEI_FILE_ENDED;
    to += got;
    offset += got;
    size -= got;
  }
  return result(saved, 0);
}

void moei_file_name(int32_t file, char *path, size_t capacity) {
  int saved = errno;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, capacity - 1);
  path[length < 0 ? 0 : length] = 0;
  errno = saved;
}

/* What makes a new name in a folder last. */
static int32_t sync_folder(const char *path) {
  char folder[PATH_MAX];
  const char *slash = strrchr(path, '/');
  size_t length = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
  memcpy(folder, length == 0 ? "." : path, length == 0 ? 1 : length);
  folder[length == 0 ? 1 : length] = 0;
  int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return errno;
  /* Some file systems have no fsync for folders, and say EINVAL. */
  int32_t error = fsync(file) != 0 && errno != EINVAL ? errno : 0;
  close(file);
  return error;
}

int32_t moei_file_share(const char *path, int64_t *size, void **memory, int32_t *descriptor) {
  int saved = errno;
  int made = 1;
  int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file < 0 && errno == EEXIST) {
    made = 0;
    file = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
  }
  if (file < 0) return result(saved, 1);
  struct stat status;
  int32_t error = fstat(file, &status) != 0 ? errno : S_ISREG(status.st_mode) ? 0 : EINVAL;
  if (error == 0 && status.st_size == 0) {
    /* With all its blocks: a full disk is an error here, and a fault later, while the memory is written to. */
    error = posix_fallocate(file, 0, (off_t)*size);
    if (error == 0 && made) error = sync_folder(path);
  } else if (error == 0 && status.st_size != *size) {
    *size = status.st_size;
    error = MOEI_FILE_OTHER_SIZE;
  }
  if (error == 0) {
    void *mapped = mmap(NULL, (size_t)*size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) error = errno;
    else *memory = mapped;
  }
  if (error != 0) {
    close(file);
    if (made) unlink(path);
  }
  *descriptor = file;
  errno = saved;
  return error;
}

int32_t moei_file_flush(void *memory, int64_t size, int32_t file) {
  int saved = errno;
  return result(saved, msync(memory, (size_t)size, MS_SYNC) != 0 || fsync(file) != 0);
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
  int32_t error = sync_folder(to);
  errno = saved;
  return error;
}

const char *moei_error_name(int32_t error, char *text, size_t capacity) { return strerror_r(error, text, capacity); }
