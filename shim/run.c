/*
 * The shim of one VM: parent of the VMM and of its network helper, and nothing's child once the daemon is gone.
 *
 *   daemon ──(argv, stdout until `ready`)──► shim ──► VMM
 *      ╰────────── shim.sock ─────────────────╯ ╰──► helper
 *
 * It drains what must never block a guest, keeps the exit status, and dies with neither the daemon nor its terminal. When it is
 * killed itself, the kernel kills the VMM (PDEATHSIG), and no exit record is left: that VM is `lost`.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "answer.h"
#include "commands.h"
#include "control.h"
#include "drain.h"
#include "fail.h"
#include "launch.h"
#include "own-dir.h"
#include "plan.h"
#include "record.h"
#include "restart.h"
#include "tap.h"

enum { ON_SIGNAL = 1000, ON_LISTEN = 1001, ON_QUESTION = 1002, ON_SERVED = 1100 /* and up */, ON_CLIENT = 2000 /* and up; below ON_SIGNAL: sources by index */ };

/* The helper's end of the pipe on which it says once that it is ready. */
enum { READY = 9, HELPER_LIMIT_MS = 300000, JOB_LIMIT_S = 5, FIRST_CLIENT_LIMIT_MS = 10000 };

struct shim {
    struct plan plan;
    struct log_file logs[MAX_LOGS];
    struct log_file *own_log;
    struct client clients[MAX_CLIENTS];
    int events, signals, listener, output_fd;
    int asker; /* -1: whatever the VMM opens, it opens by itself */
    pid_t vmm, helper;
    int has_ended, vmm_status;
    long long helper_began_ms;
    long long helper_due_ms; /* when a helper that died is started again; 0: not waiting */
    long long helper_pause_ms;
    long long left_at_ms; /* a VM that waits ends then, unless its daemon has come to it; 0: it has */
};

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void watch(const struct shim *shim, int fd, unsigned what) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = what};
    if (epoll_ctl(shim->events, EPOLL_CTL_ADD, fd, &event) < 0) fail_errno("cannot watch a descriptor");
}

/* The daemon's session, terminal and signals are none of ours. */
static void leave_daemon(struct shim *shim) {
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_NAME, "dormouse-shim");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    shim->signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    if (shim->signals < 0) fail_errno("cannot receive signals");
    int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (oom >= 0) {
        // Without the right to it, as for an ordinary user, the default must do.
        ssize_t ignored = write(oom, "-900", 4);
        (void)ignored;
        close(oom);
    }
}

/* All that is started later is there too. A VM is worth more than its limits: where that fails, it goes on without. */
static void enter_cgroups(struct shim *shim) {
    for (size_t i = 0; i < shim->plan.cgroup_count; i++) {
        char path[PATH_MAX];
        int length = snprintf(path, sizeof path, "%s/cgroup.procs", shim->plan.cgroups[i]);
        int fd = length < (int)sizeof path ? open(path, O_WRONLY | O_CLOEXEC) : -1;
        if (fd < 0 || write(fd, "0", 1) < 0) note_in_log(shim->own_log, "cannot enter the cgroup %s: %s", shim->plan.cgroups[i], strerror(errno));
        if (fd >= 0) close(fd);
    }
}

static void open_own_descriptors(struct shim *shim) {
    for (size_t i = 0; i < shim->plan.log_count; i++) {
        open_log(&shim->logs[i], &shim->plan.logs[i]);
        if (strcmp(shim->plan.logs[i].name, "vmm") == 0) shim->own_log = &shim->logs[i];
    }
    if (shim->own_log == NULL) fail("no log is called vmm");
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) fail_errno("cannot make a socket pair");
    shim->output_fd = fcntl(ends[1], F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    close(ends[1]);
    struct plan *plan = &shim->plan;
    if (plan->source_count == MAX_DESCRIPTORS) fail("too many descriptors");
    plan->sources[plan->source_count++] = (struct source_plan){ends[0], (int)(shim->own_log - shim->logs)};

    shim->listener = listen_on("shim.sock");
    shim->events = epoll_create1(EPOLL_CLOEXEC);
    if (shim->events < 0) fail_errno("cannot wait for events");
    watch(shim, shim->signals, ON_SIGNAL);
    watch(shim, shim->listener, ON_LISTEN);
    for (size_t i = 0; i < plan->source_count; i++)
        if (plan->sources[i].fd >= 0) watch(shim, plan->sources[i].fd, (unsigned)i);
    for (size_t i = 0; i < plan->served_count; i++) watch(shim, plan->served[i].fd, ON_SERVED + (unsigned)i);
    for (size_t i = 0; i < MAX_CLIENTS; i++) shim->clients[i].fd = -1;
}

/*
 * The helper says `ok` on its descriptor READY once it has bound the published ports, or in one line why it could not. Only the
 * first start waits for that: the daemon knows how long and ends us when it has had enough, so our own limit is for when it died.
 */
static int start_helper(struct shim *shim, int ready_fd) {
    const struct plan *plan = &shim->plan;
    struct descriptor fds[MAX_DESCRIPTORS + 1];
    memcpy(fds, plan->helper_fds, sizeof plan->helper_fds);
    fds[plan->helper_fd_count] = (struct descriptor){READY, ready_fd};
    shim->helper_due_ms = 0;
    shim->helper_began_ms = now_ms();
    shim->helper = launch(&(struct launch){
        .argv = shim->plan.helper_argv,
        .fds = fds,
        .fd_count = plan->helper_fd_count + (ready_fd >= 0),
        .stderr_fd = shim->output_fd,
        .has_user = plan->has_user,
        .uid = plan->uid,
        .gid = plan->gid,
        .may_bind_low_ports = 1,
        .has_dir = plan->helper_dir_fd >= 0,
        .dir_fd = plan->helper_dir_fd,
    });
    return shim->helper < 0 ? -1 : 0;
}

/* Nothing, or why it did not come up. */
static const char *start_awaited_helper(struct shim *shim) {
    static char line[LINE_SIZE];
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) return "cannot make a pipe";
    int ready = fcntl(ends[1], F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    close(ends[1]);
    if (ready < 0 || start_helper(shim, ready) < 0) {
        snprintf(line, sizeof line, "cannot start %s: %s", shim->plan.helper_argv[0], strerror(errno));
        if (ready >= 0) close(ready);
        close(ends[0]);
        return line;
    }
    close(ready);
    struct pollfd waiting = {.fd = ends[0], .events = POLLIN};
    ssize_t got = poll(&waiting, 1, HELPER_LIMIT_MS) == 1 ? read(ends[0], line, sizeof line - 1) : 0;
    close(ends[0]);
    if (got <= 0) return "the network helper did not come up";
    line[got] = '\0';
    line[strcspn(line, "\n")] = '\0';
    return strcmp(line, "ok") == 0 ? NULL : line;
}

static void start_first_helper(struct shim *shim) {
    const char *wrong = start_awaited_helper(shim);
    if (wrong != NULL) fail("%s", wrong);
}

/*
 * MODE SOCKET: the way out is a proxy from now on. Its helper begins anew, behind a filter that lets it reach one, and knows its ports and
 * rates; what its guest and clients had open is lost, so this is for a VM that has no one's yet.
 */
static const char *give_proxy(void *context, const char *words) {
    // Of the one call that is heeded.
    static char kept[LINE_SIZE];
    struct shim *shim = context;
    struct plan *plan = &shim->plan;
    if (plan->helper_argc == 0) return "it has no network helper";
    if (plan->helper_dir_fd >= 0) return "it has a proxy already";
    if (plan->helper_argc + 3 > MAX_HELPER_ARGS) return "too many words for the helper";
    snprintf(kept, sizeof kept, "%s", words);
    char *path = strchr(kept, ' '), *name = path == NULL ? NULL : strrchr(path, '/');
    if (name == NULL || path[1] != '/' || name == path + 1 || name[1] == '\0') return "a mode and a socket are wanted";
    *path++ = *name++ = '\0';
    int dir = open_dir(path);
    if (dir < 0) return "the directory of the proxy's socket cannot be opened";
    char *const first[] = {"--egress", kept, name};
    memmove(plan->helper_argv + 4, plan->helper_argv + 1, (plan->helper_argc - 1) * sizeof *plan->helper_argv);
    memcpy(plan->helper_argv + 1, first, sizeof first);
    plan->helper_argc += 3;
    plan->helper_dir_fd = dir;
    if (shim->helper > 0) {
        kill(shim->helper, SIGKILL);
        waitpid(shim->helper, NULL, 0);
    }
    return start_awaited_helper(shim);
}

static void start_vmm(struct shim *shim) {
    struct plan *plan = &shim->plan;
    int is_answered = plan->answers_tun || plan->answers_opens;
    // What comes before its memory is loaded would be put into it.
    if (plan->answers_tun && shut_tap(plan->tap_fd) < 0) fail_errno("cannot shut the TAP");
    shim->vmm = launch(&(struct launch){
        .argv = plan->vmm_argv,
        .fds = plan->vmm_fds,
        .fd_count = plan->vmm_fd_count,
        .stderr_fd = shim->output_fd,
        .has_user = plan->has_user,
        .uid = plan->uid,
        .gid = plan->gid,
        .groups = plan->groups,
        .group_count = plan->group_count,
        .isolates_network = plan->isolates_network,
        .locked_bytes = plan->locked_bytes,
        .has_dir = plan->own_dir != NULL,
        .dir_fd = plan->own_dir_fd,
        .asker = is_answered ? &shim->asker : NULL,
    });
    // Root in a container may be without the right to more than what it has.
    if (shim->vmm < 0 && errno == EPERM && plan->locked_bytes > 0) fail_errno("the VMM cannot be let lock its guest's memory");
    if (shim->vmm < 0) fail_errno("cannot start %s", plan->vmm_argv[0]);
    if (is_answered && shim->asker < 0) fail("the VMM cannot be answered");
    if (shim->asker >= 0) watch(shim, shim->asker, ON_QUESTION);
}

/*
 * Locks on disks belong to the VMM: a descriptor left open here would hold them after it has let go. What a capture needs is kept: the
 * blank memory that device state is saved to, and the guest's memory, by which its mapping is known. The TAP of a VM that waits is one for
 * the time being, and that of a VMM that opens it itself is its when it asks.
 */
static void let_go_of_descriptors(struct plan *plan) {
    int tap_fd = plan->waits || plan->answers_tun ? plan->tap_fd : -1;
    for (size_t i = 0; i < plan->vmm_fd_count; i++) {
        int fd = plan->vmm_fds[i].fd;
        if (fd != plan->blank_fd && fd != plan->memory_fd && fd != plan->copy_fd && fd != tap_fd) close(fd);
    }
    plan->tap_fd = tap_fd;
}

static void say_ready(int blank, pid_t vmm) {
    printf("ready %d %d %d\n", (int)getpid(), (int)vmm, blank);
    // A daemon that is gone already will never know of this VM: it ends with us.
    if (fflush(stdout) != 0) exit(1);
    int zero = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= 2; fd++) dup2(zero, fd);
    close(zero);
}

static void reap(struct shim *shim) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == shim->vmm) {
            shim->has_ended = 1;
            shim->vmm_status = status;
        } else if (pid == shim->helper) {
            long long now = now_ms();
            shim->helper = -1;
            shim->helper_pause_ms = restart_pause_ms(shim->helper_pause_ms, now - shim->helper_began_ms);
            shim->helper_due_ms = now + shim->helper_pause_ms;
            const char *what = WIFSIGNALED(status) ? sigabbrev_np(WTERMSIG(status)) : NULL;
            note_in_log(shim->own_log, "the network helper ended (%s %d), starting another in %lld ms", what == NULL ? "code" : what,
                        what == NULL ? WEXITSTATUS(status) : WTERMSIG(status), shim->helper_pause_ms);
        }
    }
}

static void on_signals(struct shim *shim) {
    struct signalfd_siginfo info;
    while (read(shim->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD) reap(shim);
        else if (!shim->has_ended) kill(shim->vmm, SIGTERM);
    }
}

static void accept_client(struct shim *shim) {
    int fd = accept4(shim->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    for (size_t i = 0; i < MAX_CLIENTS; i++) {
        if (shim->clients[i].fd >= 0) continue;
        shim->clients[i] = (struct client){.fd = fd};
        shim->left_at_ms = 0;
        watch(shim, fd, ON_CLIENT + (unsigned)i);
        return;
    }
    close(fd);
}

/*
 * The guest has opened a stream of its own. The one before it may be gone by now; as long as it is not, whoever else is in the guest
 * cannot speak in its place. 0 when there was none to take.
 */
static int accept_stream(struct shim *shim, const struct served_plan *served) {
    struct source_plan *source = &shim->plan.sources[served->source];
    int fd = accept4(served->fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return 0;
    int more = source->fd >= 0;
    for (int rounds = 0; more > 0 && rounds < 1024; rounds++) more = drain(source->fd, &shim->logs[source->log]);
    if (source->fd >= 0 && more >= 0) {
        close(fd);
        return 1;
    }
    if (source->fd >= 0) close(source->fd);
    source->fd = fd;
    watch(shim, fd, (unsigned)served->source);
    return 1;
}

/* What came by them is in the logs first. */
static void cut_streams(void *context) {
    struct shim *shim = context;
    for (size_t i = 0; i < shim->plan.served_count; i++) {
        struct source_plan *source = &shim->plan.sources[shim->plan.served[i].source];
        for (int rounds = 0; source->fd >= 0 && rounds < 1024 && drain(source->fd, &shim->logs[source->log]) > 0;) rounds++;
        if (source->fd >= 0) close(source->fd);
        source->fd = -1;
    }
}

/* A VM that waits belongs to the daemon alone, and no one would ever take it now. */
static void end_if_left(struct shim *shim) {
    if (!shim->plan.waits || shim->has_ended) return;
    for (size_t i = 0; i < MAX_CLIENTS; i++)
        if (shim->clients[i].fd >= 0) return;
    kill(shim->vmm, SIGKILL);
}

static void serve(struct shim *shim, struct client *client) {
    const struct controlled what = {
        .vmm = {shim->vmm, shim->plan.memory_fd, shim->plan.copy_fd, shim->plan.blank_fd, shim->plan.tap_fd},
        .logs = shim->logs,
        .log_count = shim->plan.log_count,
        .waits = &shim->plan.waits,
        .answers = shim->plan.answers_opens ? &shim->plan.answers : NULL,
        .cut_streams = cut_streams,
        .give_proxy = give_proxy,
        .context = shim,
    };
    if (client->fd < 0 || serve_client(client, &what) >= 0) return;
    close(client->fd);
    client->fd = -1;
    end_if_left(shim);
}

static void answer_vmm(struct shim *shim) {
    if (shim->asker < 0 || answer_one(shim->asker, &shim->plan.answers) >= 0) return;
    close(shim->asker);
    shim->asker = -1;
}

static void on_event(struct shim *shim, unsigned what) {
    if (what == ON_QUESTION) {
        answer_vmm(shim);
    } else if (what == ON_SIGNAL) {
        on_signals(shim);
    } else if (what == ON_LISTEN) {
        accept_client(shim);
    } else if (what >= ON_SERVED && what < ON_CLIENT) {
        accept_stream(shim, &shim->plan.served[what - ON_SERVED]);
    } else if (what >= ON_CLIENT) {
        serve(shim, &shim->clients[what - ON_CLIENT]);
    } else {
        struct source_plan *source = &shim->plan.sources[what];
        if (source->fd >= 0 && drain(source->fd, &shim->logs[source->log]) < 0) {
            close(source->fd);
            source->fd = -1;
        }
    }
}

/* What the VMM wrote last is still in the sockets. It is dead, so that is no more than they hold. */
static void drain_the_rest(struct shim *shim) {
    for (size_t i = 0; i < shim->plan.served_count; i++)
        while (accept_stream(shim, &shim->plan.served[i])) continue;
    for (size_t i = 0; i < shim->plan.source_count; i++) {
        struct source_plan *source = &shim->plan.sources[i];
        for (int rounds = 0; source->fd >= 0 && rounds < 1024 && drain(source->fd, &shim->logs[source->log]) > 0;) rounds++;
    }
}

static void give_up_waiting(int number) { (void)number; }

/* What has been read of a VM can be stored without it. A worker that takes too long ends with us (PDEATHSIG). */
static void wait_for_jobs(void) {
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    sigprocmask(SIG_UNBLOCK, &alarms, NULL);
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = give_up_waiting}, NULL);
    alarm(JOB_LIMIT_S);
    while (waitpid(-1, NULL, 0) > 0) continue;
    alarm(0);
}

static void end(struct shim *shim) {
    char line[LINE_SIZE];
    // Whoever is told of the end may give the TAP to another.
    if (shim->plan.tap_fd >= 0) close(shim->plan.tap_fd);
    drain_the_rest(shim);
    if (shim->helper > 0) {
        kill(shim->helper, SIGKILL);
        waitpid(shim->helper, NULL, 0);
    }
    if (record_exit(shim->vmm_status, line, sizeof line) < 0) note_in_log(shim->own_log, "the exit record could not be written: %s", strerror(errno));
    for (size_t i = 0; i < shim->plan.socket_count; i++) unlink(shim->plan.sockets[i]);
    unlink("shim.sock");
    if (shim->plan.own_dir != NULL) remove_own_dir(shim->plan.own_dir);
    wait_for_jobs();
    for (size_t i = 0; i < MAX_CLIENTS; i++)
        if (shim->clients[i].fd >= 0) send(shim->clients[i].fd, line, strlen(line), MSG_DONTWAIT | MSG_NOSIGNAL);
}

int command_run(int argc, char **argv) {
    static struct shim shim;
    shim.helper = shim.asker = -1;
    read_plan(&shim.plan, argc, argv);
    // All that was handed over has been taken to where no child finds it by chance.
    close_range(3, OWN_DESCRIPTORS - 1, 0);
    leave_daemon(&shim);
    open_own_descriptors(&shim);
    enter_cgroups(&shim);
    // The helper first: it binds the published ports, and a port that is taken must keep the VM from starting.
    if (shim.plan.helper_argc > 0) start_first_helper(&shim);
    start_vmm(&shim);
    let_go_of_descriptors(&shim.plan);
    say_ready(shim.plan.blank_fd, shim.vmm);
    if (shim.plan.waits) shim.left_at_ms = now_ms() + FIRST_CLIENT_LIMIT_MS;

    while (!shim.has_ended) {
        int timeout = -1;
        if (shim.helper_due_ms > 0) {
            long long left = shim.helper_due_ms - now_ms();
            if (left <= 0 && start_helper(&shim, -1) < 0) shim.helper_due_ms = now_ms() + 10000;
            timeout = left > 0 ? (int)left : shim.helper_due_ms > 0 ? 10000 : -1;
        }
        if (shim.left_at_ms > 0) {
            long long left = shim.left_at_ms - now_ms();
            if (left <= 0) end_if_left(&shim);
            if (timeout < 0 || timeout > left) timeout = left > 0 ? (int)left : 1000;
        }
        struct epoll_event ready[16];
        int count = epoll_wait(shim.events, ready, 16, timeout);
        if (count < 0 && errno != EINTR) break;
        for (int i = 0; i < count; i++) on_event(&shim, ready[i].data.u32);
    }
    end(&shim);
    return 0;
}
