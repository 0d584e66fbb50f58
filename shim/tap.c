/*
 * TAPs, opened as root: whoever has the descriptor needs no right to the device, and no way into the network that it is in.
 *
 * A VM that waits has a TAP of no bridge, since no one knows yet whose it will be. Its card keeps the descriptor, and what that leads to
 * is exchanged: a TAP that is deleted lets go of it, and then it can be had for another (tun(4): TUNSETIFF takes a descriptor once).
 */
#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fail.h"
#include "job.h"

static void become_tap(int fd, const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    if (strlen(name) >= sizeof request.ifr_name) fail("not a TAP's name: %s", name);
    strcpy(request.ifr_name, name);
    // Asked for by its name, one that is not there would be made.
    if (strchr(name, '%') == NULL && if_nametoindex(name) == 0) fail_errno("there is no TAP %s", name);
    if (ioctl(fd, TUNSETIFF, &request) < 0) fail_errno("cannot open the TAP %s", name);
}

int open_tap(const char *name) {
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) fail_errno("cannot open /dev/net/tun");
    become_tap(fd, name);
    return fd;
}

/* What QEMU has set for its guest belongs to the TAP, and not to the descriptor. */
struct offers {
    int header_size;
    unsigned offload;
};

static unsigned ethtool(int socket, const char *name, unsigned what) {
    struct ethtool_value value = {.cmd = what};
    struct ifreq request = {.ifr_data = (void *)&value};
    strcpy(request.ifr_name, name);
    return ioctl(socket, SIOCETHTOOL, &request) < 0 ? 0 : value.data;
}

static void read_offers(int fd, int socket, const char *name, struct offers *offers) {
    if (ioctl(fd, TUNGETVNETHDRSZ, &offers->header_size) < 0) fail_errno("cannot look at the TAP");
    offers->offload = ethtool(socket, name, ETHTOOL_GTXCSUM) ? TUN_F_CSUM : 0;
    if (offers->offload && ethtool(socket, name, ETHTOOL_GTSO)) offers->offload |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
}

static void give_offers(int fd, const struct offers *offers) {
    int every = INT_MAX;
    if (ioctl(fd, TUNSETVNETHDRSZ, &offers->header_size) < 0 || ioctl(fd, TUNSETOFFLOAD, (unsigned long)offers->offload) < 0 ||
        ioctl(fd, TUNSETSNDBUF, &every) < 0)
        fail_errno("cannot set up the TAP");
}

static void delete_device(int index) {
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } request = {
        .header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_DELLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
        .link = {.ifi_index = index},
    };
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char rest[512];
    } answer = {0};
    int kernel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (kernel < 0 || send(kernel, &request, sizeof request, 0) < 0 || recv(kernel, &answer, sizeof answer, 0) < 0)
        fail_errno("cannot delete the TAP");
    errno = -answer.error.error;
    if (answer.header.nlmsg_type != NLMSG_ERROR || errno != 0) fail_errno("cannot delete the TAP");
    close(kernel);
}

void take_tap(const struct job *job) {
    int fd = job->vmm->tap_fd, asking = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq now = {0};
    struct offers offers;
    if (fd < 0) fail("its TAP is for ever");
    // Seen to while there is still one to keep.
    if (if_nametoindex(job->words) == 0) fail_errno("there is no TAP %s", job->words);
    if (asking < 0 || ioctl(fd, TUNGETIFF, &now) < 0) fail_errno("cannot look at the TAP");
    int index = (int)if_nametoindex(now.ifr_name);
    if (index == 0) fail_errno("there is no TAP %s", now.ifr_name);
    read_offers(fd, asking, now.ifr_name, &offers);
    delete_device(index);
    become_tap(fd, job->words);
    give_offers(fd, &offers);
    say("took %s", job->words);
}

int shut_tap(int tap) {
    struct sock_filter nothing[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
    const struct sock_fprog program = {1, nothing};
    return ioctl(tap, TUNATTACHFILTER, &program);
}

int open_tap_again(int tap) {
    struct sock_fprog none = {0, NULL};
    return ioctl(tap, TUNDETACHFILTER, &none);
}
