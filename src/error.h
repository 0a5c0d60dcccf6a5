/* Filling um_error, and the words behind the codes. */
#ifndef UM_ERROR_H
#define UM_ERROR_H

#include <bio_uring/base.h>

/* Stores code and message (printf-like) where error is not NULL; returns code. */
int um__fail(um_error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
