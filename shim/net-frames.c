/*
 * What a guest may not reach through its network: the host's own loopback, whatever is only on the host's link, and what libslirp would
 * serve itself. libslirp closes its gateway address; a guest that writes its packets itself can
 * put any address into them, so they are looked at here.
 */
#include <string.h>

#include "net.h"

enum { TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, TYPE_IPV6 = 0x86dd };
enum { UDP = 17, ICMPV6 = 58, ECHO_REQUEST6 = 128, ROUTER_SOLICITATION = 133 };

/* The places that libslirp speaks for. */
static const uint8_t gateway[] = {10, 0, 2, 2}, everyone[] = {255, 255, 255, 255};
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

static int is_closed_ipv6(const uint8_t *to) {
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
    return within != NULL && is_closed_ipv4(within);
}

static int may_leave_ipv4(const uint8_t *packet) {
    const uint8_t *to = packet + 16;
    // No BOOTP and no TFTP: a guest is told its address, and their answers would look like those of a client at the gateway.
    if (packet[9] == UDP && (memcmp(to, gateway, 4) == 0 || memcmp(to, everyone, 4) == 0)) return 0;
    return !is_closed_ipv4(to);
}

static int may_leave_ipv6(const uint8_t *packet, size_t length) {
    const uint8_t *to = packet + 24, *payload = packet + 40;
    size_t size = length - 40;
    int protocol = packet[6];
    if (is_closed_ipv6(to)) return 0;
    // A router's advertisement would give the guest one more address than it was told.
    if (protocol == ICMPV6 && (size == 0 || payload[0] == ROUTER_SOLICITATION)) return 0;
    // libslirp sends no echo out, and writes a line about each.
    if (protocol == ICMPV6) return payload[0] != ECHO_REQUEST6 || (memcmp(to, net6, 15) == 0 && (to[15] == 2 || to[15] == 3));
    // As above: no DHCPv6, no TFTP; the name server is the one who has a port for datagrams.
    if (protocol == UDP && memcmp(to, net6, 8) == 0) return size >= 8 && payload[2] == 0 && payload[3] == 53;
    return protocol != UDP || to[0] != 0xff;
}

int may_leave(const uint8_t *frame, size_t length) {
    if (length < ETHERNET) return 0;
    int type = frame[12] << 8 | frame[13];
    if (type == TYPE_IPV4) return length >= ETHERNET + 20 && may_leave_ipv4(frame + ETHERNET);
    if (type == TYPE_IPV6) return length >= ETHERNET + 40 && may_leave_ipv6(frame + ETHERNET, length - ETHERNET);
    return type == TYPE_ARP;
}
