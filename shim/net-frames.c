/*
 * What a guest may not reach through its network: the host itself, by its loopback or any address of its own, whatever is only on the
 * host's link, and what libslirp would serve itself. libslirp closes its gateway address; a guest that writes its packets itself can
 * put any address into them, so they are looked at here.
 */
#include <string.h>
#include <sys/socket.h>

#include "net.h"

enum { TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, TYPE_IPV6 = 0x86dd };
enum { TCP = 6, UDP = 17, ICMPV6 = 58, SYN = 2, ACK = 16, ECHO_REQUEST6 = 128, ROUTER_SOLICITATION = 133 };

/* The places that libslirp speaks for. */
static const uint8_t gateway[] = {10, 0, 2, 2}, name_server[] = {10, 0, 2, 3}, everyone[] = {255, 255, 255, 255};
/* fdd0:6d05:e000::, the gateway at 2 and the name server at 3. */
static const uint8_t net6[15] = {0xfd, 0xd0, 0x6d, 0x05, 0xe0};

static int is_closed_ipv4(const uint8_t *to) {
    if (to[0] == 0 || to[0] == 127) return 1;
    // 169.254.0.0/16: nothing of a guest's is there, but clouds hand out the host's credentials at 169.254.169.254,
    if (to[0] == 169 && to[1] == 254) return 1;
    // and two of them at addresses of their own (Alibaba, Azure).
    static const uint8_t metadata[][4] = {{100, 100, 100, 200}, {168, 63, 129, 16}};
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++)
        if (memcmp(to, metadata[i], 4) == 0) return 1;
    return 0;
}

static int is_closed_ipv6(const uint8_t *to, int64_t now_ms) {
    static const uint8_t zeros[15] = {0};
    // ::1, :: and every address that carries an IPv4 one within (::ffff:0:0/96, ::/96).
    if (memcmp(to, zeros, 10) == 0 && ((to[10] == 0xff && to[11] == 0xff) || (to[10] == 0 && to[11] == 0))) return 1;
    // The same credentials over IPv6: fd00:ec2::254 (AWS), fd20:ce::254 (Google).
    static const uint8_t metadata[][16] = {
        {0xfd, 0, 0x0e, 0xc2, [14] = 0x02, [15] = 0x54},
        {0xfd, 0x20, 0, 0xce, [14] = 0x02, [15] = 0x54},
    };
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++)
        if (memcmp(to, metadata[i], 16) == 0) return 1;
    // Translators carry the IPv4 address within: NAT64 (64:ff9b::/96) at the end, 6to4 (2002::/16) after the prefix.
    static const uint8_t nat64[12] = {0, 0x64, 0xff, 0x9b};
    const uint8_t *within = memcmp(to, nat64, 12) == 0 ? to + 12 : to[0] == 0x20 && to[1] == 0x02 ? to + 2 : NULL;
    return within != NULL && (is_closed_ipv4(within) || is_hosts_own(AF_INET, within, now_ms));
}

/* What answers a connection begins none. Too short to tell counts as a beginning. */
static int begins_connection(const uint8_t *segment, size_t length) { return length < 14 || (segment[13] & (SYN | ACK)) == SYN; }

static int may_leave_ipv4(const uint8_t *frame, size_t length, int64_t now_ms) {
    const uint8_t *packet = frame + ETHERNET, *to = packet + 16;
    size_t header = (packet[0] & 15u) * 4, size = length - ETHERNET;
    int protocol = packet[9], is_fragment = (packet[6] & 0x3f) != 0 || packet[7] != 0;
    if (is_closed_ipv4(to)) return 0;
    // No BOOTP and no TFTP: a guest is told its address, and their answers would look like those of a client at the gateway.
    if (memcmp(to, gateway, 4) == 0 || memcmp(to, everyone, 4) == 0) return protocol != UDP;
    if (memcmp(to, name_server, 4) == 0) return 1;
    if (protocol == TCP && !is_fragment && header <= size && !begins_connection(packet + header, size - header)) return 1;
    return !is_hosts_own(AF_INET, to, now_ms) || is_answer(frame, length, now_ms);
}

static int may_leave_ipv6(const uint8_t *frame, size_t length, int64_t now_ms) {
    const uint8_t *packet = frame + ETHERNET, *to = packet + 24, *payload = packet + 40;
    size_t size = length - ETHERNET - 40;
    int protocol = packet[6], is_within = memcmp(to, net6, 8) == 0;
    if (is_closed_ipv6(to, now_ms)) return 0;
    // A router's advertisement would give the guest one more address than it was told.
    if (protocol == ICMPV6 && (size == 0 || payload[0] == ROUTER_SOLICITATION)) return 0;
    // libslirp sends no echo out, and writes a line about each.
    if (protocol == ICMPV6) return payload[0] != ECHO_REQUEST6 || (memcmp(to, net6, 15) == 0 && (to[15] == 2 || to[15] == 3));
    // As above: no DHCPv6, no TFTP; the name server is the one who has a port for datagrams.
    if (protocol == UDP && is_within) return size >= 8 && payload[2] == 0 && payload[3] == 53;
    if (protocol == UDP && to[0] == 0xff) return 0;
    if (is_within || (protocol == TCP && !begins_connection(payload, size))) return 1;
    return !is_hosts_own(AF_INET6, to, now_ms) || is_answer(frame, length, now_ms);
}

int may_leave(const uint8_t *frame, size_t length, int64_t now_ms) {
    if (length < ETHERNET) return 0;
    int type = frame[12] << 8 | frame[13];
    if (type == TYPE_IPV4) return length >= ETHERNET + 20 && may_leave_ipv4(frame, length, now_ms);
    if (type == TYPE_IPV6) return length >= ETHERNET + 40 && may_leave_ipv6(frame, length, now_ms);
    return type == TYPE_ARP;
}
