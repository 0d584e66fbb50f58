/*
 * What is left to a helper whose packet parser has been taken over: the system calls of libslirp's sockets, of what the C library does
 * for them, and of the ports' memory. Any other ends the process; the shim says so in the VM's log and starts another.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "net.h"

/* Most calls take 32 bits of an argument and ignore the rest, so that is what is compared. */
#define IS(argument, value) SCMP_CMP(argument, SCMP_CMP_MASKED_EQ, 0xffffffffu, (scmp_datum_t)(value))
/* Beside the type there may be SOCK_CLOEXEC and SOCK_NONBLOCK. */
#define OF_TYPE(type) SCMP_CMP(1, SCMP_CMP_MASKED_EQ, 0xf, (scmp_datum_t)(type))
#define HAS_NONE_OF(argument, bits) SCMP_CMP(argument, SCMP_CMP_MASKED_EQ, (scmp_datum_t)(bits), 0)

static const int plain[] = {
    // Sockets; they are internet sockets, and to a proxy unix sockets, see below.
    SCMP_SYS(accept), SCMP_SYS(accept4), SCMP_SYS(bind), SCMP_SYS(connect), SCMP_SYS(getpeername), SCMP_SYS(getsockname), SCMP_SYS(getsockopt),
    SCMP_SYS(listen), SCMP_SYS(recvfrom), SCMP_SYS(recvmsg), SCMP_SYS(sendto), SCMP_SYS(shutdown),
    // Waiting; a wait that a stop signal broke into is restarted by the last of these.
    SCMP_SYS(clock_gettime), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(restart_syscall),
    // The resolvers in /etc/resolv.conf, the ports' memory, lines for the VM's log.
    SCMP_SYS(close), SCMP_SYS(fstat), SCMP_SYS(lseek), SCMP_SYS(newfstatat), SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(read), SCMP_SYS(write),
    // Memory; GLib's locks and the name of its process in a warning; the end. abort() is none of them, and ends here all the same.
    SCMP_SYS(brk), SCMP_SYS(exit_group), SCMP_SYS(futex), SCMP_SYS(getpid), SCMP_SYS(mremap), SCMP_SYS(munmap), SCMP_SYS(rt_sigreturn),
};

struct rule {
    int call;
    unsigned count;
    struct scmp_arg_cmp arguments[2];
};

int give_up_calls(int has_proxy) {
    const int writing = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | O_PATH;
    const struct rule rules[] = {
        {SCMP_SYS(socket), 2, {IS(0, AF_INET), IS(2, 0)}},
        {SCMP_SYS(socket), 2, {IS(0, AF_INET6), IS(2, 0)}},
        {SCMP_SYS(socket), 2, {IS(0, AF_INET), IS(2, IPPROTO_ICMP)}},
        {SCMP_SYS(setsockopt), 1, {IS(1, SOL_SOCKET)}},
        {SCMP_SYS(setsockopt), 1, {IS(1, IPPROTO_IP)}},
        {SCMP_SYS(setsockopt), 1, {IS(1, IPPROTO_IPV6)}},
        {SCMP_SYS(setsockopt), 1, {IS(1, IPPROTO_TCP)}},
        {SCMP_SYS(ioctl), 1, {IS(1, FIONREAD)}},
        {SCMP_SYS(ioctl), 1, {IS(1, SIOCGIFINDEX)}},
        {SCMP_SYS(ioctl), 1, {IS(1, TCGETS)}},
        {SCMP_SYS(fcntl), 1, {IS(1, F_GETFL)}},
        {SCMP_SYS(fcntl), 1, {IS(1, F_SETFL)}},
        {SCMP_SYS(fcntl), 1, {IS(1, F_DUPFD_CLOEXEC)}},
        {SCMP_SYS(openat), 1, {HAS_NONE_OF(2, writing)}},
        {SCMP_SYS(mmap), 1, {HAS_NONE_OF(2, PROT_EXEC)}},
    };
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (filter == NULL) return -1;
    int failed = 0;
    for (size_t i = 0; i < sizeof plain / sizeof *plain && failed == 0; i++) failed = seccomp_rule_add(filter, SCMP_ACT_ALLOW, plain[i], 0);
    for (size_t i = 0; i < sizeof rules / sizeof *rules && failed == 0; i++)
        failed = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, rules[i].call, rules[i].count, rules[i].arguments);
    // A resolver with an interface in its address (fe80::1%eth0) makes the C library try one of these, then an internet socket.
    const struct scmp_arg_cmp local[] = {IS(0, AF_UNIX), OF_TYPE(SOCK_DGRAM)}, proxy[] = {IS(0, AF_UNIX), OF_TYPE(SOCK_STREAM)};
    if (failed == 0) failed = seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), has_proxy ? 2 : 1, local);
    if (failed == 0 && has_proxy) failed = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, proxy);
    if (failed == 0) failed = seccomp_load(filter);
    seccomp_release(filter);
    errno = -failed;
    return failed == 0 ? 0 : -1;
}
