/*
 * dormouse-net: the user-space network of one guest, made of libslirp, for hosts and users without a bridge.
 *
 *   guest ◄── frames ──► QEMU ◄── one packet per frame, descriptor 3 ──► this ──► the host's own sockets
 *
 * A process of its own and not QEMU's built-in network, so that the host's loopback is closed to guests, ports come and go while the
 * VM runs, what passes can be counted, and a bug in a packet parser is neither in QEMU's address space nor in the shim's. It runs as
 * the VM's user with one capability: to bind the ports below 1024 that it is told to publish.
 *
 *   dormouse-net [--egress MODE SOCKET] [--open-host] [--rates 'TO FROM'] PORT..
 *
 * PORT is PROTOCOL:ADDRESS:HOSTPORT:GUESTPORT; TO and FROM are bytes a second to the guest and from it, 0 for no limit. With MODE, `all` or
 * `http_https_only`, the guest opens no such TCP connections itself, and has the unix socket SOCKET for a proxy, at 10.0.2.4:3128.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "net.h"

enum { MTU = 65520, FRAME = 65536 + 64, LONGEST_WAIT_MS = 60 * 1000 };

static struct net net;

static int64_t now_ns(void *opaque) {
    (void)opaque;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void give_guest(const void *frame, size_t length) {
    // A guest that does not read loses frames, as on any wire.
    if (send(NIC_FD, frame, length, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)length) return;
    net.to_guest_bytes += length;
    spend(&net.to_guest, length);
}

static ssize_t send_packet(const void *packet, size_t length, void *opaque) {
    (void)opaque;
    static uint8_t copy[FRAME];
    const void *frame = packet;
    // libslirp shows a client on the loopback as the gateway only until the port has answered someone else.
    if (length <= sizeof copy && shows_loopback(packet, length)) {
        show_gateway(memcpy(copy, packet, length), length);
        frame = copy;
    }
    give_guest(frame, length);
    note_to_guest(frame, length, now_ns(NULL) / 1000000);
    return (ssize_t)length;
}

static void guest_error(const char *message, void *opaque) {
    (void)message;
    (void)opaque;
}

/* libslirp's one timer advertises a router. A guest is told its addresses, and would give itself another for that: it is never due. */
static void *timer_new(SlirpTimerId id, void *cb_opaque, void *opaque) {
    (void)id;
    (void)cb_opaque;
    return opaque;
}

static void ignore_timer(void *timer, void *opaque) {
    (void)timer;
    (void)opaque;
}

static void ignore_due(void *timer, int64_t due_ms, void *opaque) {
    (void)timer;
    (void)due_ms;
    (void)opaque;
}

/*
 * Descriptors run out before anything else when guest or clients open connections without end. The guest may use them all; clients of
 * published ports are let in up to three quarters, so that they do not take the guest's own network from it. Others wait in the
 * kernel's queue, and their listeners are not looked at: libslirp cannot accept them, and would be woken for them again and again.
 */
static int open_flows, max_client_flows;
static uint8_t is_flow[MAX_POLLS];

static void flow_opened(int fd, void *opaque) {
    (void)opaque;
    if (fd < 0 || fd >= MAX_POLLS || is_flow[fd]) return;
    is_flow[fd] = 1;
    open_flows++;
    inbound_opened(&net, fd, now_ns(NULL) / 1000000);
}

static void flow_closed(int fd, void *opaque) {
    (void)opaque;
    if (fd < 0 || fd >= MAX_POLLS || !is_flow[fd]) return;
    is_flow[fd] = 0;
    open_flows--;
    inbound_closed(fd, now_ns(NULL) / 1000000);
}

static int is_listener(int fd) {
    for (int i = 0; i < net.port_count; i++)
        if (net.ports[i].fd == fd) return !net.ports[i].is_udp;
    return 0;
}

static void ignore_notice(void *opaque) { (void)opaque; }

/* Nothing more for the guest is read for now. */
static int is_guest_full;

static int add_poll(int fd, int events, void *opaque) {
    (void)opaque;
    if (net.poll_count == MAX_POLLS) return -1;
    short wanted = 0;
    if (events & SLIRP_POLL_IN) wanted |= POLLIN;
    if (events & SLIRP_POLL_OUT) wanted |= POLLOUT;
    if (events & SLIRP_POLL_PRI) wanted |= POLLPRI;
    int is_let_be = open_flows >= max_client_flows && is_listener(fd);
    if (is_guest_full && !is_listener(fd)) {
        wanted &= POLLOUT;
        // The end of a connection is something to read too, and would be told of again and again.
        if (wanted == 0) is_let_be = 1;
    }
    net.polls[net.poll_count] = (struct pollfd){is_let_be ? -1 : fd, wanted, 0};
    return net.poll_count++;
}

static int get_revents(int index, void *opaque) {
    (void)opaque;
    if (index < 0) return 0;
    int got = net.polls[index].revents, events = 0;
    if (got & POLLIN) events |= SLIRP_POLL_IN;
    if (got & POLLOUT) events |= SLIRP_POLL_OUT;
    if (got & POLLPRI) events |= SLIRP_POLL_PRI;
    if (got & POLLERR) events |= SLIRP_POLL_ERR;
    // Who only writes any more learns of the end as it writes. Told to read, libslirp reads the end again and again, and does not come to write.
    if ((got & POLLHUP) && net.polls[index].events != POLLOUT) events |= SLIRP_POLL_HUP;
    return events;
}

static const SlirpCb callbacks = {
    .send_packet = send_packet,
    .guest_error = guest_error,
    .clock_get_ns = now_ns,
    .timer_new_opaque = timer_new,
    .timer_free = ignore_timer,
    .timer_mod = ignore_due,
    .register_poll_fd = flow_opened,
    .unregister_poll_fd = flow_closed,
    .notify = ignore_notice,
};

static struct in_addr ip(const char *text) {
    struct in_addr address;
    inet_pton(AF_INET, text, &address);
    return address;
}

static struct in6_addr ip6(const char *text) {
    struct in6_addr address;
    inet_pton(AF_INET6, text, &address);
    return address;
}

static Slirp *new_slirp(void) {
    const SlirpConfig config = {
        .version = 4,
        .in_enabled = true,
        .vnetwork = ip("10.0.2.0"),
        .vnetmask = ip("255.255.255.0"),
        .vhost = ip("10.0.2.2"),
        .vdhcp_start = ip(GUEST_ADDRESS),
        .vnameserver = ip("10.0.2.3"),
        .in6_enabled = true,
        .vprefix_addr6 = ip6("fdd0:6d05:e000::"),
        .vprefix_len = 64,
        .vhost6 = ip6("fdd0:6d05:e000::2"),
        .vnameserver6 = ip6("fdd0:6d05:e000::3"),
        .if_mtu = MTU,
        .if_mru = MTU,
        .disable_host_loopback = true,
        .disable_dhcp = true,
    };
    return slirp_new(&config, &callbacks, NULL);
}

static void take_frames(void) {
    static uint8_t frame[FRAME];
    uint8_t reset[RESET_SIZE];
    size_t reset_length;
    // A few at a time, so that a flooding guest does not keep its own answers from it.
    for (int i = 0; i < 64; i++) {
        int64_t now = now_ns(NULL), now_ms = now / 1000000;
        if (must_wait(&net.from_guest, now)) return;
        ssize_t length = recv(NIC_FD, frame, sizeof frame, MSG_DONTWAIT);
        if (length < 0 && errno != EAGAIN && errno != EINTR) exit(0);
        if (length < 0) return;
        net.from_guest_bytes += (uint64_t)length;
        spend(&net.from_guest, (size_t)length);
        if (answer_on_loopback(&net, frame, (size_t)length, now_ms)) continue;
        if (is_refused(frame, (size_t)length, reset, &reset_length)) {
            if (reset_length > 0) give_guest(reset, reset_length);
            continue;
        }
        if (may_leave(frame, (size_t)length, now_ms)) slirp_input(net.slirp, frame, (int)length);
    }
}

/* Nothing, or why there is no network. */
static const char *set_up(int argc, char **argv) {
    static char why[256];
    int at = 1;
    // First of all: whoever gives a helper that waits a proxy puts it there.
    const char *mode = argc > at + 2 && strcmp(argv[at], "--egress") == 0 ? argv[at + 1] : NULL, *proxy = mode == NULL ? NULL : argv[at + 2];
    if (mode != NULL) at += 3;
    int is_open = argc > at && strcmp(argv[at], "--open-host") == 0;
    if (is_open) at++;
    const char *rates = argc > at + 1 && strcmp(argv[at], "--rates") == 0 ? argv[at + 1] : NULL;
    if (rates != NULL) at += 2;
    struct rlimit descriptors;
    signal(SIGPIPE, SIG_IGN);
    if (getrlimit(RLIMIT_NOFILE, &descriptors) < 0) return "the limit of descriptors cannot be read";
    max_client_flows = (int)(descriptors.rlim_cur < MAX_POLLS ? descriptors.rlim_cur : MAX_POLLS) / 4 * 3;
    if (!is_open && close_host() < 0) return "the kernel cannot be asked for the host's addresses";
    net.slirp = new_slirp();
    if (net.slirp == NULL) return "the network could not be set up";
    if (mode != NULL && refuse(mode) < 0) return "there is no such mode of refusing";
    if (proxy != NULL && show_proxy(net.slirp, proxy) < 0) return "the proxy has no place";
    if (!restore_rates(&net, now_ns(NULL)) && rates != NULL && set_rates(&net, rates, now_ns(NULL)) < 0) return "the rates are none";
    if (!restore_ports(&net))
        for (int i = at; i < argc; i++)
            if (add_port(&net, argv[i], why, sizeof why) < 0) return why;
    keep_spare();
    if (give_up_calls(proxy != NULL) < 0) return "the kernel takes no filter of system calls";
    return NULL;
}

int main(int argc, char **argv) {
    // Only the first life has someone who listens; later, the number is one for any socket.
    int is_first = fcntl(READY_FD, F_GETFD) >= 0;
    const char *trouble = set_up(argc, argv);
    if (is_first) {
        dprintf(READY_FD, "%s\n", trouble == NULL ? "ok" : trouble);
        close(READY_FD);
    } else if (trouble != NULL) {
        fprintf(stderr, "dormouse-net: %s\n", trouble);
    }
    if (trouble != NULL) return 1;
    for (;;) {
        int64_t now = now_ns(NULL);
        int is_guest_held = must_wait(&net.from_guest, now);
        is_guest_full = must_wait(&net.to_guest, now);
        net.poll_count = 0;
        net.polls[net.poll_count++] = (struct pollfd){NIC_FD, is_guest_held ? POLLRDHUP : POLLIN | POLLRDHUP, 0};
        net.polls[net.poll_count++] = (struct pollfd){CONTROL_FD, POLLIN, 0};
        uint32_t wait_ms = LONGEST_WAIT_MS;
        slirp_pollfds_fill(net.slirp, &wait_ms, add_poll, NULL);
        if (wait_of(&net.from_guest) < wait_ms) wait_ms = wait_of(&net.from_guest);
        if (wait_of(&net.to_guest) < wait_ms) wait_ms = wait_of(&net.to_guest);
        int ready = poll(net.polls, (nfds_t)net.poll_count, (int)wait_ms);
        if (ready < 0 && errno != EINTR) return 1;
        slirp_pollfds_poll(net.slirp, ready < 0, get_revents, NULL);
        if (ready <= 0) continue;
        if (net.polls[1].revents != 0) serve_control(&net, CONTROL_FD, now_ns(NULL));
        // The end of the VMM. A packet of no length is none, though recv() tells them in the same way.
        if (net.polls[0].revents & (POLLHUP | POLLRDHUP)) return 0;
        if (net.polls[0].revents != 0) take_frames();
    }
}
