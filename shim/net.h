#pragma once
/* The network helper: one user-space network for one guest. */
#include <netinet/in.h>
#include <poll.h>
#include <slirp/libslirp.h>
#include <stdint.h>

enum { NIC_FD = 3, CONTROL_FD = 4, PORTS_FD = 5, READY_FD = 9, MAX_PORTS = 256, MAX_POLLS = 8192, ETHERNET = 14 };

/* A published port. The addresses are kept as they were written, so that they can be told back. */
struct port {
    char word[128];
    int is_udp;
    struct sockaddr_storage host;
    socklen_t host_size;
    uint16_t guest_port;
    int fd; /* libslirp's own socket for it */
};

/* How fast one direction may be. */
struct pace {
    uint64_t bytes_a_second; /* 0: as fast as it goes */
    double tokens;           /* bytes that may pass now; below 0 when more has passed */
    int64_t at_ns;
};

struct net {
    Slirp *slirp;
    struct pace to_guest, from_guest;
    uint64_t to_guest_bytes, from_guest_bytes;
    struct port ports[MAX_PORTS];
    int port_count;
    struct pollfd polls[MAX_POLLS];
    int poll_count;
};

/* What is fixed for every guest: see the plan in docs/drivers.md. */
#define GUEST_ADDRESS "10.0.2.15"
#define GUEST_ADDRESS6 "fdd0:6d05:e000::15"
enum { PROXY_PORT = 3128 };

/* net-frames.c: whether a frame of the guest's may leave it. */
int may_leave(const uint8_t *frame, size_t length, int64_t now_ms);

/* net-refuse.c: what a guest may not open itself whose way out is a proxy. */
enum { RESET_SIZE = ETHERNET + 40 + 20 };
/* From here on: `all` that it opens over TCP, or `http_https_only`. -1 for any other word. */
int refuse(const char *mode);
/* Whether the frame of the guest's is to go no further. What the guest is answered is put into `answer`, of RESET_SIZE bytes; none: length 0. */
int is_refused(const uint8_t *frame, size_t length, uint8_t *answer, size_t *answer_length);

/* net-proxy.c */
/* The guest reaches this unix socket of the host's. -1 when that cannot be had. */
int show_proxy(Slirp *slirp, const char *socket);

/* net-host.c */
/* From here on the host's own addresses are told from others. -1 when the kernel cannot be asked. */
int close_host(void);
/* Whether a packet to that address would be delivered to the host itself. Never so before close_host. */
int is_hosts_own(int family, const uint8_t *address, int64_t now_ms);

/* net-loopback.c: clients on the host that have sent the guest a datagram, and the guest's answers to them. */
/* A datagram whose sender is told as the loopback, from where a guest takes nothing; `show_gateway` has it come from the gateway. */
int shows_loopback(const uint8_t *frame, size_t length);
void show_gateway(uint8_t *frame, size_t length);
void note_to_guest(const uint8_t *frame, size_t length, int64_t now_ms);
/* Whether the frame is an answer to such a client. */
int is_answer(const uint8_t *frame, size_t length, int64_t now_ms);
/* Answers a client on the loopback. 1 when it was such an answer. */
int answer_on_loopback(const struct net *net, const uint8_t *frame, size_t length, int64_t now_ms);

/* net-inbound.c: connections to published ports. */
/* `fd` is a new flow, of whatever kind; below MAX_POLLS. */
void inbound_opened(const struct net *net, int fd, int64_t now_ms);
void inbound_closed(int fd, int64_t now_ms);
/*
 * How many there are, and since how many milliseconds there was none; `-` when there never was. `words` name those that do not count, from
 * now on (ignore.h). -1 when they are none.
 */
int tell_inbound(char *words, int64_t now_ms, char *text, size_t size);

/* net-pace.c */
/* Whether nothing more may be read in this direction for now. */
int must_wait(struct pace *pace, int64_t now_ns);
/* Milliseconds until it may again; UINT32_MAX when it may. */
uint32_t wait_of(const struct pace *pace);
void spend(struct pace *pace, size_t bytes);
/* `TO FROM`: bytes a second to the guest and from it, 0 for no limit. -1 when it is no such thing. */
int set_rates(struct net *net, const char *words, int64_t now_ns);
/* The rates that an earlier life of this helper had. 0 when this is the first. */
int restore_rates(struct net *net, int64_t now_ns);

/* net-control.c */
/* Publishes `tcp:127.0.0.1:8080:80`. 0, or -1 with an answer for the daemon in `why`. */
int add_port(struct net *net, const char *word, char *why, size_t why_size);
/* Call it before the first guest frame. */
void keep_spare(void);
/* Serves one connection of the daemon's: one line, one answer. */
void serve_control(struct net *net, int listener, int64_t now_ns);
/* Publishes the ports that an earlier life of this helper had. 0 when this is the first life. */
int restore_ports(struct net *net);

/*
 * net-filter.c: gives up every system call but those that the network needs, unix sockets too where it has no proxy. -1 with errno when that
 * cannot be had.
 */
int give_up_calls(int has_proxy);
