#include "tcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* From net/tcp_states.h and net/ipv4/inet_diag.c of the kernel. */
#define STATE_NEW_SYN_RECV 12
#define TIMER_TIME_WAIT 3

/* All that wait for a peer; not listeners, nor what is closed on both sides. */
#define STATES                                                                                                                  \
	(1 << TCP_ESTABLISHED | 1 << TCP_SYN_SENT | 1 << TCP_SYN_RECV | 1 << TCP_FIN_WAIT1 | 1 << TCP_FIN_WAIT2 |                   \
	 1 << TCP_CLOSE_WAIT | 1 << TCP_LAST_ACK | 1 << TCP_CLOSING | 1 << STATE_NEW_SYN_RECV)

struct connection {
	uint8_t family;
	struct inet_diag_sockid id;
};

struct connections {
	struct connection *all;
	size_t count, room;
};

bool tcp_leads_out(bool is_ipv6, const uint8_t *from, const uint8_t *to, bool addresses_change)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };
	if (is_ipv6 && memcmp(from, mapped, sizeof mapped) == 0 && memcmp(to, mapped, sizeof mapped) == 0)
		return tcp_leads_out(false, from + sizeof mapped, to + sizeof mapped, addresses_change);
	bool loops = is_ipv6 ? memcmp(to, &in6addr_loopback, 16) == 0 : to[0] == 127;
	bool to_itself = memcmp(from, to, is_ipv6 ? 16 : 4) == 0;
	return !loops && (addresses_change || !to_itself);
}

static bool keep(struct connections *found, const struct inet_diag_msg *m)
{
	if (found->count == found->room) {
		size_t room = found->room ? 2 * found->room : 64;
		struct connection *all = realloc(found->all, room * sizeof *all);
		if (!all)
			return false;
		found->all = all;
		found->room = room;
	}
	found->all[found->count++] = (struct connection){ m->idiag_family, m->id };
	return true;
}

/* Takes what one datagram of the list holds. Gives 1 when more comes, 0 at the end, -1 with errno. */
static int take(struct connections *found, const struct nlmsghdr *head, size_t left, bool addresses_change)
{
	for (; NLMSG_OK(head, left); head = NLMSG_NEXT(head, left)) {
		if (head->nlmsg_type == NLMSG_DONE)
			return 0;
		if (head->nlmsg_type == NLMSG_ERROR) {
			errno = -((const struct nlmsgerr *)NLMSG_DATA(head))->error;
			return -1;
		}
		const struct inet_diag_msg *m = NLMSG_DATA(head);
		const uint8_t *from = (const uint8_t *)m->id.idiag_src, *to = (const uint8_t *)m->id.idiag_dst;
		if (head->nlmsg_len < NLMSG_LENGTH(sizeof *m) || m->idiag_timer == TIMER_TIME_WAIT ||
		    !tcp_leads_out(m->idiag_family == AF_INET6, from, to, addresses_change))
			continue;
		if (!keep(found, m))
			return -1;
	}
	return 1;
}

static bool list(int socket, struct connections *found, bool addresses_change)
{
	/* The older of the two requests of its kind: it lists both families at once. */
	struct {
		struct nlmsghdr head;
		struct inet_diag_req body;
	} ask = {
		.head = { .nlmsg_len = sizeof ask, .nlmsg_type = TCPDIAG_GETSOCK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
		.body = { .idiag_states = STATES },
	};
	static union {
		struct nlmsghdr head;
		uint8_t bytes[32768];
	} answer;
	if (send(socket, &ask, sizeof ask, 0) < 0)
		return false;
	for (;;) {
		ssize_t n = recv(socket, &answer, sizeof answer, 0);
		int more = n < 0 ? -1 : take(found, &answer.head, (size_t)n, addresses_change);
		if (more <= 0)
			return more == 0;
	}
}

static bool destroy(int socket, const struct connection *c)
{
	struct {
		struct nlmsghdr head;
		struct inet_diag_req_v2 body;
	} ask = {
		.head = { .nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DESTROY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
		.body = { .sdiag_family = c->family, .sdiag_protocol = IPPROTO_TCP, .idiag_states = STATES, .id = c->id },
	};
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		uint8_t rest[256];
	} answer;
	if (send(socket, &ask, sizeof ask, 0) < 0)
		return false;
	if (recv(socket, &answer, sizeof answer, 0) < (ssize_t)offsetof(typeof(answer), rest) || answer.head.nlmsg_type != NLMSG_ERROR) {
		errno = EPROTO;
		return false;
	}
	errno = -answer.error.error;
	/* It has ended by itself since. */
	return errno == 0 || errno == ENOENT;
}

bool tcp_close_inherited(bool addresses_change, uint64_t *closed)
{
	struct connections found = { NULL, 0, 0 };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	bool done = fd >= 0 && list(fd, &found, addresses_change);
	for (size_t i = 0; done && i < found.count; i++)
		done = destroy(fd, &found.all[i]);
	*closed = found.count;
	int error = errno;
	free(found.all);
	if (fd >= 0)
		close(fd);
	errno = error;
	return done;
}
