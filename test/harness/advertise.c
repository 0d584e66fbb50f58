/*
 * For the guest of a test: says to all neighbours on eth0 that an IPv6 address is its own, whosever it is (RFC 4861, 4.4).
 * advertise ADDRESS MAC
 */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    struct {
        struct nd_neighbor_advert advertisement;
        struct nd_opt_hdr option;
        unsigned char mac[6];
    } message = {
        .advertisement.nd_na_hdr = {.icmp6_type = ND_NEIGHBOR_ADVERT},
        .option = {.nd_opt_type = ND_OPT_TARGET_LINKADDR, .nd_opt_len = 1},
    };
    unsigned char *mac = message.mac;
    int fd = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6), hops = 255, link = (int)if_nametoindex("eth0");
    struct sockaddr_in6 all = {.sin6_family = AF_INET6, .sin6_scope_id = (unsigned)link};
    message.advertisement.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
    if (argc != 3 || inet_pton(AF_INET6, argv[1], &message.advertisement.nd_na_target) != 1) return 2;
    if (sscanf(argv[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6) return 2;
    inet_pton(AF_INET6, "ff02::1", &all.sin6_addr);
    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof hops) < 0) return 1;
    // Whoever listens takes none that has come through a router.
    return sendto(fd, &message, sizeof message, 0, (struct sockaddr *)&all, sizeof all) == sizeof message ? 0 : 1;
}
