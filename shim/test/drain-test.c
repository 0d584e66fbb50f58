/* Logs stay within their limits, whatever is written and in whatever pieces. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../drain.h"

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

static long long size_of(const char *path) {
    struct stat facts;
    return stat(path, &facts) < 0 ? -1 : facts.st_size;
}

static struct log_file fresh(const char *path, int is_capped, long long max_bytes) {
    struct log_file log;
    unlink(path);
    open_log(&log, &(struct log_plan){"log", path, is_capped, max_bytes});
    return log;
}

int main(void) {
    char dir[] = "/tmp/drain-XXXXXX", path[64], older[64];
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(path, sizeof path, "%s/log", dir);
    snprintf(older, sizeof older, "%s/log.1", dir);

    // A log that cannot be rotated is filled up and no more; whoever writes is never held.
    char blocker[128];
    snprintf(blocker, sizeof blocker, "%s/stands-in-the-way", older);
    alarm(10);
    struct log_file stuck = fresh(path, 0, 10);
    CHECK(mkdir(older, 0700) == 0 && mkdir(blocker, 0700) == 0);
    append_to_log(&stuck, "0123456", 7);
    append_to_log(&stuck, "789abcd", 7);
    CHECK(size_of(path) == 10);
    CHECK(rmdir(blocker) == 0 && rmdir(older) == 0);
    append_to_log(&stuck, "efgh\n", 5);
    CHECK(size_of(path) == 5 && size_of(older) == 10);
    close(stuck.fd);
    unlink(older);

    struct log_file log = fresh(path, 1, 10);
    append_to_log(&log, "0123456", 7);
    append_to_log(&log, "789abc", 6);
    append_to_log(&log, "more", 4);
    CHECK(size_of(path) == 10);

    log = fresh(path, 0, 20);
    append_to_log(&log, "first line\nsecond line\n", 23);
    CHECK(size_of(older) == 11 && size_of(path) == 12);
    append_to_log(&log, "third line\n", 11);
    CHECK(size_of(older) == 12 && size_of(path) == 11);

    // Another file: what was said before stays where it is, what comes goes there, as far as it has room.
    char other[64];
    snprintf(other, sizeof other, "%s/other", dir);
    log = fresh(path, 1, 10);
    append_to_log(&log, "0123456789abc", 13);
    CHECK(move_log(&log, "/nowhere/log") < 0 && errno == ENOENT && log.is_full);
    CHECK(move_log(&log, other) == 0);
    append_to_log(&log, "0123456", 7);
    CHECK(size_of(path) == 10 && size_of(other) == 7);
    CHECK(move_log(&log, other) == 0 && size_of(other) == 0);
    unlink(other);

    // One endless line, in one piece and in many.
    log = fresh(path, 0, 100);
    char *line = malloc(5000);
    memset(line, 'x', 5000);
    append_to_log(&log, line, 5000);
    CHECK(size_of(path) <= 100 && size_of(older) <= 100);
    for (int i = 0; i < 1000; i++) append_to_log(&log, line, (size_t)(rand() % 40));
    CHECK(size_of(path) <= 100 && size_of(older) <= 100);
    note_in_log(&log, "%s", "a word of the shim's own");
    CHECK(size_of(path) <= 100);
    free(line);

    unlink(path);
    unlink(older);
    rmdir(dir);
    return failures != 0;
}
