#include "drain.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fail.h"

static int open_end(const char *path, int flags) { return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | flags, 0640); }

void open_log(struct log_file *log, const struct log_plan *plan) {
    *log = (struct log_file){.plan = *plan};
    int fd = open_end(plan->path, plan->is_capped ? O_TRUNC : 0);
    if (fd < 0) fail_errno("cannot open the log %s", plan->path);
    log->fd = fcntl(fd, F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    close(fd);
    struct stat facts;
    if (log->fd < 0 || fstat(log->fd, &facts) < 0) fail_errno("cannot look at the log %s", plan->path);
    log->bytes = facts.st_size;
}

int move_log(struct log_file *log, const char *path) {
    if (strlen(path) >= sizeof log->moved) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int fd = open_end(path, log->plan.is_capped ? O_TRUNC : 0);
    struct stat facts;
    int is_ours = fd >= 0 && fstat(fd, &facts) == 0 && dup3(fd, log->fd, O_CLOEXEC) >= 0;
    int error = errno;
    if (fd >= 0) close(fd);
    if (!is_ours) {
        errno = error;
        return -1;
    }
    strcpy(log->moved, path);
    log->plan.path = log->moved;
    log->bytes = facts.st_size;
    log->is_full = 0;
    return 0;
}

/*
 * FILE becomes FILE.1, whatever was there is gone. A reader that follows FILE sees its inode change. 0 when it could not be done:
 * then FILE is filled up to its bound, and what comes after is lost.
 */
static int rotate(struct log_file *log) {
    char older[4096];
    if (snprintf(older, sizeof older, "%s.1", log->plan.path) >= (int)sizeof older) return 0;
    if (rename(log->plan.path, older) < 0 && errno != ENOENT) return 0;
    int fd = open_end(log->plan.path, 0);
    if (fd < 0) return 0;
    int is_ours = dup3(fd, log->fd, O_CLOEXEC) >= 0;
    close(fd);
    if (is_ours) log->bytes = 0;
    return is_ours;
}

void append_to_log(struct log_file *log, const char *data, size_t length) {
    while (length > 0 && !log->is_full) {
        long long room = log->plan.max_bytes - log->bytes;
        if (room <= 0) {
            if (log->plan.is_capped) {
                log->is_full = 1;
                return;
            }
            rotate(log);
            room = log->plan.max_bytes - log->bytes;
            if (room <= 0) return;
        }
        size_t part = (long long)length < room ? length : (size_t)room;
        if (part < length && !log->plan.is_capped) {
            // Rotate between lines where there is one to be had.
            const char *newline = memrchr(data, '\n', part);
            if (newline != NULL) part = (size_t)(newline - data) + 1;
            else if (log->bytes > 0 && length <= (size_t)log->plan.max_bytes && rotate(log)) continue;
        }
        ssize_t wrote = write(log->fd, data, part);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return;
        log->bytes += wrote;
        data += wrote;
        length -= (size_t)wrote;
        if (part < length && log->bytes < log->plan.max_bytes && !log->plan.is_capped) rotate(log);
    }
}

void note_in_log(struct log_file *log, const char *format, ...) {
    char line[512] = "[shim] ";
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line + 7, sizeof line - 8, format, args);
    va_end(args);
    if (length < 0) return;
    size_t end = strlen(line);
    line[end] = '\n';
    append_to_log(log, line, end + 1);
}

int drain(int source, struct log_file *log) {
    static char buffer[64 * 1024];
    ssize_t got = recv(source, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got > 0) {
        append_to_log(log, buffer, (size_t)got);
        return 1;
    }
    if (got == 0) return -1;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
}
