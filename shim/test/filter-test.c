/* Behind the filter the network's calls work, and each of the others ends the process. */
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../net.h"

static int failures;

/* How a process ends that calls this behind the filter: 0 when the call came back. */
#define ENDS_BY(call, has_proxy) \
    ({ \
        pid_t pid = fork(); \
        if (pid == 0) { \
            if (give_up_calls(has_proxy) < 0) syscall(SYS_exit_group, 1); \
            (void)(call); \
            syscall(SYS_exit_group, 0); \
        } \
        int status = -1; \
        waitpid(pid, &status, 0); \
        WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status); \
    })

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

#define WORKS(call) CHECK(ENDS_BY(call, 0) == 0)
#define KILLS(call) CHECK(ENDS_BY(call, 0) == SIGSYS)
/* Comes back, and gives this. */
#define GIVES(call, value, has_proxy) CHECK(ENDS_BY((call) == (value) ? 0 : (syscall(SYS_exit_group, 2), 0), has_proxy) == 0)

int main(void) {
    static char path[] = "/bin/true";
    char *const argv[] = {path, NULL};
    struct stat facts;
    int bytes, one = 1;
    setvbuf(stdout, NULL, _IONBF, 0);

    WORKS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    WORKS(socket(AF_INET6, SOCK_DGRAM, 0));
    WORKS(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
    WORKS(setsockopt(3, IPPROTO_TCP, 1, &one, sizeof one));
    WORKS(ioctl(3, FIONREAD, &bytes));
    WORKS(fcntl(0, F_DUPFD_CLOEXEC, 0));
    WORKS(poll(NULL, 0, 0));
    WORKS(stat("/etc/resolv.conf", &facts));
    WORKS(open("/etc/resolv.conf", O_RDONLY));
    WORKS(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    WORKS(if_nametoindex("lo"));

    GIVES(socket(AF_UNIX, SOCK_STREAM, 0), -1, 0);
    GIVES(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) >= 0, 1, 1);
    // To a proxy connections alone; what looks up an interface goes on without.
    GIVES(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), -1, 1);
    CHECK(ENDS_BY(if_nametoindex("lo"), 1) == 0);
    CHECK(ENDS_BY(socket(AF_UNIX, SOCK_SEQPACKET, 0), 1) == SIGSYS);
    CHECK(ENDS_BY(socket(AF_NETLINK, SOCK_RAW, 0), 1) == SIGSYS);

    KILLS(execve(path, argv, argv));
    KILLS(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    KILLS(syscall(SYS_kill, getppid(), 0));
    KILLS(ptrace(PTRACE_TRACEME, 0, 0, 0));
    KILLS(prctl(PR_SET_NAME, "other"));
    KILLS(open("/tmp/file", O_RDWR | O_CREAT, 0600));
    KILLS(open("/dev/null", O_WRONLY));
    KILLS(unlink("/no/such/file"));
    KILLS(chmod("/no/such/file", 0));
    KILLS(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    KILLS(mprotect(path, 4096, PROT_READ | PROT_EXEC));
    KILLS(socket(AF_NETLINK, SOCK_RAW, 0));
    KILLS(socket(AF_PACKET, SOCK_RAW, 0));
    KILLS(socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP));
    KILLS(setsockopt(3, IPPROTO_UDP, 1, &one, sizeof one));
    KILLS(ioctl(0, TIOCSTI, "x"));
    KILLS(fcntl(0, F_SETOWN, 1));
    KILLS(syscall(SYS_io_uring_setup, 1, NULL));
    KILLS(syscall(SYS_bpf, 0, NULL, 0));
    KILLS(abort());
    return failures != 0;
}
