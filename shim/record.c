#include "record.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int record_exit(int wait_status, char *line, unsigned long line_size) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long ms = now.tv_sec * 1000LL + now.tv_nsec / 1000000;
    if (WIFSIGNALED(wait_status)) {
        const char *name = sigabbrev_np(WTERMSIG(wait_status));
        snprintf(line, line_size, "signaled SIG%s %lld\n", name == NULL ? "?" : name, ms);
    } else {
        snprintf(line, line_size, "exited %d %lld\n", WEXITSTATUS(wait_status), ms);
    }
    int fd = open("exit.draft", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return -1;
    size_t length = strlen(line);
    int ok = write(fd, line, length) == (ssize_t)length && fsync(fd) == 0;
    close(fd);
    if (!ok || rename("exit.draft", "exit") < 0) return -1;
    int dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        fsync(dir);
        close(dir);
    }
    return 0;
}
