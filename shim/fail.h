#pragma once

/* Ends the program before it has become a shim: one line `error WHAT: WHY` on standard output, where the daemon reads, and code 1. */
_Noreturn void fail(const char *what, ...) __attribute__((format(printf, 1, 2)));
/* The same with the text of errno. */
_Noreturn void fail_errno(const char *what, ...) __attribute__((format(printf, 1, 2)));
