#include "job.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "fail.h"
#include "output.h"

static const struct {
    const char *word;
    void (*work)(const struct job *);
    int needs_memory;
} jobs[] = {
    {"capture ", capture, 1},       {"capture-with ", capture_with, 1}, {"load ", load, 1},
    {"load-added ", load_added, 1}, {"give ", give, 0},                 {"tap ", take_tap, 0},
};

char *read_added(struct added *added, char *words) {
    *added = (struct added){0};
    for (char *at = words;; at++) {
        char *end;
        long number = strtol(at, &end, 10);
        long long bytes = *end == ':' ? strtoll(end + 1, &end, 10) : 0;
        if (added->count == MAX_ADDED || number < 0 || number > INT_MAX || bytes <= 0 || (*end != ',' && *end != ' '))
            fail("not a list of added memory: %s", words);
        added->list[added->count].number = (int)number;
        added->list[added->count++].bytes = (uint64_t)bytes;
        at = end;
        if (*end == ' ') return end + 1;
    }
}

void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

/* A client has nothing more to say, so whatever comes is its end. */
static void end_if_hung_up(int number) {
    (void)number;
    int error = errno;
    struct pollfd client = {.fd = STDOUT_FILENO, .events = POLLIN | POLLRDHUP};
    if (poll(&client, 1, 0) != 0) end_without_outputs();
    errno = error;
}

static void end_by_signal(int number) {
    (void)number;
    end_without_outputs();
}

static void end_with_client_and_shim(pid_t shim) {
    sigset_t nothing;
    sigemptyset(&nothing);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGTERM, end_by_signal);
    signal(SIGIO, end_if_hung_up);
    sigprocmask(SIG_SETMASK, &nothing, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != shim) exit(1);
    if (fcntl(STDOUT_FILENO, F_SETOWN, getpid()) < 0 || fcntl(STDOUT_FILENO, F_SETFL, O_ASYNC) < 0) fail_errno("cannot watch the connection");
    // It may have been over before.
    end_if_hung_up(SIGIO);
}

const char *find_job_memory(struct vmm_memory *memory, const struct job *job) {
    const struct vmm *vmm = job->vmm;
    return vmm->copy_fd < 0 ? find_memory(memory, vmm->pid, &job->files, vmm->memory_fd) : take_copy(memory, vmm->memory_fd, vmm->copy_fd);
}

const char *find_job_added(struct vmm_memory *memory, const struct job *job, int number, uint64_t bytes) {
    // Of it there is no copy, and no other way to it than the VMM's own.
    if (job->vmm->copy_fd >= 0) return "memory that was added to the VM is out of reach on this host";
    return find_added_memory(memory, job->vmm->pid, &job->files, number, bytes);
}

static int ascending(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* Other clients' connections, the VMM's streams: what is not ours must not be kept open by us. */
static void close_all_but(int *kept, size_t count) {
    qsort(kept, count, sizeof *kept, ascending);
    unsigned from = STDERR_FILENO + 1;
    for (size_t i = 0; i < count; i++) {
        if (kept[i] < (int)from) continue;
        if (kept[i] > (int)from) close_range(from, (unsigned)kept[i] - 1, 0);
        from = (unsigned)kept[i] + 1;
    }
    close_range(from, ~0U, 0);
}

static _Noreturn void work(size_t which, int client, const struct job *job, pid_t shim) {
    dup2(client, STDOUT_FILENO);
    const struct vmm *vmm = job->vmm;
    int kept[] = {vmm->memory_fd, vmm->copy_fd, vmm->state_fd, vmm->tap_fd, job->files.maps, job->files.pagemap, job->files.mem};
    close_all_but(kept, sizeof kept / sizeof *kept);
    prctl(PR_SET_NAME, "dormouse-job");
    // The shim is spared when memory runs out; a job can be done again.
    int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (oom >= 0 && write(oom, "0", 1) == 1) close(oom);
    end_with_client_and_shim(shim);
    jobs[which].work(job);
    exit(0);
}

int start_job(int client, char *line, const struct vmm *vmm) {
    size_t which = 0;
    while (which < sizeof jobs / sizeof *jobs && strncmp(line, jobs[which].word, strlen(jobs[which].word)) != 0) which++;
    if (which == sizeof jobs / sizeof *jobs) return 0;
    struct job job = {vmm, {-1, -1, -1}, line + strlen(jobs[which].word)};
    int needs_rights = jobs[which].needs_memory && vmm->copy_fd < 0;
    if (needs_rights && open_vmm_files(&job.files, vmm->pid) < 0) return -1;
    pid_t shim = getpid(), pid = fork();
    if (pid == 0) work(which, client, &job, shim);
    int error = errno;
    close_vmm_files(&job.files);
    errno = error;
    return pid < 0 ? -1 : 1;
}
