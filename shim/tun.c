#include "tun.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "not an architecture that is known here"
#endif

/* More than wait in a TAP (its txqueuelen); one whose VM runs is never empty. */
enum { MOST_FRAMES = 4096 };

static const char DEVICE[] = "/dev/net/tun";

#define LOAD(what) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, what))
#define IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)

/*
 * Whatever it opens is asked for, since a filter sees no names, and which interface a descriptor of /dev/net/tun is to be. A call that gets
 * around this opens the device in the VMM's own namespace, where there is nothing.
 */
int ask_for_tun(int to) {
    struct sock_filter code[] = {
        LOAD(arch),
        IS(ARCHITECTURE, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        LOAD(nr),
#ifdef SYS_open
        IS(SYS_open, 5, 0),
#else
        IS(SYS_openat, 5, 0),
#endif
        IS(SYS_openat, 4, 0),
        IS(SYS_ioctl, 0, 2),
        LOAD(args[1]),
        IS((unsigned)TUNSETIFF, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(SECCOMP_RET_USER_NOTIF),
    };
    const struct sock_fprog program = {sizeof code / sizeof *code, code};
    int asker = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (asker < 0) return -1;
    char byte = 0;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec bytes = {&byte, 1};
    const struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof asker), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.header), &asker, sizeof asker);
    return sendmsg(to, &message, 0) == 1 ? 0 : -1;
}

int take_tun_asker(int from) {
    char byte;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec bytes = {&byte, 1};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1) return -1;
    const struct cmsghdr *got = CMSG_FIRSTHDR(&message);
    int asker = -1;
    if (got != NULL && got->cmsg_type == SCM_RIGHTS) memcpy(&asker, CMSG_DATA(got), sizeof asker);
    return asker;
}

/* What it says may be another thing a moment later; but then it opens that by itself, and where it is there is nothing. */
static int names_device(const struct seccomp_notif *asked) {
    char path[32], name[sizeof DEVICE] = "";
    snprintf(path, sizeof path, "/proc/%d/mem", (int)asked->pid);
    int memory = open(path, O_RDONLY | O_CLOEXEC);
    if (memory < 0) return 0;
    ssize_t got = pread(memory, name, sizeof name, (off_t)asked->data.args[asked->data.nr == SYS_openat ? 1 : 0]);
    close(memory);
    return got == (ssize_t)sizeof name && memcmp(name, DEVICE, sizeof name) == 0;
}

/* What has come between its opening and its shutting would be put into a memory that is not loaded yet. No one else reads it before it is given. */
static void empty_tap(int tap) {
    static char frame[1 << 17];
    for (int frames = 0; frames < MOST_FRAMES && read(tap, frame, sizeof frame) > 0;) frames++;
}

static void give_tap(int asker, int tap, struct seccomp_notif_resp *answer) {
    empty_tap(tap);
    struct seccomp_notif_addfd given = {.id = answer->id, .srcfd = (unsigned)tap, .newfd_flags = O_CLOEXEC};
    int number = ioctl(asker, SECCOMP_IOCTL_NOTIF_ADDFD, &given);
    answer->flags = 0;
    answer->val = number;
    answer->error = number < 0 ? -errno : 0;
    if (number < 0) answer->val = 0;
}

int answer_tun(int asker, int tap) {
    struct pollfd is_there = {.fd = asker, .events = POLLIN};
    if (poll(&is_there, 1, 0) < 0 || is_there.revents == 0) return 0;
    if (!(is_there.revents & POLLIN)) return -1;
    struct seccomp_notif asked = {0};
    // It may have been killed meanwhile.
    if (ioctl(asker, SECCOMP_IOCTL_NOTIF_RECV, &asked) < 0) return 0;
    struct seccomp_notif_resp answer = {.id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    // Which TAP it is to be has been settled.
    if (asked.data.nr == SYS_ioctl) answer.flags = 0;
    else if (names_device(&asked)) give_tap(asker, tap, &answer);
    ioctl(asker, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    return 0;
}

int shut_tap(int tap) {
    struct sock_filter nothing[] = {RETURN(0)};
    const struct sock_fprog program = {1, nothing};
    return ioctl(tap, TUNATTACHFILTER, &program);
}

int open_tap_again(int tap) {
    struct sock_fprog none = {0, NULL};
    return ioctl(tap, TUNDETACHFILTER, &none);
}
