#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "answer.h"

static int keep_one_capability(int capability) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    data[0].effective = data[0].permitted = data[0].inheritable = 1u << capability;
    if (syscall(SYS_capset, &header, data) < 0) return -1;
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
}

enum { HELPER_DESCRIPTORS = 1024 };

static int become(const struct launch *how) {
    if (!how->has_user) return 0;
    if (how->may_bind_low_ports && prctl(PR_SET_KEEPCAPS, 1) < 0) return -1;
    if (setgroups(how->group_count, how->groups) < 0 || setresgid(how->gid, how->gid, how->gid) < 0) return -1;
    if (setresuid(how->uid, how->uid, how->uid) < 0) return -1;
    return how->may_bind_low_ports ? keep_one_capability(CAP_NET_BIND_SERVICE) : 0;
}

/* Only returns when it failed. */
static void run_child(const struct launch *how, pid_t parent, int asking) {
    int zero = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (zero < 0 || dup2(zero, STDIN_FILENO) < 0) return;
    if (dup2(how->stderr_fd, STDOUT_FILENO) < 0 || dup2(how->stderr_fd, STDERR_FILENO) < 0) return;
    for (size_t i = 0; i < how->fd_count; i++)
        if (dup2(how->fds[i].fd, how->fds[i].number) < 0) return;

    // A crashed VMM must not write a guest's memory to a file.
    const struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_CORE, &none) < 0) return;
    // A guest makes the helper open a socket for each port that it sends from: it must not take all of the host's.
    const struct rlimit sockets = {HELPER_DESCRIPTORS, HELPER_DESCRIPTORS};
    if (how->may_bind_low_ports && setrlimit(RLIMIT_NOFILE, &sockets) < 0) return;
    const struct rlimit locked = {(rlim_t)how->locked_bytes, (rlim_t)how->locked_bytes};
    if (how->locked_bytes > 0 && setrlimit(RLIMIT_MEMLOCK, &locked) < 0) return;
    if (how->has_user) {
        // The shim is spared when memory runs out, the child is not.
        int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (oom >= 0 && write(oom, "0", 1) < 0) return;
        if (how->isolates_network && unshare(CLONE_NEWNET) < 0) return;
    }
    if ((how->has_dir ? fchdir(how->dir_fd) : chdir("/")) < 0) return;
    umask(077);
    if (become(how) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return;
    // After the change of user, which clears it.
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) return;
    if (getppid() != parent) _exit(1);

    sigset_t nothing;
    sigemptyset(&nothing);
    sigprocmask(SIG_SETMASK, &nothing, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    char *const environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", NULL};
    if (how->asker != NULL && ask_for_answers(asking) < 0) return;
    execvpe(how->argv[0], how->argv, environment);
}

/* The child's end is above the numbers that it gives to its descriptors. */
static void make_asking(int ends[2]) {
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) return;
    int low = ends[1];
    ends[1] = fcntl(low, F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    close(low);
}

pid_t launch(const struct launch *how) {
    int trouble[2];
    if (pipe2(trouble, O_CLOEXEC) < 0) return -1;
    // Children's numbers end below the shim's own: the pipe must not be overwritten by one of them.
    int report = fcntl(trouble[1], F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    close(trouble[1]);
    int asking[2] = {-1, -1};
    if (report >= 0 && how->asker != NULL) make_asking(asking);
    pid_t parent = getpid();
    pid_t pid = report < 0 || (how->asker != NULL && asking[1] < 0) ? -1 : fork();
    if (pid == 0) {
        run_child(how, parent, asking[1]);
        int error = errno;
        if (write(report, &error, sizeof error) < 0) _exit(126);
        _exit(127);
    }
    close(report);
    int error = 0;
    ssize_t got = 0;
    if (pid > 0) {
        do got = read(trouble[0], &error, sizeof error);
        while (got < 0 && errno == EINTR);
    }
    close(trouble[0]);
    if (pid > 0 && got <= 0 && how->asker != NULL) *how->asker = take_asker(asking[0]);
    for (int end = 0; end < 2; end++)
        if (asking[end] >= 0) close(asking[end]);
    if (got <= 0) return pid;
    waitpid(pid, NULL, 0);
    errno = error;
    return -1;
}
