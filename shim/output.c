#include "output.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"

enum { MAX_OUTPUTS = 10, PATH_SIZE = 4096 };

struct output {
    int fd;
    char path[PATH_SIZE];
};

static struct output outputs[MAX_OUTPUTS];
/* Counted only once its file is there and is ours, so that a handler that comes at any time removes what it may. */
static volatile sig_atomic_t output_count;

static void discard_outputs(void) {
    for (int i = 0; i < output_count; i++) unlink(outputs[i].path);
    output_count = 0;
}

void end_without_outputs(void) {
    discard_outputs();
    _exit(1);
}

static void on_end(int number) {
    (void)number;
    end_without_outputs();
}

int create_output(const char *path) {
    if (output_count == 0) {
        if (atexit(discard_outputs) != 0) fail("cannot promise to clean up");
        signal(SIGTERM, on_end);
    }
    if (output_count == MAX_OUTPUTS || strlen(path) >= PATH_SIZE) fail("cannot make %s: too many files, or too long a name", path);
    struct output *output = &outputs[output_count];
    strcpy(output->path, path);
    // No signal between the making and the counting.
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    output->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (output->fd >= 0) output_count = output_count + 1;
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (output->fd < 0) fail_errno("cannot make %s", path);
    return output->fd;
}

void keep_outputs(void) {
    for (int i = 0; i < output_count; i++)
        if (fsync(outputs[i].fd) < 0) fail_errno("cannot flush %s", outputs[i].path);
    output_count = 0;
}
