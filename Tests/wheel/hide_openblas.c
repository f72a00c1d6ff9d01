/* Preloaded, it makes the system one without OpenBLAS: whoever asks for it is answered as if there were none. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

void *dlopen(const char *name, int flags) {
  void *(*real)(const char *, int);
  char absent[256];
  *(void **)&real = dlsym(RTLD_NEXT, "dlopen");
  if (!name || strncmp(name, "libopenblas", 11) != 0) return real(name, flags);
  snprintf(absent, sizeof absent, "%s.not-installed", name);
  return real(absent, flags);
}
