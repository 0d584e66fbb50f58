#include "net.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/if_addr.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "io.h"

#define ETHERNET_MTU 1500

struct message {
	struct nlmsghdr head;
	uint8_t body[512];
};

static void attribute(struct message *m, unsigned short type, const void *value, size_t length)
{
	struct rtattr *a = (struct rtattr *)((char *)m + NLMSG_ALIGN(m->head.nlmsg_len));
	a->rta_type = type;
	a->rta_len = (unsigned short)RTA_LENGTH(length);
	memcpy(RTA_DATA(a), value, length);
	m->head.nlmsg_len = NLMSG_ALIGN(m->head.nlmsg_len) + (unsigned)RTA_ALIGN(a->rta_len);
}

static void *begin(struct message *m, unsigned short type, unsigned short flags, size_t size)
{
	memset(m, 0, sizeof *m);
	m->head.nlmsg_type = type;
	m->head.nlmsg_flags = (unsigned short)(NLM_F_REQUEST | NLM_F_ACK | flags);
	m->head.nlmsg_len = (unsigned)NLMSG_LENGTH(size);
	return NLMSG_DATA(&m->head);
}

/* Waits for the kernel's answer; false with errno. */
static bool talk(int socket, struct message *m)
{
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		uint8_t rest[1024];
	} answer;
	if (send(socket, m, m->head.nlmsg_len, 0) < 0)
		return false;
	ssize_t n = recv(socket, &answer, sizeof answer, 0);
	if (n < (ssize_t)(sizeof answer.head + sizeof answer.error) || answer.head.nlmsg_type != NLMSG_ERROR) {
		errno = EPROTO;
		return false;
	}
	errno = -answer.error.error;
	return answer.error.error == 0;
}

static bool set_link(int socket, unsigned index, bool up, const uint8_t *mac, uint64_t mtu)
{
	struct message m;
	struct ifinfomsg *info = begin(&m, RTM_NEWLINK, 0, sizeof *info);
	info->ifi_index = (int)index;
	info->ifi_change = IFF_UP;
	info->ifi_flags = up ? IFF_UP : 0;
	if (mac)
		attribute(&m, IFLA_ADDRESS, mac, 6);
	uint32_t size = (uint32_t)mtu;
	if (mtu)
		attribute(&m, IFLA_MTU, &size, sizeof size);
	return talk(socket, &m);
}

static bool add_address(int socket, unsigned index, uint8_t family, const uint8_t *address, size_t length, uint64_t prefix)
{
	struct message m;
	struct ifaddrmsg *info = begin(&m, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof *info);
	info->ifa_family = family;
	info->ifa_prefixlen = (uint8_t)prefix;
	info->ifa_index = index;
	/* The address is ours by the host's word; waiting for its duplicate would only cost a second. */
	info->ifa_flags = family == AF_INET6 ? IFA_F_NODAD : 0;
	attribute(&m, IFA_LOCAL, address, length);
	attribute(&m, IFA_ADDRESS, address, length);
	return talk(socket, &m) || errno == EEXIST;
}

static bool add_default_route(int socket, unsigned index, uint8_t family, const uint8_t *gateway, size_t length)
{
	struct message m;
	struct rtmsg *info = begin(&m, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof *info);
	info->rtm_family = family;
	info->rtm_table = RT_TABLE_MAIN;
	info->rtm_protocol = RTPROT_BOOT;
	info->rtm_scope = RT_SCOPE_UNIVERSE;
	info->rtm_type = RTN_UNICAST;
	/* passt's gateway may stand outside the prefix. */
	info->rtm_flags = RTNH_F_ONLINK;
	attribute(&m, RTA_GATEWAY, gateway, length);
	uint32_t device = index;
	attribute(&m, RTA_OIF, &device, sizeof device);
	return talk(socket, &m) || errno == EEXIST;
}

/* The first card that has a device behind it. */
static unsigned find_card(void)
{
	unsigned index = 0;
	int dir = openat(agent.sys, "class/net", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = dir < 0 ? NULL : fdopendir(dir);
	for (struct dirent *entry; list && index == 0 && (entry = readdir(list));)
		if (entry->d_name[0] != '.' && strcmp(entry->d_name, "lo") != 0) {
			char path[300];
			snprintf(path, sizeof path, "%s/device", entry->d_name);
			if (faccessat(dir, path, F_OK, 0) == 0)
				index = if_nametoindex(entry->d_name);
		}
	if (list)
		closedir(list);
	return index;
}

bool net_loopback_up(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	bool done = fd >= 0 && set_link(fd, if_nametoindex("lo"), true, NULL, 0);
	if (fd >= 0)
		close(fd);
	return done;
}

static void drop_addresses(int socket, unsigned index)
{
	struct message m;
	struct ifaddrmsg *info = begin(&m, RTM_DELADDR, 0, sizeof *info);
	info->ifa_family = AF_INET;
	info->ifa_index = index;
	while (talk(socket, &m))
		;
}

static void forbid_ipv6(unsigned index, bool forbid)
{
	char name[IF_NAMESIZE] = "", path[64];
	snprintf(path, sizeof path, "sys/net/ipv6/conf/%s/disable_ipv6", if_indextoname(index, name) ? name : "all");
	write_at(agent.proc, path, forbid ? "1" : "0");
}

const char *net_configure(const struct network *n)
{
	unsigned index = find_card();
	if (index == 0)
		return "There is no network card";
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		return "No netlink socket could be opened";
	const char *wrong = NULL;
	/* Without an address it would only look for routers and neighbours, as a container's does not either. */
	forbid_ipv6(index, !n->has6);
	/* Down first: a card takes another MAC only then, and loses its old routes by it. */
	if (!set_link(fd, index, false, NULL, 0) || !set_link(fd, index, false, n->mac, n->mtu))
		wrong = "The network card did not take its MAC";
	if (!wrong)
		drop_addresses(fd, index);
	if (!wrong && !set_link(fd, index, true, NULL, 0))
		wrong = "The network card did not come up";
	if (!wrong && n->has4 && !add_address(fd, index, AF_INET, n->address4, 4, n->prefix4))
		wrong = "The network card did not take its IPv4 address";
	if (!wrong && n->has4 && n->has_gateway4 && !add_default_route(fd, index, AF_INET, n->gateway4, 4))
		wrong = "The IPv4 default route was not taken";
	if (!wrong && n->has6 && !add_address(fd, index, AF_INET6, n->address6, 16, n->prefix6))
		wrong = "The network card did not take its IPv6 address";
	if (!wrong && n->has6 && n->has_gateway6 && !add_default_route(fd, index, AF_INET6, n->gateway6, 16))
		wrong = "The IPv6 default route was not taken";
	if (wrong)
		say("%s: %s", wrong, strerror(errno));
	close(fd);
	return wrong;
}

bool net_silence(void)
{
	unsigned index = find_card();
	int fd = index ? socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE) : -1;
	bool done = fd >= 0 && set_link(fd, index, false, NULL, 0);
	if (fd >= 0)
		close(fd);
	return done;
}

static bool read_mac(int socket, unsigned index, struct ifreq *card)
{
	*card = (struct ifreq){ 0 };
	return if_indextoname(index, card->ifr_name) && ioctl(socket, SIOCGIFHWADDR, card) == 0;
}

bool net_read_mac(uint8_t mac[6])
{
	struct ifreq card;
	unsigned index = find_card();
	int fd = index ? socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE) : -1;
	bool done = fd >= 0 && read_mac(fd, index, &card);
	if (done)
		memcpy(mac, card.ifr_hwaddr.sa_data, 6);
	if (fd >= 0)
		close(fd);
	return done;
}

bool net_forget(const uint8_t mac[6])
{
	unsigned index = find_card();
	int fd = index ? socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE) : -1;
	if (fd < 0)
		return false;
	bool done = set_link(fd, index, false, NULL, 0) && set_link(fd, index, false, mac, ETHERNET_MTU);
	drop_addresses(fd, index);
	forbid_ipv6(index, false);
	close(fd);
	return done;
}

/* The kernel announces by itself when a card that is up takes a MAC, be it the one that it has, if it was told to. */
bool net_announce(void)
{
	struct ifreq card;
	char path[64];
	unsigned index = find_card();
	if (index == 0)
		return true;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	bool done = fd >= 0 && read_mac(fd, index, &card);
	snprintf(path, sizeof path, "sys/net/ipv4/conf/%.15s/arp_notify", card.ifr_name);
	done = done && write_at(agent.proc, path, "1");
	snprintf(path, sizeof path, "sys/net/ipv6/conf/%.15s/ndisc_notify", card.ifr_name);
	done = done && write_at(agent.proc, path, "1") && set_link(fd, index, true, (const uint8_t *)card.ifr_hwaddr.sa_data, 0);
	if (fd >= 0)
		close(fd);
	return done;
}
