/*
 * A network helper and a guest that writes its frames itself, in a network namespace that stands for the host:
 *
 *   this, as the guest ◄── frames ──► helper ◄──► the host: lo, 192.0.2.7, 198.51.100.1 ◄── veth ──► 198.51.100.2, the neighbour
 *
 *   net-test HELPER
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../launch.h"

enum { LIMIT_MS = 20000, LIMIT_OF_DESCRIPTORS = 1024 };
enum { FIN = 1, SYN = 2, RST = 4, PUSH = 8, ACK = 16 };

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

/* Takes frames until the claim holds. */
#define SOON(claim) \
    do { \
        int is_so; \
        for (long long last = now_ms() + LIMIT_MS; !(is_so = (claim)) && now_ms() < last;) take_frames(20); \
        if (!is_so) { \
            printf("%s:%d: not so in time: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

static void give_up(const char *what) {
    printf("net-test: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* ---- the host ---- */

static int raise_fd(int fd) {
    int high = fcntl(fd, F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    if (fd < 0 || high < 0) give_up("a descriptor");
    close(fd);
    return high;
}

#define RUN(...) run((char *[]){__VA_ARGS__, NULL})
static void run(char **argv) {
    extern char **environ;
    pid_t pid;
    int status;
    errno = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
    if (errno != 0 || waitpid(pid, &status, 0) < 0 || status != 0) give_up(argv[0]);
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) give_up(path);
    close(fd);
}

/* Network and mounts of our own; as an ordinary user by way of a user namespace. */
static void leave_host(void) {
    char map[64];
    unsigned uid = geteuid();
    if (unshare(CLONE_NEWNET | CLONE_NEWNS | (uid == 0 ? 0 : CLONE_NEWUSER)) < 0) give_up("a network namespace cannot be had here");
    if (uid != 0) {
        snprintf(map, sizeof map, "0 %u 1", uid);
        write_file("/proc/self/uid_map", map);
    }
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) give_up("mounts");
}

static socklen_t address(struct sockaddr_storage *to, const char *text, int port) {
    memset(to, 0, sizeof *to);
    struct sockaddr_in *in = (struct sockaddr_in *)to;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)to;
    if (inet_pton(AF_INET, text, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons((uint16_t)port);
        return sizeof *in;
    }
    if (inet_pton(AF_INET6, text, &in6->sin6_addr) != 1) give_up(text);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons((uint16_t)port);
    return sizeof *in6;
}

static int bound(int type, const char *text, int port) {
    struct sockaddr_storage to;
    socklen_t size = address(&to, text, port);
    int fd = socket(to.ss_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0) give_up("an option");
    if (bind(fd, (struct sockaddr *)&to, size) < 0) give_up(text);
    if (type == SOCK_STREAM && listen(fd, 4096) < 0) give_up(text);
    return raise_fd(fd);
}

static int call(const char *text, int port) {
    struct sockaddr_storage to;
    socklen_t size = address(&to, text, port);
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || (connect(fd, (struct sockaddr *)&to, size) < 0 && errno != EINPROGRESS)) {
        close(fd);
        return -1;
    }
    return raise_fd(fd);
}

static int local_port(int fd) {
    struct sockaddr_in here = {0};
    socklen_t size = sizeof here;
    if (getsockname(fd, (struct sockaddr *)&here, &size) < 0) give_up("a client's port");
    return ntohs(here.sin_port);
}

static int is_called(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

/* Sends back what comes, on port 7, for ever. */
static void be_neighbour(int ready) {
    char text[2048];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (unshare(CLONE_NEWNET) < 0) give_up("the neighbour's namespace");
    if (write(ready, "1", 1) != 1 || read(ready, text, 1) != 1) exit(1);
    RUN("ip", "link", "set", "inner", "up");
    RUN("ip", "address", "add", "198.51.100.2/24", "dev", "inner");
    RUN("ip", "address", "add", "2001:db8::2/64", "dev", "inner", "nodad");
    int events = epoll_create1(0), udp = bound(SOCK_DGRAM, "::", 7), tcp = bound(SOCK_STREAM, "::", 7);
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = i == 0 ? udp : tcp};
        epoll_ctl(events, EPOLL_CTL_ADD, event.data.fd, &event);
    }
    if (write(ready, "2", 1) != 1) exit(1);
    for (struct epoll_event event; epoll_wait(events, &event, 1, -1) >= 0;) {
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
        if (event.data.fd == tcp) {
            event.data.fd = accept4(tcp, NULL, NULL, SOCK_NONBLOCK);
            epoll_ctl(events, EPOLL_CTL_ADD, event.data.fd, &event);
            continue;
        }
        ssize_t got = recvfrom(event.data.fd, text, sizeof text, 0, (struct sockaddr *)&from, &size);
        if (event.data.fd == udp) sendto(udp, text, (size_t)got, 0, (struct sockaddr *)&from, size);
        else if (got <= 0) close(event.data.fd);
        else if (send(event.data.fd, text, (size_t)got, MSG_NOSIGNAL) != got) exit(1);
    }
    exit(1);
}

static void set_up_host(void) {
    struct rlimit many;
    getrlimit(RLIMIT_NOFILE, &many);
    many.rlim_cur = many.rlim_max;
    setrlimit(RLIMIT_NOFILE, &many);
    int ends[2];
    char text[16];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) give_up("a pair");
    pid_t pid = fork();
    if (pid == 0) be_neighbour(ends[1]);
    if (read(ends[0], text, 1) != 1) give_up("the neighbour");
    snprintf(text, sizeof text, "%d", (int)pid);
    RUN("ip", "link", "set", "lo", "up");
    RUN("ip", "address", "add", "192.0.2.7/32", "dev", "lo");
    RUN("ip", "link", "add", "outer", "type", "veth", "peer", "name", "inner", "netns", text);
    RUN("ip", "link", "set", "outer", "up");
    RUN("ip", "address", "add", "198.51.100.1/24", "dev", "outer");
    RUN("ip", "address", "add", "2001:db8::1/64", "dev", "outer", "nodad");
    RUN("ip", "route", "add", "default", "via", "198.51.100.2");
    if (write(ends[0], "1", 1) != 1 || read(ends[0], text, 1) != 1) give_up("the neighbour");
    // Its name server is one of its own addresses, as with a resolver that serves a whole house.
    char file[] = "/tmp/net-test-XXXXXX";
    int fd = mkstemp(file);
    if (fd < 0 || fchmod(fd, 0644) < 0) give_up(file);
    write_file(file, "nameserver 198.51.100.1\n");
    if (mount(file, "/etc/resolv.conf", NULL, MS_BIND, NULL) < 0) give_up("/etc/resolv.conf");
    unlink(file);
}

/* ---- the helper ---- */

static const char *helper_path;
static int is_root, nic = -1, control = -1, memory = -1, start_dir = -1;
static pid_t helper;

/* A life of the helper, as the shim starts it: the first says that it is ready, the next know their ports. 0 when it refused. */
static int begin(int is_first, const char *const *words) {
    char *argv[64] = {(char *)helper_path}, line[256] = "";
    for (int i = 0; words[i] != NULL; i++) argv[i + 1] = (char *)words[i];
    int ends[2], ready[2], listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0 || pipe2(ready, O_CLOEXEC) < 0) give_up("a pair");
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    if (bind(listener, (struct sockaddr *)&any, sizeof(sa_family_t)) < 0 || listen(listener, 16) < 0) give_up("a listener");
    nic = raise_fd(ends[0]);
    control = raise_fd(listener);
    int theirs = raise_fd(ends[1]), say = raise_fd(ready[1]), output = raise_fd(dup(STDERR_FILENO));
    const struct descriptor fds[] = {{3, theirs}, {4, control}, {5, memory}, {9, say}};
    helper = launch(&(struct launch){
        .argv = argv,
        .fds = fds,
        .fd_count = is_first ? 4 : 3,
        .stderr_fd = output,
        .has_user = is_root,
        .uid = 650000,
        .gid = 650000,
        .may_bind_low_ports = 1,
        .has_dir = start_dir >= 0,
        .dir_fd = start_dir,
    });
    if (helper < 0) give_up(helper_path);
    close(theirs);
    close(say);
    close(output);
    ssize_t got = is_first ? read(ready[0], line, sizeof line - 1) : 3;
    close(ready[0]);
    if (got != 3) printf("the helper said: %s\n", line);
    return got == 3;
}

#define BEGIN(...) begin_anew((const char *[]){__VA_ARGS__ __VA_OPT__(, ) NULL})
static void begin_anew(const char *const *words) {
    close(memory);
    memory = raise_fd(memfd_create("ports", MFD_CLOEXEC));
    if (!begin(1, words)) give_up("the helper did not come up");
}

#define BEGIN_AGAIN(...) begin_once_more((const char *[]){__VA_ARGS__ __VA_OPT__(, ) NULL})
static void begin_once_more(const char *const *words) {
    if (!begin(0, words)) give_up("the helper did not come up again");
}

static void begin_again(void) { BEGIN_AGAIN(); }

static int lives(void) { return helper > 0 && waitpid(helper, NULL, WNOHANG) == 0; }

static void let_go(void) {
    close(nic);
    close(control);
}

static void end(void) {
    CHECK(lives());
    kill(helper, SIGKILL);
    waitpid(helper, NULL, 0);
    let_go();
}

static const char *ask(const char *question) {
    static char answer[65536];
    struct sockaddr_un to;
    socklen_t length = sizeof to;
    struct timeval limit = {LIMIT_MS / 1000, 0};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (getsockname(control, (struct sockaddr *)&to, &length) < 0 || connect(fd, (struct sockaddr *)&to, length) < 0) give_up("the helper's socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ssize_t got = send(fd, question, strlen(question), MSG_NOSIGNAL) > 0 ? recv(fd, answer, sizeof answer - 1, 0) : -1;
    close(fd);
    answer[got > 0 ? got : 0] = '\0';
    return answer;
}

/* A helper that has nothing to do waits for something to do. */
static int sleeps(void) {
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)helper);
    for (int i = 0; i < 10; i++) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        close(fd);
        text[got > 0 ? got : 0] = '\0';
        const char *rest = strrchr(text, ')');
        if (rest == NULL || rest[2] != 'S') return 0;
        poll(NULL, 0, 1);
    }
    return 1;
}

/* ---- the guest ---- */

#define GUEST "10.0.2.15"
#define GUEST6 "fdd0:6d05:e000::15"

/* What came for one port of the guest's; for its port 80, where it serves, from one port of a client's. */
struct flow {
    int flags, frames, unreachable;
    uint32_t seq, ack;
    char data[64];
};

static struct flow tcp[65536], served[65536], udp[65536];
static int echoes, resolved, advertised;

static void put16(uint8_t *to, unsigned value) { to[0] = (uint8_t)(value >> 8), to[1] = (uint8_t)value; }
static void put32(uint8_t *to, uint32_t value) { put16(to, value >> 16), put16(to + 2, value & 0xffff); }
static unsigned get16(const uint8_t *from) { return (unsigned)from[0] << 8 | from[1]; }
static uint32_t get32(const uint8_t *from) { return (uint32_t)get16(from) << 16 | get16(from + 2); }

static unsigned sum(const uint8_t *bytes, size_t length, unsigned long before) {
    for (size_t i = 0; i < length; i++) before += i % 2 ? bytes[i] : (unsigned)bytes[i] << 8;
    while (before >> 16) before = (before & 0xffff) + (before >> 16);
    return (unsigned)before;
}

static const uint8_t guest_mac[6] = {0x02, 0, 0, 0, 0, 1};

static void send_frame(const uint8_t *frame, size_t length) {
    struct pollfd room = {.fd = nic, .events = POLLOUT};
    if (poll(&room, 1, LIMIT_MS) != 1 || send(nic, frame, length, MSG_NOSIGNAL) < 0) give_up("the helper takes no frames");
}

/* `fragment` is the field of that name in an IPv4 header. The checksum of a whole payload goes to `sum_at`. */
static void send_packet(const char *to, int protocol, uint8_t *payload, size_t length, size_t sum_at, int fragment) {
    static uint8_t frame[2048];
    int is6 = strchr(to, ':') != NULL;
    uint8_t *packet = frame + 14, *addresses = packet + (is6 ? 8 : 12);
    size_t header = is6 ? 40 : 20, size = is6 ? 16 : 4;
    memset(frame, 0, sizeof frame);
    memset(frame, 0x52, 6);
    memcpy(frame + 6, guest_mac, 6);
    put16(frame + 12, is6 ? 0x86dd : 0x0800);
    if (inet_pton(is6 ? AF_INET6 : AF_INET, is6 ? GUEST6 : GUEST, addresses) != 1) give_up("the guest");
    if (inet_pton(is6 ? AF_INET6 : AF_INET, to, addresses + size) != 1) give_up(to);
    if (is6) {
        packet[0] = 0x60, packet[6] = (uint8_t)protocol, packet[7] = 255;
        put16(packet + 4, (unsigned)length);
    } else {
        packet[0] = 0x45, packet[8] = 64, packet[9] = (uint8_t)protocol;
        put16(packet + 2, (unsigned)(header + length));
        put16(packet + 4, 7);
        put16(packet + 6, (unsigned)fragment);
        put16(packet + 10, ~sum(packet, header, 0) & 0xffff);
    }
    if (fragment == 0) {
        unsigned before = protocol == IPPROTO_ICMP ? 0 : sum(addresses, 2 * size, (unsigned long)protocol + length);
        put16(payload + sum_at, 0);
        put16(payload + sum_at, ~sum(payload, length, before) & 0xffff);
    }
    memcpy(packet + header, payload, length);
    send_frame(frame, 14 + header + length);
}

static void send_tcp(const char *to, int from_port, int to_port, int flags, const char *text) {
    const struct flow *flow = from_port == 80 ? &served[to_port] : &tcp[from_port];
    uint8_t segment[128] = {0};
    put16(segment, (unsigned)from_port), put16(segment + 2, (unsigned)to_port);
    put32(segment + 4, flags & ACK ? flow->ack : 1000), put32(segment + 8, flags & ACK ? flow->seq : 0);
    segment[12] = 5 << 4, segment[13] = (uint8_t)flags;
    put16(segment + 14, 60000);
    memcpy(segment + 20, text, strlen(text));
    send_packet(to, IPPROTO_TCP, segment, 20 + strlen(text), 16, 0);
}

static void send_datagram(const char *to, int from_port, int to_port, const void *data, size_t length) {
    uint8_t datagram[600] = {0};
    put16(datagram, (unsigned)from_port), put16(datagram + 2, (unsigned)to_port), put16(datagram + 4, (unsigned)(8 + length));
    memcpy(datagram + 8, data, length);
    send_packet(to, IPPROTO_UDP, datagram, 8 + length, 6, 0);
}

static void send_udp(const char *to, int from_port, int to_port, const char *text) { send_datagram(to, from_port, to_port, text, strlen(text)); }

/* The same in two fragments, the ports in the first: the second cannot be judged alone. */
static void send_fragments(const char *to, int from_port, int to_port) {
    uint8_t datagram[24] = {0};
    put16(datagram, (unsigned)from_port), put16(datagram + 2, (unsigned)to_port), put16(datagram + 4, 24);
    memset(datagram + 8, 'f', 16);
    send_packet(to, IPPROTO_UDP, datagram, 16, 6, 0x2000);
    send_packet(to, IPPROTO_UDP, datagram + 16, 8, 6, 2);
}

/* A connection request whose flags are in its second fragment. */
static void send_syn_in_fragments(const char *to, int from_port, int to_port) {
    uint8_t segment[24] = {0}, addresses[8];
    put16(segment, (unsigned)from_port), put16(segment + 2, (unsigned)to_port), put32(segment + 4, 1000);
    segment[12] = 6 << 4, segment[13] = SYN;
    memset(segment + 20, 1, 4);
    inet_pton(AF_INET, GUEST, addresses), inet_pton(AF_INET, to, addresses + 4);
    put16(segment + 16, ~sum(segment, sizeof segment, sum(addresses, 8, IPPROTO_TCP + sizeof segment)) & 0xffff);
    send_packet(to, IPPROTO_TCP, segment, 8, 0, 0x2000);
    send_packet(to, IPPROTO_TCP, segment + 8, 16, 0, 1);
}

static void send_ping(const char *to) {
    uint8_t echo[16] = {8};
    if (strchr(to, ':') != NULL) echo[0] = 128;
    send_packet(to, echo[0] == 8 ? IPPROTO_ICMP : IPPROTO_ICMPV6, echo, sizeof echo, 2, 0);
}

/* ARP, and its like for IPv6: what the guest's kernel does unasked. */
static void resolve(void) {
    uint8_t arp[42] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    memcpy(arp + 6, guest_mac, 6);
    memcpy(arp + 12, "\x08\x06\0\x01\x08\0\x06\x04\0\x01", 10);
    memcpy(arp + 22, guest_mac, 6);
    inet_pton(AF_INET, GUEST, arp + 28);
    inet_pton(AF_INET, "10.0.2.2", arp + 38);
    send_frame(arp, sizeof arp);
    uint8_t advertisement[32] = {136, 0, 0, 0, 0x20, [24] = 2, 1};
    inet_pton(AF_INET6, GUEST6, advertisement + 8);
    memcpy(advertisement + 26, guest_mac, 6);
    send_packet("fdd0:6d05:e000::2", IPPROTO_ICMPV6, advertisement, sizeof advertisement, 2, 0);
}

static void take_tcp(const uint8_t *segment, size_t length) {
    int client = (int)get16(segment), port = (int)get16(segment + 2);
    struct flow *flow = port == 80 ? &served[client] : &tcp[port];
    size_t header = (size_t)(segment[12] >> 4) * 4, data = length - header;
    flow->frames++;
    flow->flags |= segment[13];
    flow->seq = get32(segment + 4) + (uint32_t)data + ((segment[13] & (SYN | FIN)) != 0);
    if (segment[13] & ACK) flow->ack = get32(segment + 8);
    if (data > 0) snprintf(flow->data, sizeof flow->data, "%.*s", (int)data, (const char *)segment + header);
}

static void take_udp(const uint8_t *datagram, size_t length) {
    struct flow *flow = &udp[get16(datagram + 2)];
    flow->frames++;
    snprintf(flow->data, sizeof flow->data, "%.*s", (int)length - 8, (const char *)datagram + 8);
}

static void take_frame(const uint8_t *frame, size_t length) {
    int is6 = get16(frame + 12) == 0x86dd;
    if (get16(frame + 12) == 0x0806) {
        if (frame[21] == 1) resolve();
        else resolved++;
        return;
    }
    size_t header = is6 ? 40 : 20;
    const uint8_t *packet = frame + 14, *payload = packet + header;
    size_t rest = is6 ? get16(packet + 4) : get16(packet + 2) - header;
    if (length < 14 + header + rest || rest < 8) return;
    int protocol = is6 ? packet[6] : packet[9];
    if (protocol == IPPROTO_TCP) take_tcp(payload, rest);
    else if (protocol == IPPROTO_UDP) take_udp(payload, rest);
    else if (protocol == IPPROTO_ICMPV6) advertised += payload[0] == 134;
    else if (protocol == IPPROTO_ICMP && payload[0] == 0) echoes++;
    else if (protocol == IPPROTO_ICMP && payload[0] == 3 && rest >= 36) (payload[17] == IPPROTO_TCP ? tcp : udp)[get16(payload + 28)].unreachable++;
}

static void take_frames(int wait_ms) {
    static uint8_t frame[65536 + 64];
    struct pollfd waiting = {.fd = nic, .events = POLLIN};
    if (poll(&waiting, 1, wait_ms) != 1) return;
    for (ssize_t got; (got = recv(nic, frame, sizeof frame, MSG_DONTWAIT)) > 0;) take_frame(frame, (size_t)got);
}

/* All that was sent before has been seen to when the gateway has answered. */
static void settle(void) {
    int before = echoes;
    send_ping("10.0.2.2");
    SOON(echoes > before);
}

static void boot_guest(void) {
    memset(tcp, 0, sizeof tcp), memset(served, 0, sizeof served), memset(udp, 0, sizeof udp);
    resolved = 0;
    resolve();
    SOON(resolved > 0);
}

static int is_open(const struct flow *flow) { return (flow->flags & (SYN | ACK | RST)) == (SYN | ACK); }

static int count(const struct flow *flows, int flags) {
    int found = 0;
    for (int i = 0; i < 65536; i++) found += (flows[i].flags & flags) == flags;
    return found;
}

/* What a connection says is said back by the neighbour. */
static void converse(const char *to, int port, const char *text) {
    send_tcp(to, port, 7, ACK | PUSH, text);
    SOON(strcmp(tcp[port].data, text) == 0);
}

/* ---- the promises ---- */

static void an_empty_packet_is_no_end(void) {
    BEGIN();
    boot_guest();
    send_frame((const uint8_t *)"", 0);
    settle();
    CHECK(lives());
    // The VMM's end is: it closes its end.
    let_go();
    int status = -1;
    for (long long last = now_ms() + LIMIT_MS; waitpid(helper, &status, WNOHANG) == 0 && now_ms() < last;) poll(NULL, 0, 5);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#define PORTS \
    "tcp:127.0.0.1:8001:80", "tcp:127.0.0.1:8002:80", "tcp:127.0.0.1:8003:80", "tcp:127.0.0.1:8004:80", "tcp:127.0.0.1:8005:80", \
        "tcp:127.0.0.1:8006:80", "udp:127.0.0.1:8007:7"

static void all_ports_are_there(void) {
    const char *const words[] = {PORTS};
    char answer[4096];
    snprintf(answer, sizeof answer, "%s", ask("ports\n"));
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) CHECK(strstr(answer, words[i]) != NULL);
    for (int port = 8001; port <= 8006; port++) {
        int client = call("127.0.0.1", port);
        struct flow *flow = &served[local_port(client)];
        memset(flow, 0, sizeof *flow);
        SOON(flow->flags & SYN);
        close(client);
    }
}

/* Starts a life that is killed by the kernel as it binds one of its later ports. */
static void a_life_that_ends_midway(void) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        // listen(2) as libslirp calls it: no one else here has a backlog of 1.
        struct sock_filter steps[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_listen, 0, 5),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
            BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 8, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {sizeof steps / sizeof *steps, steps};
        int status;
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) _exit(2);
        begin_again();
        _exit(waitpid(helper, &status, 0) == helper && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS ? 0 : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void ports_survive_every_life(void) {
    BEGIN(PORTS);
    boot_guest();
    all_ports_are_there();
    end();
    begin_again();
    boot_guest();
    all_ports_are_there();
    end();
    a_life_that_ends_midway();
    begin_again();
    boot_guest();
    all_ports_are_there();
    end();
    // One is taken for the length of a life.
    int other = bound(SOCK_STREAM, "127.0.0.1", 8003);
    begin_again();
    boot_guest();
    CHECK(strstr(ask("ports\n"), ":8003:") == NULL);
    end();
    close(other);
    begin_again();
    boot_guest();
    all_ports_are_there();
    CHECK(strcmp(ask("remove tcp:127.0.0.1:8002:80\n"), "ok\n") == 0);
    end();
    begin_again();
    boot_guest();
    CHECK(strstr(ask("ports\n"), ":8002:") == NULL && strstr(ask("ports\n"), ":8006:") != NULL);
    end();
}

static void no_one_hands_out_addresses_or_files(void) {
    BEGIN("udp:127.0.0.1:8053:5353", "udp:127.0.0.1:8068:68");
    boot_guest();
    int bootp = bound(SOCK_DGRAM, "127.0.0.1", 67), tftp = bound(SOCK_DGRAM, "127.0.0.1", 69);
    static const char request[] = "\0\1file\0octet";
    uint8_t discover[300] = {1, 1, 6, [236] = 0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255};
    send_datagram("10.0.2.2", 5353, 69, request, sizeof request);
    send_datagram("10.0.2.2", 68, 67, discover, sizeof discover);
    send_datagram("255.255.255.255", 68, 67, discover, sizeof discover);
    send_datagram("fdd0:6d05:e000::2", 5353, 69, request, sizeof request);
    send_datagram("ff02::1:2", 546, 547, "\x0b\1\2\3", 4);
    uint8_t solicitation[8] = {133};
    send_packet("ff02::2", IPPROTO_ICMPV6, solicitation, sizeof solicitation, 2, 0);
    settle();
    CHECK(udp[5353].frames == 0 && udp[68].frames == 0 && udp[546].frames == 0 && advertised == 0);
    send_udp("10.0.2.2", 5353, 69, "no client of mine");
    send_udp("10.0.2.2", 68, 67, "no client of mine");
    settle();
    char text[64];
    CHECK(recv(tftp, text, sizeof text, 0) < 0 && recv(bootp, text, sizeof text, 0) < 0);
    close(bootp), close(tftp);
    end();
}

static void guests_reach_neighbours(void) {
    static const char *const neighbours[] = {"198.51.100.2", "2001:db8::2"};
    for (int i = 0; i < 2; i++) {
        send_tcp(neighbours[i], 2000 + i, 7, SYN, "");
        SOON(is_open(&tcp[2000 + i]));
        send_tcp(neighbours[i], 2000 + i, 7, ACK, "");
        converse(neighbours[i], 2000 + i, "over TCP");
        send_udp(neighbours[i], 2000 + i, 7, "over UDP");
        SOON(strcmp(udp[2000 + i].data, "over UDP") == 0);
    }
}

/* Everything that a guest might send to port 9000 of an address; how much of it arrived. */
static int knock(const char *to, int listener, int datagrams) {
    static int port = 20000;
    char text[64];
    int is4 = strchr(to, ':') == NULL, arrived = 0;
    send_tcp(to, port, 9000, SYN, "");
    send_tcp(to, port + 1, 9000, SYN | PUSH, "");
    send_udp(to, port, 9000, "knock");
    if (is4) {
        send_fragments(to, port + 2, 9000);
        send_syn_in_fragments(to, port + 2, 9000);
    }
    port += 3;
    settle();
    while (is_called(listener)) arrived++;
    while (recv(datagrams, text, sizeof text, 0) >= 0) arrived++;
    return arrived;
}

static void published_ports_serve_the_host(const char *from) {
    struct sockaddr_storage peer;
    char text[64];
    socklen_t size;
    // Over TCP.
    int client = call(from, 8080), port = local_port(client);
    SOON(served[port].flags & SYN);
    const char *seen = strcmp(from, "127.0.0.1") == 0 ? "10.0.2.2" : strcmp(from, "::1") == 0 ? "fdd0:6d05:e000::2" : from;
    send_tcp(seen, 80, port, SYN | ACK, "");
    SOON(served[port].flags & ACK);
    send_tcp(seen, 80, port, ACK | PUSH, "served");
    memset(text, 0, sizeof text);
    SOON(recv(client, text, sizeof text - 1, 0) > 0);
    CHECK(strcmp(text, "served") == 0);
    close(client);
    // Over UDP, and only to who has asked.
    int asking = bound(SOCK_DGRAM, from, 9100), other = bound(SOCK_DGRAM, from, 9101);
    size = address(&peer, from, 8007);
    send_udp(seen, 7, 9100, "early");
    settle();
    CHECK(recv(asking, text, sizeof text, 0) < 0);
    CHECK(sendto(asking, "question", 8, 0, (struct sockaddr *)&peer, size) == 8);
    SOON(strcmp(udp[7].data, "question") == 0);
    udp[7].data[0] = '\0';
    send_udp(seen, 7, 9101, "not asked");
    send_udp(seen, 7, 9100, "answer");
    memset(text, 0, sizeof text);
    SOON(recv(asking, text, sizeof text - 1, 0) > 0);
    CHECK(strcmp(text, "answer") == 0);
    CHECK(recv(other, text, sizeof text, 0) < 0);
    close(asking), close(other);
}

static int is_told(const char *question, const char *wanted) { return strcmp(ask(question), wanted) == 0; }

static void connections_to_ports_are_counted(void) {
    static char many[32 * 1024] = "inbound";
    BEGIN("tcp:0.0.0.0:8080:80", "tcp:127.0.0.1:8081:80", "tcp:[::]:8082:82", "udp:0.0.0.0:8007:7");
    boot_guest();
    CHECK(is_told("inbound\n", "ok 0 -\n"));
    guests_reach_neighbours();
    int datagrams = bound(SOCK_DGRAM, "127.0.0.1", 9100);
    struct sockaddr_storage peer;
    socklen_t size = address(&peer, "127.0.0.1", 8007);
    CHECK(sendto(datagrams, "question", 8, 0, (struct sockaddr *)&peer, size) == 8);
    SOON(strcmp(udp[7].data, "question") == 0);
    CHECK(is_told("inbound\n", "ok 0 -\n"));

    int one = call("198.51.100.1", 8080), two = call("127.0.0.1", 8081), three = call("2001:db8::1", 8082);
    int port = local_port(one), second = local_port(two);
    SOON(is_told("inbound\n", "ok 3 0\n"));
    CHECK(is_told("inbound 80\n", "ok 1 0\n"));
    CHECK(is_told("inbound 2001:db8::/32\n", "ok 2 0\n"));
    CHECK(is_told("inbound 81 198.51.100.0/24 2001:db8::1/128\n", "ok 1 0\n"));
    CHECK(strncmp(ask("inbound 0.0.0.0/0 ::/0\n"), "ok 0 ", 5) == 0);
    // The guest ends the first two. Those of a port that was withdrawn go on, and count.
    SOON((served[port].flags & SYN) && (served[second].flags & SYN));
    send_tcp("198.51.100.1", 80, port, SYN | ACK, "");
    SOON(served[port].flags & ACK);
    send_tcp("198.51.100.1", 80, port, RST | ACK, "");
    SOON(is_told("inbound\n", "ok 2 0\n"));
    CHECK(is_told("remove tcp:127.0.0.1:8081:80\n", "ok\n"));
    CHECK(is_told("inbound\n", "ok 2 0\n"));
    send_tcp("10.0.2.2", 80, second, SYN | ACK, "");
    SOON(served[second].flags & ACK);
    send_tcp("10.0.2.2", 80, second, RST | ACK, "");
    SOON(is_told("inbound\n", "ok 1 0\n"));

    // The client ends this one first. It is over once the guest has said so too, although its descriptor is held for a while.
    int four = call("127.0.0.1", 8080), fourth = local_port(four);
    SOON(served[fourth].flags & SYN);
    send_tcp("10.0.2.2", 80, fourth, SYN | ACK, "");
    SOON(served[fourth].flags & ACK);
    CHECK(is_told("inbound\n", "ok 2 0\n"));
    shutdown(four, SHUT_WR);
    SOON(served[fourth].flags & FIN);
    CHECK(is_told("inbound\n", "ok 2 0\n"));
    send_tcp("10.0.2.2", 80, fourth, FIN | ACK, "");
    SOON(is_told("inbound\n", "ok 1 0\n"));
    CHECK(strncmp(ask("inbound 2001:db8::/32\n"), "ok 0 ", 5) == 0);
    close(four);

    for (int i = 0; i < 256; i++) snprintf(many + strlen(many), sizeof many - strlen(many), " %d 2001:db8:%x:ffff:ffff:ffff:ffff:ffff/128", 20000 + i, i);
    strcat(many, "\n");
    CHECK(is_told(many, "ok 1 0\n"));
    CHECK(strncmp(ask("inbound nonsense\n"), "error", 5) == 0);
    CHECK(strncmp(ask("inbound 10.0.0.0/33\n"), "error", 5) == 0);
    CHECK(is_told("inbound\n", "ok 1 0\n"));
    close(one), close(two), close(three), close(datagrams);
    end();
}

static void the_name_server_answers(void) {
    int server = bound(SOCK_DGRAM, "198.51.100.1", 53);
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    char text[64];
    send_udp("10.0.2.3", 3000, 53, "name?");
    SOON(recvfrom(server, text, sizeof text, 0, (struct sockaddr *)&from, &size) == 5);
    CHECK(sendto(server, "name!", 5, 0, (struct sockaddr *)&from, size) == 5);
    SOON(strcmp(udp[3000].data, "name!") == 0);
    close(server);
}

static void the_host_is_closed_unless_it_is_opened(void) {
    static const char *const loopback[] = {"127.0.0.1", "10.0.2.2", "::1", "fdd0:6d05:e000::2", "::ffff:127.0.0.1"};
    static const char *const own[] = {"192.0.2.7", "198.51.100.1", "198.51.100.255", "224.0.0.251", "2001:db8::1"};
    int four = bound(SOCK_STREAM, "0.0.0.0", 9000), four_udp = bound(SOCK_DGRAM, "0.0.0.0", 9000);
    int six = bound(SOCK_STREAM, "2001:db8::1", 9000), six_udp = bound(SOCK_DGRAM, "2001:db8::1", 9000);
    struct ip_mreq group = {{inet_addr("224.0.0.251")}, {inet_addr("198.51.100.1")}};
    CHECK(setsockopt(four_udp, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0);
#define KNOCK(to) knock(to, strchr(to, ':') ? six : four, strchr(to, ':') ? six_udp : four_udp)
    BEGIN("tcp:0.0.0.0:8080:80", "udp:0.0.0.0:8007:7", "tcp:[::]:8080:80", "udp:[::]:8007:7");
    boot_guest();
    guests_reach_neighbours();
    for (size_t i = 0; i < sizeof loopback / sizeof *loopback; i++) CHECK(KNOCK(loopback[i]) == 0);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) CHECK(KNOCK(own[i]) == 0);
    // Those that come later too, and those that no interface has.
    RUN("ip", "address", "add", "203.0.113.9/32", "dev", "lo");
    CHECK(KNOCK("203.0.113.9") == 0);
    RUN("ip", "route", "add", "local", "203.0.113.64/26", "dev", "lo");
    CHECK(KNOCK("203.0.113.70") == 0);
    int before = echoes;
    send_ping("198.51.100.1");
    send_ping("2001:db8::1");
    settle();
    CHECK(echoes == before + 1);
    // The loopback last: libslirp remembers of a port whom it has answered.
    published_ports_serve_the_host("198.51.100.1");
    published_ports_serve_the_host("127.0.0.1");
    published_ports_serve_the_host("2001:db8::1");
    published_ports_serve_the_host("::1");
    the_name_server_answers();
    guests_reach_neighbours();
    end();

    BEGIN("--open-host", "tcp:0.0.0.0:8080:80", "udp:0.0.0.0:8007:7");
    boot_guest();
    for (size_t i = 0; i < sizeof loopback / sizeof *loopback; i++) CHECK(KNOCK(loopback[i]) == 0);
    CHECK(KNOCK("192.0.2.7") == 5);
    CHECK(KNOCK("224.0.0.251") == 2);
    CHECK(KNOCK("2001:db8::1") == 3);
    published_ports_serve_the_host("127.0.0.1");
    the_name_server_answers();
    end();
    close(four), close(four_udp), close(six), close(six_udp);
}

static void a_flood_of_connections_is_outlived(void) {
    enum { FIRST = 10000, LAST = FIRST + 1200 };
    BEGIN("tcp:127.0.0.1:8080:80");
    boot_guest();
    guests_reach_neighbours();
    for (int port = FIRST; port < LAST; port++) {
        send_tcp("198.51.100.2", port, 7, SYN, "");
        if (port % 20 == 0) settle();
    }
    int opened = 0, refused = 0;
    for (long long last = now_ms() + LIMIT_MS; now_ms() < last;) {
        opened = refused = 0;
        for (int port = FIRST; port < LAST; port++) opened += is_open(&tcp[port]), refused += tcp[port].unreachable > 0;
        if (opened + refused == LAST - FIRST) break;
        take_frames(20);
    }
    CHECK(opened + refused == LAST - FIRST);
    CHECK(opened > LIMIT_OF_DESCRIPTORS * 9 / 10 && refused > 0);
    for (int port = FIRST; port < LAST; port++)
        if (is_open(&tcp[port])) send_tcp("198.51.100.2", port, 7, ACK, "");
    // What was there goes on, the daemon is answered, and a client who must wait is waited for asleep.
    converse("198.51.100.2", 2000, "still here");
    CHECK(strncmp(ask("traffic\n"), "ok ", 3) == 0);
    int client = call("127.0.0.1", 8080);
    CHECK(client >= 0);
    settle();
    SOON(sleeps());
    CHECK(count(served, SYN) == 0);
    // Room, at last.
    for (int port = FIRST; port < FIRST + 400; port++) send_tcp("198.51.100.2", port, 7, RST | ACK, "");
    SOON(count(served, SYN) == 1);
    send_tcp("198.51.100.2", 2100, 7, SYN, "");
    SOON(is_open(&tcp[2100]));
    close(client);
    end();
}

static void a_flood_of_datagrams_is_outlived(void) {
    BEGIN("tcp:127.0.0.1:8080:80");
    boot_guest();
    guests_reach_neighbours();
    for (int port = 10000; port < 11200; port++) {
        send_udp("198.51.100.2", port, 7, "flood");
        if (port % 20 == 0) settle();
    }
    settle();
    converse("198.51.100.2", 2000, "still here");
    send_udp("198.51.100.2", 2000, 7, "here too");
    SOON(strcmp(udp[2000].data, "here too") == 0);
    CHECK(strncmp(ask("traffic\n"), "ok ", 3) == 0);
    SOON(sleeps());
    end();
}

static void a_flood_of_clients_leaves_the_guest_its_own(void) {
    enum { CLIENTS = 1200 };
    static int clients[CLIENTS];
    BEGIN("tcp:127.0.0.1:8080:80");
    boot_guest();
    guests_reach_neighbours();
    // The kernel holds back those who are not accepted yet, so they are let in one after the other.
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = call("127.0.0.1", 8080);
        CHECK(clients[i] >= 0);
        if (i < LIMIT_OF_DESCRIPTORS * 3 / 4 - 8) SOON(count(served, SYN) == i + 1);
    }
    settle();
    SOON(sleeps());
    int before = count(served, SYN);
    CHECK(before <= LIMIT_OF_DESCRIPTORS * 3 / 4);
    send_tcp("198.51.100.2", 2100, 7, SYN, "");
    SOON(is_open(&tcp[2100]));
    converse("198.51.100.2", 2000, "still here");
    for (int port = 0; port < 65536; port++)
        if (served[port].flags & SYN) send_tcp("10.0.2.2", 80, port, RST | ACK, "");
    SOON(count(served, SYN) > before);
    for (int i = 0; i < CLIENTS; i++) close(clients[i]);
    end();
}

static unsigned long long from_guest(void) {
    unsigned long long to = 0, from = 0;
    sscanf(ask("traffic\n"), "ok %llu %llu", &to, &from);
    return from;
}

/* Bytes a second that a guest gets rid of which sends all that it can. */
static double pace_of_flood(void) {
    static const uint8_t data[512];
    unsigned long long before = from_guest();
    long long began = now_ms();
    while (now_ms() - began < 1500) {
        for (int i = 0; i < 8; i++) send_datagram("198.51.100.2", 2000, 7, data, sizeof data);
        take_frames(0);
    }
    return (double)(from_guest() - before) * 1000 / (double)(now_ms() - began);
}

static void a_guest_is_as_fast_as_it_may_be(void) {
    BEGIN("--rates", "0 1000000");
    boot_guest();
    guests_reach_neighbours();
    double pace = pace_of_flood();
    CHECK(pace > 0.9e6 && pace < 1.15e6);
    // Changed as it runs, and kept by whoever comes after.
    CHECK(strcmp(ask("rates 0 300000\n"), "ok\n") == 0);
    CHECK(strcmp(ask("rates 0 fast\n"), "error not two rates\n") == 0);
    CHECK(strcmp(ask("rates 1\n"), "error not two rates\n") == 0);
    end();
    begin_again();
    boot_guest();
    pace = pace_of_flood();
    CHECK(pace > 0.25e6 && pace < 0.45e6);
    CHECK(strcmp(ask("rates 0 0\n"), "ok\n") == 0);
    CHECK(pace_of_flood() > 2e6);
    end();
}

/* ---- a proxy as the way out ---- */

/* In a directory that no path leads the helper to, since the one above it is closed. */
static char closed_dir[] = "/tmp/net-test-XXXXXX";

static int offer_proxy(int backlog) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(to.sun_path, sizeof to.sun_path, "%s/guest/guest.sock", closed_dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(fd, (struct sockaddr *)&to, sizeof to) < 0 || chmod(to.sun_path, 0666) < 0 || listen(fd, backlog) < 0) give_up(to.sun_path);
    return raise_fd(fd);
}

static void withdraw_proxy(int listener) {
    char path[64];
    snprintf(path, sizeof path, "%s/guest/guest.sock", closed_dir);
    close(listener);
    if (unlink(path) < 0) give_up(path);
}

static void make_closed_dir(void) {
    char path[64];
    if (mkdtemp(closed_dir) == NULL) give_up(closed_dir);
    snprintf(path, sizeof path, "%s/guest", closed_dir);
    if (mkdir(path, 0755) < 0 || chmod(path, 0711) < 0) give_up(path);
    start_dir = raise_fd(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static void remove_closed_dir(void) {
    char path[64];
    snprintf(path, sizeof path, "%s/guest", closed_dir);
    close(start_dir);
    start_dir = -1;
    if (rmdir(path) < 0 || rmdir(closed_dir) < 0) give_up(path);
}

static int accept_soon(int listener) {
    int fd = -1;
    SOON((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0);
    return fd < 0 ? -1 : raise_fd(fd);
}

static void talk_to_proxy(int listener, int port) {
    char text[64] = "";
    memset(&tcp[port], 0, sizeof tcp[port]);
    send_tcp("10.0.2.4", port, 3128, SYN, "");
    SOON(is_open(&tcp[port]));
    send_tcp("10.0.2.4", port, 3128, ACK, "");
    int fd = accept_soon(listener);
    if (fd < 0) return;
    send_tcp("10.0.2.4", port, 3128, ACK | PUSH, "CONNECT");
    SOON(recv(fd, text, sizeof text - 1, 0) > 0);
    CHECK(strcmp(text, "CONNECT") == 0);
    CHECK(send(fd, "200", 3, MSG_NOSIGNAL) == 3);
    SOON(strcmp(tcp[port].data, "200") == 0);
    close(fd);
    SOON(tcp[port].flags & (FIN | RST));
    send_tcp("10.0.2.4", port, 3128, RST | ACK, "");
}

/* The proxy has said all, and the guest leaves its side open. */
static void be_left_by_proxy(int listener, int port, int is_gone, const char *more) {
    memset(&tcp[port], 0, sizeof tcp[port]);
    send_tcp("10.0.2.4", port, 3128, SYN, "");
    SOON(is_open(&tcp[port]));
    send_tcp("10.0.2.4", port, 3128, ACK, "");
    int fd = accept_soon(listener);
    if (fd < 0) return;
    CHECK(send(fd, "403", 3, MSG_NOSIGNAL) == 3);
    SOON(strcmp(tcp[port].data, "403") == 0);
    if (is_gone)
        close(fd);
    else
        shutdown(fd, SHUT_WR);
    SOON(tcp[port].flags & (FIN | RST));
    send_tcp("10.0.2.4", port, 3128, ACK, "");
    if (more[0] != '\0') send_tcp("10.0.2.4", port, 3128, ACK | PUSH, more);
    SOON(sleeps());
    send_tcp("10.0.2.4", port, 3128, RST | ACK, "");
    if (!is_gone) close(fd);
}

/* At once: the next that is sent is answered after it. */
static int is_reset(const char *to, int port) {
    static int from = 40000;
    struct flow *flow = &tcp[++from];
    memset(flow, 0, sizeof *flow);
    send_tcp(to, from, port, SYN, "");
    settle();
    int is_one = flow->frames == 1 && flow->flags == (RST | ACK) && flow->ack == 1001;
    // With data, as a client may that has spoken with that server before, and the end in the same segment.
    send_tcp(to, ++from, port, SYN | FIN, "early");
    settle();
    return is_one && tcp[from].frames == 1 && tcp[from].flags == (RST | ACK) && tcp[from].ack == 1007;
}

static const char *const places[] = {"198.51.100.2", "2001:db8::2", "192.0.2.7", "203.0.113.1", "10.0.2.2", "10.0.2.3", "fdd0:6d05:e000::3"};

static void direct_connections_are_refused(void) {
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        for (int j = 0; j < 3; j++) CHECK(is_reset(places[i], (const int[]){7, 80, 443}[j]));
    CHECK(is_reset("10.0.2.4", 3129));
    CHECK(is_reset("198.51.100.2", 53));
    memset(&tcp[2001], 0, sizeof tcp[2001]);
    send_syn_in_fragments("198.51.100.2", 2001, 7);
    settle();
    CHECK(tcp[2001].frames == 0);
    // What is no TCP is left alone.
    udp[2002].data[0] = '\0';
    send_udp("198.51.100.2", 2002, 7, "over UDP");
    SOON(strcmp(udp[2002].data, "over UDP") == 0);
    int server = bound(SOCK_STREAM, "198.51.100.1", 53);
    send_tcp("10.0.2.3", 2003, 53, SYN, "");
    SOON(is_called(server));
    close(server);
    the_name_server_answers();
}

static void a_proxy_is_the_way_out(void) {
    make_closed_dir();
    int proxy = offer_proxy(1024);
#define EGRESS "--egress", "all", "guest.sock"
    BEGIN(EGRESS, "tcp:0.0.0.0:8080:80", "udp:0.0.0.0:8007:7", "tcp:[::]:8080:80", "udp:[::]:8007:7");
    boot_guest();
    talk_to_proxy(proxy, 2010);
    unsigned long long to = 0, before = 0;
    sscanf(ask("traffic\n"), "ok %llu", &before);
    direct_connections_are_refused();
    sscanf(ask("traffic\n"), "ok %llu", &to);
    CHECK(to - before >= 2 * 3 * 54 * sizeof places / sizeof *places);
    published_ports_serve_the_host("198.51.100.1");
    published_ports_serve_the_host("127.0.0.1");
    published_ports_serve_the_host("2001:db8::1");
    published_ports_serve_the_host("::1");
    end();
    BEGIN_AGAIN(EGRESS);
    boot_guest();
    direct_connections_are_refused();
    talk_to_proxy(proxy, 2011);
    CHECK(strstr(ask("ports\n"), "tcp:0.0.0.0:8080:80") != NULL);

    // One that takes no one holds up no one else, one that is gone neither; and who comes in its place is found.
    withdraw_proxy(proxy);
    proxy = offer_proxy(1);
    for (int port = 2100; port < 2110; port++) {
        send_tcp("10.0.2.4", port, 3128, SYN, "");
        SOON(is_open(&tcp[port]));
        send_tcp("10.0.2.4", port, 3128, ACK, "");
    }
    for (int port = 2105; port < 2110; port++) SOON(tcp[port].flags & (FIN | RST));
    CHECK(strncmp(ask("traffic\n"), "ok ", 3) == 0);
    withdraw_proxy(proxy);
    send_tcp("10.0.2.4", 2200, 3128, SYN, "");
    SOON(is_open(&tcp[2200]));
    send_tcp("10.0.2.4", 2200, 3128, ACK, "");
    SOON(tcp[2200].flags & (FIN | RST));
    proxy = offer_proxy(1024);
    talk_to_proxy(proxy, 2012);
    SOON(sleeps());
    be_left_by_proxy(proxy, 2020, 1, "");
    be_left_by_proxy(proxy, 2021, 0, "");
    be_left_by_proxy(proxy, 2022, 1, "more");
    be_left_by_proxy(proxy, 2023, 0, "more");
    end();

    BEGIN("--egress", "http_https_only", "guest.sock", "tcp:127.0.0.1:8080:80");
    boot_guest();
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) CHECK(is_reset(places[i], 80) && is_reset(places[i], 443));
    guests_reach_neighbours();
    talk_to_proxy(proxy, 2013);
    end();
    withdraw_proxy(proxy);
    remove_closed_dir();
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
#define TEST(name) {#name, name}
        TEST(an_empty_packet_is_no_end),
        TEST(ports_survive_every_life),
        TEST(no_one_hands_out_addresses_or_files),
        TEST(the_host_is_closed_unless_it_is_opened),
        TEST(connections_to_ports_are_counted),
        TEST(a_flood_of_connections_is_outlived),
        TEST(a_flood_of_datagrams_is_outlived),
        TEST(a_flood_of_clients_leaves_the_guest_its_own),
        TEST(a_guest_is_as_fast_as_it_may_be),
        TEST(a_proxy_is_the_way_out),
    };
    if (argc < 2) give_up("usage: net-test HELPER [TEST]");
    helper_path = realpath(argv[1], NULL);
    if (helper_path == NULL) give_up(argv[1]);
    is_root = geteuid() == 0;
    leave_host();
    set_up_host();
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (argc > 2 && strcmp(argv[2], tests[i].name) != 0) continue;
        int before = failures;
        tests[i].run();
        if (failures > before) printf("in %s\n", tests[i].name);
    }
    return failures != 0;
}
