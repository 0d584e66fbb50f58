/*
 * Which addresses are the host's own. The kernel is asked how it would route a packet there, as it will when the packet is sent: that
 * covers what no list of interfaces shows, such as the local routes of a load balancer, and an address that came a moment ago.
 */
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"

/* Answers are kept for as long as a stream of datagrams to one address would ask the same again and again. */
enum { KNOWN = 256, KEPT_MS = 1000 };

struct known {
    int family;
    uint8_t address[16];
    int is_own;
    int64_t until_ms;
};

static int kernel = -1;

int close_host(void) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    kernel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    return kernel < 0 ? -1 : connect(kernel, (struct sockaddr *)&address, sizeof address);
}

/* 1 and 0 are answers, -1 is none. */
static int ask_kernel(int family, const uint8_t *address, size_t size) {
    static uint32_t sequence;
    struct {
        struct nlmsghdr header;
        struct rtmsg route;
        struct rtattr attribute;
        uint8_t to[16];
    } question = {
        .header = {.nlmsg_type = RTM_GETROUTE, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = ++sequence},
        .route = {.rtm_family = (unsigned char)family, .rtm_dst_len = (unsigned char)(size * 8)},
        .attribute = {.rta_type = RTA_DST, .rta_len = (unsigned short)RTA_LENGTH(size)},
    };
    struct {
        struct nlmsghdr header;
        struct rtmsg route;
        char rest[1024];
    } answer;
    memcpy(question.to, address, size);
    question.header.nlmsg_len = (uint32_t)(offsetof(typeof(question), to) + size);
    if (send(kernel, &question, question.header.nlmsg_len, 0) < 0) return -1;
    // The answer is there when send returns. One that an earlier question did not get is passed over.
    for (;;) {
        ssize_t got = recv(kernel, &answer, sizeof answer, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < (ssize_t)offsetof(typeof(answer), rest)) return -1;
        if (answer.header.nlmsg_seq != sequence) continue;
        // An error means that there is no way to it: libslirp will find that out, and tell the guest.
        return answer.header.nlmsg_type == RTM_NEWROUTE && answer.route.rtm_type != RTN_UNICAST;
    }
}

int is_hosts_own(int family, const uint8_t *address, int64_t now_ms) {
    static struct known known[KNOWN];
    if (kernel < 0) return 0;
    size_t size = family == AF_INET ? 4 : 16;
    unsigned place = 0;
    for (size_t i = 0; i < size; i++) place = place * 31 + address[i];
    struct known *entry = &known[place % KNOWN];
    if (entry->family == family && memcmp(entry->address, address, size) == 0 && now_ms < entry->until_ms) return entry->is_own;
    int is_own = ask_kernel(family, address, size);
    if (is_own < 0) return 1;
    entry->family = family;
    memcpy(entry->address, address, size);
    entry->is_own = is_own;
    entry->until_ms = now_ms + KEPT_MS;
    return is_own;
}
