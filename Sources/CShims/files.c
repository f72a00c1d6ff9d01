#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

int32_t moei_result(int saved, int failed) {
  int32_t error = failed ? errno : 0;
  errno = saved;
  return error;
}

int32_t moei_kind(const struct stat *status) {
  return S_ISREG(status->st_mode) ? 0 : S_ISDIR(status->st_mode) ? EISDIR : MOEI_FILE_SPECIAL;
}

int32_t moei_follow(const char *path, char *place) {
  size_t length = strlen(path);
  if (length >= MOEI_PATH_SIZE) return ENAMETOOLONG;
  memcpy(place, path, length + 1);
  for (int links = 0; links < 40; links++) {
    char target[MOEI_PATH_SIZE];
    ssize_t got = readlink(place, target, sizeof target);
    if (got < 0) return errno == EINVAL || errno == ENOENT ? 0 : errno; /* it is no link, or it is not there */
    const char *slash = strrchr(place, '/');
    size_t folder = target[0] == '/' || slash == NULL ? 0 : (size_t)(slash - place) + 1;
    if (folder + (size_t)got >= MOEI_PATH_SIZE) return ENAMETOOLONG;
    memcpy(place + folder, target, (size_t)got);
    place[folder + (size_t)got] = 0;
  }
  return ELOOP;
}

int32_t moei_room(int64_t end) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 0;
  return (uint64_t)end > limit.rlim_cur ? EFBIG : 0;
}

int moei_folder(const char *path, const char **name) {
  char folder[MOEI_PATH_SIZE];
  const char *slash = strrchr(path, '/');
  *name = slash == NULL ? path : slash + 1;
  size_t length = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
  if (length >= MOEI_PATH_SIZE) {
    errno = ENAMETOOLONG;
    return -1;
  }
  memcpy(folder, length == 0 ? "." : path, length == 0 ? 1 : length);
  folder[length == 0 ? 1 : length] = 0;
  int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0 && errno == EACCES) file = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
  return file;
}

int32_t moei_sync_folder(int folder, int file) {
  if (fsync(folder) == 0 || errno == EINVAL) return 0; /* EINVAL: this file system has no fsync for folders */
  if (errno != EBADF) return errno;
  return syncfs(file) != 0 ? errno : 0; /* a folder that may not be read cannot be synced by itself */
}

/* A device is not opened even to look at it: with some of them that alone does something. */
static int32_t open_regular(const char *path, int flags, int32_t *file, struct stat *status) {
  if (stat(path, status) != 0) return errno;
  int32_t error = moei_kind(status);
  if (error != 0) return error;
  *file = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a pipe without a writer does not hold us up */
  if (*file < 0) return errno;
  error = fstat(*file, status) != 0 ? errno : moei_kind(status);
  if (error != 0) close(*file);
  return error;
}

static moei_stamp stamp_of(const struct stat *status) {
  return (moei_stamp){ status->st_size, status->st_mtim.tv_sec, status->st_mtim.tv_nsec };
}

int32_t moei_file_open(const char *path, int32_t *file, moei_stamp *stamp) {
  int saved = errno;
  struct stat status;
  int32_t error = open_regular(path, O_RDONLY, file, &status);
  if (error == 0) *stamp = stamp_of(&status);
  errno = saved;
  return error;
}

int32_t moei_file_stamp(int32_t file, moei_stamp *stamp) {
  int saved = errno;
  struct stat status;
  if (fstat(file, &status) != 0) return moei_result(saved, 1);
  *stamp = stamp_of(&status);
  return moei_result(saved, 0);
}

int32_t moei_file_check(int32_t file, moei_stamp stamp) {
  moei_stamp now;
  int32_t error = moei_file_stamp(file, &now);
  if (error != 0) return error;
  if (now.size < stamp.size) return MOEI_FILE_ENDED;
  return now.size != stamp.size || now.seconds != stamp.seconds || now.nanoseconds != stamp.nanoseconds ? MOEI_FILE_CHANGED : 0;
}

int32_t moei_file_map(int32_t file, int64_t size, const void **memory) {
  int saved = errno;
  *memory = NULL;
  if (size == 0) return 0;
  void *mapped = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, file, 0);
  if (mapped == MAP_FAILED) return moei_result(saved, 1);
  *memory = mapped;
  return moei_result(saved, 0);
}

void moei_file_unmap(const void *memory, int64_t size) {
  int saved = errno;
  if (size > 0) munmap((void *)memory, (size_t)size);
  errno = saved;
}

int32_t moei_file_duplicate(int32_t file, int32_t *copy) {
  int saved = errno;
  *copy = fcntl(file, F_DUPFD_CLOEXEC, 0);
  return moei_result(saved, *copy < 0);
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
    if (got < 0) return moei_result(saved, 1);
    if (got == 0) return MOEI_FILE_ENDED;
    to += got;
    offset += got;
    size -= got;
  }
  return moei_result(saved, 0);
}

void moei_file_name(int32_t file, char *path, size_t capacity) {
  int saved = errno;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, capacity - 1);
  path[length < 0 ? 0 : length] = 0;
  errno = saved;
}

/* All blocks of a file's first `size` bytes. A disk that is too full is noticed before it has been filled. */
static int32_t allocate_blocks(int file, int64_t size, const struct stat *status) {
  struct statvfs disk;
  uint64_t own = (uint64_t)status->st_blocks * 512;
  if ((uint64_t)size > own && fstatvfs(file, &disk) == 0 && disk.f_blocks > 0) {
    unsigned __int128 left = (unsigned __int128)disk.f_bfree * disk.f_frsize;
    if ((uint64_t)size - own > left) return ENOSPC;
  }
  int32_t error = moei_room(size);
  if (error != 0) return error;
  do error = posix_fallocate(file, 0, (off_t)size);
  while (error == EINTR);
  return error;
}

static int32_t share(const char *path, int64_t *size, void **memory, int32_t *file) {
  char place[MOEI_PATH_SIZE];
  int32_t error = moei_follow(path, place); /* a link to what is not there yet: that is made */
  if (error != 0) return error;
  const char *name;
  int folder = moei_folder(place, &name);
  if (folder < 0) return errno;
  struct stat status;
  int made = 1;
  *file = openat(folder, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (*file >= 0) {
    error = fstat(*file, &status) != 0 ? errno : 0;
  } else {
    made = 0;
    error = errno == EEXIST ? open_regular(place, O_RDWR, file, &status) : errno;
    if (error != 0) {
      close(folder);
      return error;
    }
  }
  int empty = error == 0 && status.st_size == 0;
  if (error == 0 && !empty && status.st_size != *size) {
    *size = status.st_size;
    error = MOEI_FILE_OTHER_SIZE;
  }
  /* With all its blocks: a full disk is an error here, and a fault later, while the memory is written to. */
  if (error == 0 && (empty || status.st_blocks * 512 < *size)) error = allocate_blocks(*file, *size, &status);
  if (error == 0 && made) error = moei_sync_folder(folder, *file);
  if (error == 0) {
    void *mapped = mmap(NULL, (size_t)*size, PROT_READ | PROT_WRITE, MAP_SHARED, *file, 0);
    if (mapped == MAP_FAILED) error = errno;
    else *memory = mapped;
  }
  if (error != 0) {
    if (made) unlinkat(folder, name, 0);
    else if (empty && ftruncate(*file, 0) != 0) error = errno;
    close(*file);
  }
  close(folder);
  return error;
}

int32_t moei_file_share(const char *path, int64_t *size, void **memory, int32_t *file) {
  int saved = errno;
  int32_t error = share(path, size, memory, file);
  errno = saved;
  return error;
}

int32_t moei_file_flush(void *memory, int64_t size, int32_t file) {
  int saved = errno;
  struct stat status;
  if (fstat(file, &status) != 0) return moei_result(saved, 1);
  if (status.st_size < size) return MOEI_FILE_ENDED;
  return moei_result(saved, msync(memory, (size_t)size, MS_SYNC) != 0 || fsync(file) != 0);
}

int32_t moei_file_exists(const char *path) {
  int saved = errno;
  struct stat status;
  int32_t found = lstat(path, &status) == 0;
  errno = saved;
  return found;
}

int32_t moei_file_remove(const char *path) {
  int saved = errno;
  int32_t error = unlink(path) == 0 || errno == ENOENT ? 0 : errno;
  errno = saved;
  return error;
}

const char *moei_error_name(int32_t error, char *text, size_t capacity) {
  switch (error) {
  case MOEI_FILE_ENDED: return "it has been cut short since it was opened";
  case MOEI_FILE_CHANGED: return "it has been changed since it was opened, open it again";
  case MOEI_FILE_SPECIAL: return "it is a device, a pipe or a socket, and only files are read or replaced; name a file";
  case MOEI_FILE_NOT_LASTING:
    return "the file has been replaced, but its folder could not be synced: after a loss of power it may be the old one";
  case EISDIR: return "Is a directory; name a file in it";
  case EMFILE: return "Too many open files; close some, or raise the limit (ulimit -n)";
  default: return strerror_r(error, text, capacity);
  }
}
