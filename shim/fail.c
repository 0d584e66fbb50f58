#include "fail.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fail(const char *what, ...) {
    va_list args;
    va_start(args, what);
    printf("error ");
    vprintf(what, args);
    printf("\n");
    fflush(stdout);
    exit(1);
}

void fail_errno(const char *what, ...) {
    int error = errno;
    va_list args;
    va_start(args, what);
    printf("error ");
    vprintf(what, args);
    printf(": %s\n", strerror(error));
    fflush(stdout);
    exit(1);
}
