/*
 * Who is connected to the guests of a bridge, as the kernel's table of connections has it (nf_conntrack over netlink). The table says of
 * each which way it was opened, also where a published port has changed its address: the answers of one that someone opened towards a
 * guest come from the guest. States and ends are told as they happen; what was missed, or began before anyone listened, is looked up.
 *
 *   dormouse-shim conntrack SUBNET4 SUBNET6
 *
 * One question a line: `inbound HOST [PORT|NET]..`, HOST being a guest's number in both subnets, the rest what does not count (ignore.h).
 * The answer is `ok ACTIVE MS`: how many connections there are, and for how long there has been none; `-` when there was none since this
 * began. It ends with its standard input.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "commands.h"
#include "fail.h"
#include "ignore.h"

enum { EVENT_BUFFER = 8 << 20, LOOK_UP_EVERY_MS = 5 * 60 * 1000, LOOK_UP_APART_MS = 1000, FIRST_FLOWS = 1024, EVENTS_AT_ONCE = 4096 };

struct guest {
    int64_t last_ms;
    int has_been, flows;
    struct ignore *ignore;
};

/* A connection to a guest. The four places of its answers name it: no other has the same. */
struct key {
    uint32_t host; /* the guest's number; 0 is none */
    uint16_t guest_port, peer_port;
    uint8_t family, peer[16];
};

struct flow {
    struct key key;
    uint8_t from[16];
    int is_listed; /* by the look-up that is under way */
    int is_told;   /* its end will be: it began when someone listened */
};

static struct {
    uint8_t address4[4], address6[16];
    unsigned prefix4, prefix6;
    uint32_t hosts;
} subnets;

static struct guest **guests;
static struct flow *flows;
static size_t flow_room = FIRST_FLOWS, flow_count;
static uint64_t seed;
static int is_looking_up, has_missed, events, questions;
static int64_t looked_up_ms;

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void *zeros(size_t count, size_t size) {
    void *got = calloc(count, size);
    if (got == NULL) fail("no memory for connections");
    return got;
}

/* ---- guests ---- */

static int shares_prefix(const uint8_t *one, const uint8_t *other, unsigned bits) {
    if (memcmp(one, other, bits / 8) != 0) return 0;
    return bits % 8 == 0 || ((one[bits / 8] ^ other[bits / 8]) >> (8 - bits % 8)) == 0;
}

static uint32_t last_word(const uint8_t *end) { return (uint32_t)end[-4] << 24 | (uint32_t)end[-3] << 16 | (uint32_t)end[-2] << 8 | end[-1]; }

/* The number of a guest's address; 0 when it is no guest's. */
static uint32_t host_of(int family, const uint8_t *address) {
    uint32_t host;
    if (family == AF_INET) {
        if (!shares_prefix(address, subnets.address4, subnets.prefix4)) return 0;
        host = last_word(address + 4) - last_word(subnets.address4 + 4);
    } else {
        // The numbers are small ones, however wide the subnet is.
        if (!shares_prefix(address, subnets.address6, 96)) return 0;
        host = last_word(address + 16) - last_word(subnets.address6 + 16);
    }
    return host < subnets.hosts ? host : 0;
}

static struct guest *guest_at(uint32_t host) {
    if (guests[host] == NULL) guests[host] = zeros(1, sizeof **guests);
    return guests[host];
}

static int counts(const struct guest *guest, const struct flow *flow) {
    return guest->ignore == NULL || !is_ignored(guest->ignore, flow->key.family, flow->from, flow->key.guest_port);
}

static void note(const struct flow *flow) {
    struct guest *guest = guest_at(flow->key.host);
    if (!counts(guest, flow)) return;
    guest->last_ms = now_ms();
    guest->has_been = 1;
}

/* ---- connections: an open table, a place and those behind it ---- */

/* Clients choose what is hashed: without the seed they could have all of theirs in one place. */
static size_t place_of(const struct key *key) {
    const uint8_t *bytes = (const uint8_t *)key;
    uint64_t hash = seed;
    for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ bytes[i]) * 1099511628211ULL;
    return (size_t)(hash ^ hash >> 32) & (flow_room - 1);
}

static struct flow *find(const struct key *key) {
    size_t at = place_of(key);
    while (flows[at].key.host != 0 && memcmp(&flows[at].key, key, sizeof *key) != 0) at = (at + 1) & (flow_room - 1);
    return &flows[at];
}

static void grow(void) {
    struct flow *old = flows;
    size_t old_room = flow_room;
    flow_room *= 2;
    flows = zeros(flow_room, sizeof *flows);
    for (size_t i = 0; i < old_room; i++)
        if (old[i].key.host != 0) *find(&old[i].key) = old[i];
    free(old);
}

static void add(const struct flow *flow) {
    struct flow *known = find(&flow->key);
    if (known->key.host != 0) {
        known->is_listed = is_looking_up;
        return;
    }
    *known = *flow;
    guest_at(flow->key.host)->flows++;
    note(flow);
    if (++flow_count * 2 > flow_room) grow();
}

static void take_away(const struct key *key) {
    struct flow *flow = find(key);
    if (flow->key.host == 0) return;
    note(flow);
    guest_at(key->host)->flows--;
    flow_count--;
    // Those that stand behind it because it was here move up.
    size_t hole = (size_t)(flow - flows);
    for (size_t at = (hole + 1) & (flow_room - 1); flows[at].key.host != 0; at = (at + 1) & (flow_room - 1)) {
        size_t home = place_of(&flows[at].key);
        if (((at - home) & (flow_room - 1)) < ((at - hole) & (flow_room - 1))) continue;
        flows[hole] = flows[at];
        hole = at;
    }
    memset(&flows[hole], 0, sizeof flows[hole]);
}

/* ---- the kernel's words ---- */

static const struct nlattr *attribute(const struct nlattr *first, size_t length, int type) {
    const uint8_t *at = (const uint8_t *)first, *end = at + length;
    while (at + NLA_HDRLEN <= end) {
        const struct nlattr *one = (const struct nlattr *)at;
        if (one->nla_len < NLA_HDRLEN || at + one->nla_len > end) return NULL;
        if ((one->nla_type & NLA_TYPE_MASK) == type) return one;
        at += NLA_ALIGN(one->nla_len);
    }
    return NULL;
}

static const void *content(const struct nlattr *one) { return (const uint8_t *)one + NLA_HDRLEN; }
static size_t length_of(const struct nlattr *one) { return (size_t)one->nla_len - NLA_HDRLEN; }
static const struct nlattr *within(const struct nlattr *nest, int type) {
    return nest == NULL ? NULL : attribute(content(nest), length_of(nest), type);
}
/* The content of a number or an address of that size; NULL when it is none. */
static const uint8_t *sized(const struct nlattr *one, size_t size) { return one != NULL && length_of(one) >= size ? content(one) : NULL; }

/* What a message says of a connection to a guest. 0 when it is of another kind. */
static int read_flow(const struct nlmsghdr *message, struct flow *flow, int *state) {
    const struct nfgenmsg *head = NLMSG_DATA(message);
    size_t before = NLMSG_LENGTH(sizeof *head);
    if (message->nlmsg_len < before) return 0;
    int family = head->nfgen_family;
    if (family != AF_INET && family != AF_INET6) return 0;
    size_t size = family == AF_INET ? 4 : 16;
    const struct nlattr *first = (const struct nlattr *)((const uint8_t *)message + NLMSG_ALIGN(before));
    size_t length = message->nlmsg_len - NLMSG_ALIGN(before);
    const struct nlattr *way = attribute(first, length, CTA_TUPLE_ORIG), *back = attribute(first, length, CTA_TUPLE_REPLY);
    const struct nlattr *ip = within(back, CTA_TUPLE_IP), *ports = within(back, CTA_TUPLE_PROTO);
    const uint8_t *protocol = sized(within(ports, CTA_PROTO_NUM), 1);
    if (protocol == NULL || *protocol != IPPROTO_TCP) return 0;
    const uint8_t *guest = sized(within(ip, family == AF_INET ? CTA_IP_V4_SRC : CTA_IP_V6_SRC), size);
    const uint8_t *peer = sized(within(ip, family == AF_INET ? CTA_IP_V4_DST : CTA_IP_V6_DST), size);
    const uint8_t *from = sized(within(within(way, CTA_TUPLE_IP), family == AF_INET ? CTA_IP_V4_SRC : CTA_IP_V6_SRC), size);
    const uint8_t *guest_port = sized(within(ports, CTA_PROTO_SRC_PORT), 2), *peer_port = sized(within(ports, CTA_PROTO_DST_PORT), 2);
    if (guest == NULL || peer == NULL || from == NULL || guest_port == NULL || peer_port == NULL) return 0;
    // Its bytes are what is compared, the unused ones too.
    memset(flow, 0, sizeof *flow);
    flow->key.host = host_of(family, guest);
    if (flow->key.host == 0) return 0;
    flow->key.family = (uint8_t)family;
    flow->key.guest_port = (uint16_t)(guest_port[0] << 8 | guest_port[1]);
    flow->key.peer_port = (uint16_t)(peer_port[0] << 8 | peer_port[1]);
    memcpy(flow->key.peer, peer, size);
    memcpy(flow->from, from, size);
    const uint8_t *tcp = sized(within(within(attribute(first, length, CTA_PROTOINFO), CTA_PROTOINFO_TCP), CTA_PROTOINFO_TCP_STATE), 1);
    *state = tcp == NULL ? -1 : *tcp;
    return 1;
}

/* From the first packet until both sides have said that it is over, or one that nothing more is to come. */
static int is_open(int state) {
    return state == TCP_CONNTRACK_SYN_SENT || state == TCP_CONNTRACK_SYN_RECV || state == TCP_CONNTRACK_ESTABLISHED ||
           state == TCP_CONNTRACK_FIN_WAIT || state == TCP_CONNTRACK_CLOSE_WAIT || state == TCP_CONNTRACK_SYN_SENT2;
}

static void take_message(const struct nlmsghdr *message) {
    struct flow flow;
    int state;
    if (!read_flow(message, &flow, &state)) return;
    if ((message->nlmsg_type & 0xff) == IPCTNL_MSG_CT_DELETE || (state >= 0 && !is_open(state))) {
        // It came and went while no one listened.
        if (is_looking_up && find(&flow.key)->key.host == 0 && has_missed) note(&flow);
        take_away(&flow.key);
        return;
    }
    // An event that is about something else than its state is no news of it.
    if (state < 0) return;
    flow.is_listed = is_looking_up;
    flow.is_told = !is_looking_up;
    add(&flow);
}

/* 1 when more is to come, 0 at the end of a look-up. */
static int take_messages(const uint8_t *buffer, size_t length) {
    const struct nlmsghdr *message = (const struct nlmsghdr *)buffer;
    for (; NLMSG_OK(message, length); message = NLMSG_NEXT(message, length)) {
        if (message->nlmsg_type == NLMSG_DONE) return 0;
        if (message->nlmsg_type == NLMSG_ERROR) {
            const struct nlmsgerr *error = NLMSG_DATA(message);
            errno = -error->error;
            fail_errno("the kernel tells nothing of connections");
        }
        if (message->nlmsg_type >> 8 == NFNL_SUBSYS_CTNETLINK) take_message(message);
    }
    return 1;
}

static uint8_t *buffer(void) {
    static uint8_t bytes[64 * 1024] __attribute__((aligned(NLMSG_ALIGNTO)));
    return bytes;
}

/* All that there is: what is not among it is over. */
static void look_up(void) {
    struct {
        struct nlmsghdr header;
        struct nfgenmsg body;
    } question = {
        .header = {.nlmsg_len = sizeof question,
                   .nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .body = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0},
    };
    for (size_t i = 0; i < flow_room; i++) flows[i].is_listed = 0;
    is_looking_up = 1;
    if (send(questions, &question, sizeof question, 0) < 0) fail_errno("the kernel cannot be asked for connections");
    ssize_t got;
    do {
        got = recv(questions, buffer(), 64 * 1024, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail_errno("the kernel does not tell its connections");
    } while (got < 0 || take_messages(buffer(), (size_t)got));
    is_looking_up = has_missed = 0;
    looked_up_ms = now_ms();
    // Taking one away moves others: begin anew behind each.
    for (size_t i = 0; i < flow_room; i++)
        while (flows[i].key.host != 0 && !flows[i].is_listed) {
            struct key key = flows[i].key;
            take_away(&key);
        }
}

static void take_events(void) {
    // Not without end: a host on which more happens than can be followed has its questions answered all the same.
    for (int i = 0; i < EVENTS_AT_ONCE; i++) {
        ssize_t got = recv(events, buffer(), 64 * 1024, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) break;
        if (got >= 0) take_messages(buffer(), (size_t)got);
        else if (errno == ENOBUFS) has_missed = 1;
        else if (errno != EINTR) fail_errno("the kernel tells no more of connections");
    }
    if (has_missed || now_ms() - looked_up_ms >= LOOK_UP_EVERY_MS) look_up();
}

static int open_kernel(unsigned groups) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = groups};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER), size = EVENT_BUFFER;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail_errno("the kernel's connections cannot be followed");
    if (groups != 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    return fd;
}

/* ---- questions ---- */

/* Has the guest a connection that began before anyone listened, so that its end may not have been told? */
static int has_untold(uint32_t host) {
    for (size_t i = 0; i < flow_room; i++)
        if (flows[i].key.host == host && !flows[i].is_told) return 1;
    return 0;
}

static void answer(char *line) {
    char *words = line + strlen("inbound ");
    char *rest = strncmp(line, "inbound ", strlen("inbound ")) == 0 ? strchr(words, ' ') : NULL;
    if (rest != NULL) *rest++ = '\0';
    unsigned long host = strncmp(line, "inbound ", strlen("inbound ")) == 0 ? strtoul(words, NULL, 10) : 0;
    if (host == 0 || host >= subnets.hosts) {
        printf("error no such guest\n");
        return;
    }
    struct guest *guest = guest_at((uint32_t)host);
    if (guest->ignore == NULL) guest->ignore = zeros(1, sizeof *guest->ignore);
    if (parse_ignore(guest->ignore, rest == NULL ? line + strlen(line) : rest) < 0) {
        memset(guest->ignore, 0, sizeof *guest->ignore);
        printf("error not ports and networks\n");
        return;
    }
    take_events();
    if (guest->flows > 0 && now_ms() - looked_up_ms >= LOOK_UP_APART_MS && has_untold((uint32_t)host)) look_up();
    int active = 0;
    if (guest->flows > 0)
        for (size_t i = 0; i < flow_room; i++) active += flows[i].key.host == host && counts(guest, &flows[i]);
    if (active > 0) {
        guest->last_ms = now_ms();
        guest->has_been = 1;
    }
    if (guest->has_been) printf("ok %d %lld\n", active, (long long)(now_ms() - guest->last_ms));
    else printf("ok 0 -\n");
}

/* 0 at the end of standard input. */
static int take_questions(void) {
    static char text[2 * IGNORE_SIZE];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, text + length, sizeof text - length);
    if (got < 0 && errno == EINTR) return 1;
    if (got <= 0) return 0;
    length += (size_t)got;
    char *line = text;
    for (char *end; (end = memchr(line, '\n', length - (size_t)(line - text))) != NULL; line = end + 1) {
        *end = '\0';
        answer(line);
    }
    length -= (size_t)(line - text);
    memmove(text, line, length);
    // A question that does not end is none.
    return length < sizeof text && fflush(stdout) == 0;
}

static void parse_subnet(const char *text, int family, uint8_t *address, unsigned *prefix) {
    char copy[INET6_ADDRSTRLEN + 8];
    snprintf(copy, sizeof copy, "%s", text);
    char *slash = strchr(copy, '/');
    if (slash != NULL) *slash++ = '\0';
    if (slash == NULL || inet_pton(family, copy, address) != 1) fail("no subnet: %s", text);
    *prefix = (unsigned)strtoul(slash, NULL, 10);
    if (*prefix < 8 || *prefix > (family == AF_INET ? 30 : 96)) fail("no subnet of guests: %s", text);
}

int command_conntrack(const char *subnet4, const char *subnet6) {
    parse_subnet(subnet4, AF_INET, subnets.address4, &subnets.prefix4);
    parse_subnet(subnet6, AF_INET6, subnets.address6, &subnets.prefix6);
    subnets.hosts = 1u << (32 - subnets.prefix4);
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) fail_errno("no random number");
    guests = zeros(subnets.hosts, sizeof *guests);
    flows = zeros(flow_room, sizeof *flows);
    // First, so that nothing is missed between the two.
    events = open_kernel(NF_NETLINK_CONNTRACK_NEW | NF_NETLINK_CONNTRACK_UPDATE | NF_NETLINK_CONNTRACK_DESTROY);
    questions = open_kernel(0);
    look_up();
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct pollfd polls[] = {{events, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
        if (poll(polls, 2, -1) < 0 && errno != EINTR) return 1;
        if (polls[0].revents != 0) take_events();
        if (polls[1].revents != 0 && !take_questions()) return 0;
    }
}
