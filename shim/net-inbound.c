/*
 * Who is connected to a published port, and when someone was last: by this an instance that no one uses is put to sleep. The daemon asks
 * seldom, so what comes and goes between two questions is kept in mind here.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "ignore.h"
#include "net.h"

struct inbound {
    int family; /* 0: no connection of a published port */
    uint8_t from[16];
    uint16_t guest_port;
};

static struct inbound flows[MAX_POLLS];
static struct ignore ignore;
static int64_t last_ms;
static int has_been;

static const struct port *port_of(const struct net *net, const struct sockaddr_storage *own) {
    for (int i = 0; i < net->port_count; i++) {
        const struct port *port = &net->ports[i];
        if (port->is_udp || port->host.ss_family != own->ss_family) continue;
        const struct sockaddr_in *in = (const struct sockaddr_in *)&port->host, *own_in = (const struct sockaddr_in *)own;
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&port->host, *own_in6 = (const struct sockaddr_in6 *)own;
        int is_same = own->ss_family == AF_INET ? in->sin_port == own_in->sin_port && (in->sin_addr.s_addr == INADDR_ANY || in->sin_addr.s_addr == own_in->sin_addr.s_addr)
                                                : in6->sin6_port == own_in6->sin6_port && (IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr) || IN6_ARE_ADDR_EQUAL(&in6->sin6_addr, &own_in6->sin6_addr));
        if (is_same) return port;
    }
    return NULL;
}

static void note(const struct inbound *flow, int64_t at_ms) {
    if (flow->family == 0 || is_ignored(&ignore, flow->family, flow->from, flow->guest_port)) return;
    if (!has_been || at_ms > last_ms) last_ms = at_ms;
    has_been = 1;
}

/*
 * Have both sides said that no more is to come, and when was the last heard of it? libslirp holds on to such a connection for some ten
 * seconds more.
 */
static int has_ended(int fd, int64_t now_ms, int64_t *at_ms) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    *at_ms = now_ms;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0) return 0;
    if (info.tcpi_state != TCP_CLOSE && info.tcpi_state != TCP_LAST_ACK && info.tcpi_state != TCP_TIME_WAIT && info.tcpi_state != TCP_CLOSING) return 0;
    uint32_t quiet = info.tcpi_last_ack_recv < info.tcpi_last_data_recv ? info.tcpi_last_ack_recv : info.tcpi_last_data_recv;
    *at_ms = now_ms - quiet;
    return 1;
}

void inbound_opened(const struct net *net, int fd, int64_t now_ms) {
    struct sockaddr_storage own, from;
    socklen_t own_size = sizeof own, from_size = sizeof from;
    int type;
    socklen_t type_size = sizeof type;
    struct inbound *flow = &flows[fd];
    flow->family = 0;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) < 0 || type != SOCK_STREAM) return;
    if (getsockname(fd, (struct sockaddr *)&own, &own_size) < 0) return;
    // The guest's own are not connected yet, and leave by ports that no one listens on.
    const struct port *port = port_of(net, &own);
    if (port == NULL) return;
    memset(&from, 0, sizeof from);
    // Of one that has hung up already no one can tell: it counts, unless its port does not.
    if (getpeername(fd, (struct sockaddr *)&from, &from_size) < 0) from.ss_family = own.ss_family;
    if (from.ss_family == AF_INET) memcpy(flow->from, &((struct sockaddr_in *)&from)->sin_addr, 4);
    else memcpy(flow->from, &((struct sockaddr_in6 *)&from)->sin6_addr, 16);
    flow->family = from.ss_family;
    flow->guest_port = port->guest_port;
    note(flow, now_ms);
}

void inbound_closed(int fd, int64_t now_ms) {
    int64_t at_ms;
    if (flows[fd].family == 0) return;
    has_ended(fd, now_ms, &at_ms);
    note(&flows[fd], at_ms);
    flows[fd].family = 0;
}

int tell_inbound(char *words, int64_t now_ms, char *text, size_t size) {
    int active = 0;
    if (parse_ignore(&ignore, words) < 0) {
        memset(&ignore, 0, sizeof ignore);
        return -1;
    }
    for (int fd = 0; fd < MAX_POLLS; fd++) {
        const struct inbound *flow = &flows[fd];
        int64_t at_ms;
        if (flow->family == 0 || is_ignored(&ignore, flow->family, flow->from, flow->guest_port)) continue;
        active += !has_ended(fd, now_ms, &at_ms);
        note(flow, at_ms);
    }
    if (has_been) snprintf(text, size, "ok %d %lld\n", active, (long long)(now_ms - last_ms));
    else snprintf(text, size, "ok 0 -\n");
    return 0;
}
