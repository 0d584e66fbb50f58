/*
 * What a guest may not reach through its network: the host's own loopback and whatever is only on the host's link. libslirp closes
 * its gateway address; a guest that writes its packets itself can put any address into them, so they are looked at here.
 */
#include <string.h>

#include "net.h"

enum { ETHERNET = 14, TYPE_IPV4 = 0x0800, TYPE_IPV6 = 0x86dd };

static int may_leave_ipv4(const uint8_t *to) {
    if (to[0] == 0 || to[0] == 127) return 0;
    // 169.254.0.0/16: nothing of a guest's is there, but clouds hand out the host's credentials at 169.254.169.254,
    if (to[0] == 169 && to[1] == 254) return 0;
    // and two of them at addresses of their own (Alibaba, Azure).
    static const uint8_t metadata[][4] = {{100, 100, 100, 200}, {168, 63, 129, 16}};
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++)
        if (memcmp(to, metadata[i], 4) == 0) return 0;
    return 1;
}

static int may_leave_ipv6(const uint8_t *to) {
    static const uint8_t zeros[15] = {0};
    // ::1, :: and every address that carries an IPv4 one within (::ffff:0:0/96, ::/96).
    if (memcmp(to, zeros, 10) == 0 && ((to[10] == 0xff && to[11] == 0xff) || (to[10] == 0 && to[11] == 0))) return 0;
    // The same credentials over IPv6: fd00:ec2::254 (AWS), fd20:ce::254 (Google).
    static const uint8_t metadata[][16] = {
        {0xfd, 0, 0x0e, 0xc2, [14] = 0x02, [15] = 0x54},
        {0xfd, 0x20, 0, 0xce, [14] = 0x02, [15] = 0x54},
    };
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++)
        if (memcmp(to, metadata[i], 16) == 0) return 0;
    // Translators carry the IPv4 address within: NAT64 (64:ff9b::/96) at the end, 6to4 (2002::/16) after the prefix.
    static const uint8_t nat64[12] = {0, 0x64, 0xff, 0x9b};
    if (memcmp(to, nat64, 12) == 0) return may_leave_ipv4(to + 12);
    return to[0] == 0x20 && to[1] == 0x02 ? may_leave_ipv4(to + 2) : 1;
}

int may_leave(const uint8_t *frame, size_t length) {
    if (length < ETHERNET) return 0;
    int type = frame[12] << 8 | frame[13];
    if (type == TYPE_IPV4) return length >= ETHERNET + 20 && may_leave_ipv4(frame + ETHERNET + 16);
    if (type == TYPE_IPV6) return length >= ETHERNET + 40 && may_leave_ipv6(frame + ETHERNET + 24);
    return 1;
}
