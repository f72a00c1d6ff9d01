#define _GNU_SOURCE
#include "moei.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 2048, PATH = 2 * LINE };

/* Whole processors of `quota` microseconds in every `period`, rounded up; 0 where that is no quota. */
static int64_t whole_processors(long long quota, long long period) {
  return quota <= 0 || period <= 0 ? 0 : quota / period + (quota % period != 0);
}

/* A number and what follows it; 0 where there is none ("max" among others). */
static long long number(const char *text, const char **rest) {
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  *rest = end;
  return end == text || errno ? 0 : value;
}

/* The beginning of folder/name; 0 where there is no such file. */
static int read_text(const char *folder, const char *name, char text[128]) {
  char path[PATH + 32];
  int length = snprintf(path, sizeof path, "%s/%s", folder, name);
  if (length < 0 || (size_t)length >= sizeof path) return 0;
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  size_t count = fread(text, 1, 127, file);
  text[count] = 0;
  fclose(file);
  return 1;
}

/* Processors that one cgroup's own files allow; 0 where they set no limit. */
static int64_t quota_of(const char *folder, int version) {
  char text[128];
  const char *rest;
  if (version == 2) {
    if (!read_text(folder, "cpu.max", text)) return 0;
    long long quota = number(text, &rest);
    return whole_processors(quota, number(rest, &rest));
  }
  if (!read_text(folder, "cpu.cfs_quota_us", text)) return 0;
  long long quota = number(text, &rest);
  if (!read_text(folder, "cpu.cfs_period_us", text)) return 0;
  return whole_processors(quota, number(text, &rest));
}

/* Is `word` one of the list, whose words are parted by commas? */
static int lists(const char *list, const char *word) {
  size_t length = strlen(word);
  for (;;) {
    if (strncmp(list, word, length) == 0 && (list[length] == ',' || list[length] == 0)) return 1;
    if (!(list = strchr(list, ','))) return 0;
    list++;
  }
}

/* A line without its end; what is beyond LINE is passed over. 0 at the end of the file. */
static int read_line(FILE *file, char line[LINE]) {
  if (!fgets(line, LINE, file)) return 0;
  size_t length = strlen(line);
  if (length > 0 && line[length - 1] == '\n') {
    line[length - 1] = 0;
  } else {
    for (int c = getc(file); c != '\n' && c != EOF;) c = getc(file);
  }
  return 1;
}

/* The process's own group: of version 2, or of version 1's hierarchy with the processors.  "id:controllers:path" */
static int own_group(int version, char path[LINE]) {
  FILE *file = fopen("/proc/self/cgroup", "re");
  char line[LINE];
  int found = 0;
  while (file && !found && read_line(file, line)) {
    char *controllers = strchr(line, ':');
    char *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group || group[1] != '/') continue;
    *group = 0;
    found = version == 2 ? controllers[1] == 0 : lists(controllers + 1, "cpu");
    if (found) strcpy(path, group + 1);
  }
  if (file) fclose(file);
  return found;
}

/* mountinfo writes a blank as \040, and so on. */
static void unescape(char *text) {
  char *to = text;
  for (const char *from = text; *from;) {
    if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' && from[3] >= '0' &&
        from[3] <= '7') {
      *to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
      from += 4;
    } else {
      *to++ = *from++;
    }
  }
  *to = 0;
}

/* The fields of a line of mountinfo that say which cgroup is mounted where; 0 where it is none of this version.
 * "id parent device root mountpoint options... - type source options" */
static int mounted(char *line, int version, char **root, char **mountpoint) {
  char *separator = strstr(line, " - ");
  if (!separator) return 0;
  char *save, *type = strtok_r(separator + 3, " ", &save);
  strtok_r(NULL, " ", &save);
  const char *options = strtok_r(NULL, " ", &save);
  if (!type || !options || strcmp(type, version == 2 ? "cgroup2" : "cgroup") != 0) return 0;
  if (version == 1 && !lists(options, "cpu")) return 0;
  *separator = 0;
  char *field = strtok_r(line, " ", &save);
  for (int i = 0; i < 3 && field; i++) field = strtok_r(NULL, " ", &save);
  *root = field;
  *mountpoint = strtok_r(NULL, " ", &save);
  if (!*root || !*mountpoint) return 0;
  unescape(*root);
  unescape(*mountpoint);
  return 1;
}

/* The least of the quotas of `group` under a mount and of all groups it lies in; 0 where there are none. */
static int64_t least_quota(const char *root, const char *mountpoint, const char *group, int version) {
  char folder[PATH];
  size_t length = strcmp(root, "/") == 0 ? 0 : strlen(root), base = strlen(mountpoint);
  /* A container may see a part of the tree: what is outside of it cannot be read. */
  int inside = strncmp(group, root, length) == 0 && (group[length] == '/' || group[length] == 0);
  int written = snprintf(folder, sizeof folder, "%s%s", mountpoint, inside ? group + length : "");
  if (written < 0 || (size_t)written >= sizeof folder) return 0;
  int64_t least = 0;
  for (;;) {
    int64_t found = quota_of(folder, version);
    if (found > 0 && (least == 0 || found < least)) least = found;
    char *last = strrchr(folder, '/');
    if (!last || (size_t)(last - folder) < base) return least;
    *last = 0;
  }
}

static int64_t cgroup_quota(int version) {
  char group[LINE], line[LINE], *root, *mountpoint;
  if (!own_group(version, group)) return 0;
  FILE *file = fopen("/proc/self/mountinfo", "re");
  int64_t least = 0;
  while (file && read_line(file, line)) {
    if (!mounted(line, version, &root, &mountpoint)) continue;
    int64_t found = least_quota(root, mountpoint, group, version);
    if (found > 0 && (least == 0 || found < least)) least = found;
  }
  if (file) fclose(file);
  return least;
}

int32_t moei_available_processors(void) {
  int saved = errno;
  cpu_set_t set[8]; /* 8192 processors; the system refuses a mask smaller than its own */
  int64_t count = 1;
  if (sched_getaffinity(0, sizeof set, set) == 0) count = CPU_COUNT_S(sizeof set, set);
  for (int version = 1; version <= 2; version++) {
    int64_t quota = cgroup_quota(version);
    if (quota > 0 && quota < count) count = quota;
  }
  errno = saved;
  return count < 1 ? 1 : (int32_t)count;
}
