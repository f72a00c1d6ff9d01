/* Folders, apart from moei.h, which the kernels are compiled with. */
#ifndef MOEI_FOLDERS_H
#define MOEI_FOLDERS_H

#include <stdint.h>

/* Make a folder where there is none: 0 or errno. */
int32_t moei_folder_make(const char *path);

#endif
