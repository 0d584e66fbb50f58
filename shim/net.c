/*
 * dormouse-net: the user-space network of one guest, made of libslirp, for hosts and users without a bridge.
 *
 *   guest ◄── frames ──► QEMU ◄── one packet per frame, descriptor 3 ──► this ──► the host's own sockets
 *
 * A process of its own and not QEMU's built-in network, so that the host's loopback is closed to guests, ports come and go while the
 * VM runs, what passes can be counted, and a bug in a packet parser is neither in QEMU's address space nor in the shim's. It runs as
 * the VM's user with one capability: to bind the ports below 1024 that it is told to publish.
 *
 *   dormouse-net PORT..      PORT is PROTOCOL:ADDRESS:HOSTPORT:GUESTPORT
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "net.h"

enum { MTU = 65520, FRAME = 65536 + 64, MAX_TIMERS = 16 };

struct timer {
    int is_used;
    SlirpTimerId id;
    void *opaque;
    int64_t due_ms;
};

static struct timer timers[MAX_TIMERS];
static struct net net;

static int64_t now_ns(void *opaque) {
    (void)opaque;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static ssize_t send_packet(const void *frame, size_t length, void *opaque) {
    (void)opaque;
    // A guest that does not read loses frames, as on any wire.
    if (send(NIC_FD, frame, length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length) net.to_guest_bytes += length;
    note_to_guest(frame, length, now_ns(NULL) / 1000000);
    return (ssize_t)length;
}

static void guest_error(const char *message, void *opaque) {
    (void)message;
    (void)opaque;
}

static void *timer_new(SlirpTimerId id, void *cb_opaque, void *opaque) {
    (void)opaque;
    for (int i = 0; i < MAX_TIMERS; i++) {
        if (timers[i].is_used) continue;
        timers[i] = (struct timer){1, id, cb_opaque, -1};
        return &timers[i];
    }
    abort();
}

static void timer_free(void *timer, void *opaque) {
    (void)opaque;
    ((struct timer *)timer)->is_used = 0;
}

static void timer_mod(void *timer, int64_t due_ms, void *opaque) {
    (void)opaque;
    ((struct timer *)timer)->due_ms = due_ms;
}

static void ignore_fd(int fd, void *opaque) {
    (void)fd;
    (void)opaque;
}

static void ignore_notice(void *opaque) { (void)opaque; }

static int add_poll(int fd, int events, void *opaque) {
    (void)opaque;
    if (net.poll_count == MAX_POLLS) return -1;
    short wanted = 0;
    if (events & SLIRP_POLL_IN) wanted |= POLLIN;
    if (events & SLIRP_POLL_OUT) wanted |= POLLOUT;
    if (events & SLIRP_POLL_PRI) wanted |= POLLPRI;
    net.polls[net.poll_count] = (struct pollfd){fd, wanted, 0};
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
    if (got & POLLHUP) events |= SLIRP_POLL_HUP;
    return events;
}

static const SlirpCb callbacks = {
    .send_packet = send_packet,
    .guest_error = guest_error,
    .clock_get_ns = now_ns,
    .timer_new_opaque = timer_new,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = ignore_fd,
    .unregister_poll_fd = ignore_fd,
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
    };
    return slirp_new(&config, &callbacks, NULL);
}

static void take_frames(void) {
    static uint8_t frame[FRAME];
    // A few at a time, so that a flooding guest does not keep its own answers from it.
    for (int i = 0; i < 64; i++) {
        ssize_t length = recv(NIC_FD, frame, sizeof frame, MSG_DONTWAIT);
        if (length == 0 || (length < 0 && errno != EAGAIN && errno != EINTR)) exit(0);
        if (length < 0) return;
        net.from_guest_bytes += (uint64_t)length;
        if (answer_on_loopback(&net, frame, (size_t)length, now_ns(NULL) / 1000000)) continue;
        if (may_leave(frame, (size_t)length)) slirp_input(net.slirp, frame, (int)length);
    }
}

static void run_timers(void) {
    int64_t now = now_ns(NULL) / 1000000;
    for (int i = 0; i < MAX_TIMERS; i++) {
        if (!timers[i].is_used || timers[i].due_ms < 0 || timers[i].due_ms > now) continue;
        timers[i].due_ms = -1;
        slirp_handle_timer(net.slirp, timers[i].id, timers[i].opaque);
    }
}

static int until_timer(uint32_t limit) {
    int64_t now = now_ns(NULL) / 1000000, wait = limit == UINT32_MAX ? 60000 : limit;
    for (int i = 0; i < MAX_TIMERS; i++)
        if (timers[i].is_used && timers[i].due_ms >= 0 && timers[i].due_ms - now < wait) wait = timers[i].due_ms > now ? timers[i].due_ms - now : 0;
    return (int)wait;
}

static void say(const char *what) {
    char line[512];
    int length = snprintf(line, sizeof line, "%s\n", what);
    // The second life has no one who listens.
    if (write(READY_FD, line, (size_t)length) < 0 && strcmp(what, "ok") != 0) fprintf(stderr, "dormouse-net: %s", line);
    close(READY_FD);
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    net.slirp = new_slirp();
    if (net.slirp == NULL) {
        say("the network could not be set up");
        return 1;
    }
    char why[256];
    if (lseek(PORTS_FD, 0, SEEK_END) > 0) {
        restore_ports(&net);
    } else {
        for (int i = 1; i < argc; i++) {
            if (add_port(&net, argv[i], why, sizeof why) == 0) continue;
            say(why);
            return 1;
        }
    }
    keep_spare();
    say("ok");
    for (;;) {
        net.poll_count = 0;
        net.polls[net.poll_count++] = (struct pollfd){NIC_FD, POLLIN, 0};
        net.polls[net.poll_count++] = (struct pollfd){CONTROL_FD, POLLIN, 0};
        uint32_t timeout = UINT32_MAX;
        slirp_pollfds_fill(net.slirp, &timeout, add_poll, NULL);
        int ready = poll(net.polls, (nfds_t)net.poll_count, until_timer(timeout));
        if (ready < 0 && errno != EINTR) return 1;
        slirp_pollfds_poll(net.slirp, ready < 0, get_revents, NULL);
        run_timers();
        if (ready > 0 && net.polls[1].revents != 0) serve_control(&net, CONTROL_FD);
        if (ready > 0 && net.polls[0].revents != 0) take_frames();
    }
}
