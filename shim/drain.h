#pragma once
#include "plan.h"

/* A log file as it is written: one writer, bounded on disk, never a reason for a guest to wait on anyone but the disk. */
struct log_file {
    struct log_plan plan;
    int fd;
    long long bytes;
    int is_full;
    char moved[4096]; /* its path, once it has been moved */
};

void open_log(struct log_file *log, const struct log_plan *plan);
/*
 * Goes on in the file PATH, whatever was in it kept unless the log is capped. -1 with errno when it cannot be opened: then all is as it
 * was.
 */
int move_log(struct log_file *log, const char *path);
/* What cannot be written (the disk is full, the cap is reached) is dropped. */
void append_to_log(struct log_file *log, const char *data, size_t length);
/* A line of the shim's own. */
void note_in_log(struct log_file *log, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Moves what is there, at most one buffer full. 1: there may be more; 0: nothing now; -1: the other side is closed. */
int drain(int source, struct log_file *log);
