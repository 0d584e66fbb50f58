/*
 * Datagrams between a published port and a client on the host itself, whose addresses are closed to guests: they are answered only
 * when they have written first, only from the port they wrote to, and only for a while. A client on the loopback is shown to the guest
 * as libslirp's gateway (10.0.2.2, fdd0:6d05:e000::2), to which libslirp sends nothing: those are answered from here.
 */
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>

#include "net.h"

enum { IPV4_HEADER = 20, IPV6_HEADER = 40, UDP_HEADER = 8, UDP = 17, CLIENTS = 128, KEPT_MS = 120 * 1000 };

static const uint8_t gateway[4] = {10, 0, 2, 2};
static const uint8_t gateway6[16] = {0xfd, 0xd0, 0x6d, 0x05, 0xe0, [15] = 2};

struct client {
    int family;
    uint8_t address[16];
    uint16_t client_port, guest_port;
    int64_t seen_ms; /* 0: there is none */
};

static struct client clients[CLIENTS];

struct datagram {
    int family;
    const uint8_t *from_address, *to_address;
    uint16_t from, to;
    const uint8_t *data;
    size_t length;
};

static unsigned u16(const uint8_t *bytes) { return (unsigned)bytes[0] << 8 | bytes[1]; }

static size_t size_of(int family) { return family == AF_INET ? 4 : 16; }

static int is_gateway(int family, const uint8_t *address) { return memcmp(address, family == AF_INET ? gateway : gateway6, size_of(family)) == 0; }

/* Where the UDP header begins in an IP packet that is whole, no fragment; 0 when there is none. */
static size_t find_udp(const uint8_t *packet, size_t length, int family) {
    if (length < (size_t)(family == AF_INET ? IPV4_HEADER : IPV6_HEADER)) return 0;
    // What has headers between is no one's that libslirp speaks for.
    if (family == AF_INET6) return packet[0] >> 4 == 6 && packet[6] == UDP ? IPV6_HEADER : 0;
    size_t header = (packet[0] & 15u) * 4;
    return packet[0] >> 4 == 4 && header >= IPV4_HEADER && packet[9] == UDP && (u16(packet + 6) & 0x3fff) == 0 ? header : 0;
}

static int read_datagram(const uint8_t *frame, size_t length, struct datagram *datagram) {
    if (length < ETHERNET || (u16(frame + 12) != 0x0800 && u16(frame + 12) != 0x86dd)) return 0;
    int family = u16(frame + 12) == 0x0800 ? AF_INET : AF_INET6;
    const uint8_t *packet = frame + ETHERNET, *addresses = packet + (family == AF_INET ? 12 : 8);
    size_t header = find_udp(packet, length - ETHERNET, family);
    if (header == 0 || length < ETHERNET + header + UDP_HEADER) return 0;
    const uint8_t *udp = packet + header;
    size_t size = u16(udp + 4);
    if (size < UDP_HEADER || size > length - ETHERNET - header) return 0;
    *datagram = (struct datagram){
        family, addresses, addresses + size_of(family), (uint16_t)u16(udp), (uint16_t)u16(udp + 2), udp + UDP_HEADER, size - UDP_HEADER};
    return 1;
}

static struct client *find_client(int family, const uint8_t *address, uint16_t client_port, uint16_t guest_port) {
    for (int i = 0; i < CLIENTS; i++) {
        struct client *client = &clients[i];
        if (client->seen_ms == 0 || client->family != family) continue;
        if (client->client_port != client_port || client->guest_port != guest_port) continue;
        if (memcmp(client->address, address, size_of(family)) == 0) return client;
    }
    return NULL;
}

void note_to_guest(const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    if (!read_datagram(frame, length, &datagram)) return;
    int family = datagram.family;
    if (!is_gateway(family, datagram.from_address) && !is_hosts_own(family, datagram.from_address, now_ms)) return;
    struct client *client = find_client(family, datagram.from_address, datagram.from, datagram.to);
    if (client == NULL) {
        client = &clients[0];
        for (int i = 1; i < CLIENTS; i++)
            if (clients[i].seen_ms < client->seen_ms) client = &clients[i];
        *client = (struct client){.family = family, .client_port = datagram.from, .guest_port = datagram.to};
        memcpy(client->address, datagram.from_address, size_of(family));
    }
    client->seen_ms = now_ms;
}

static unsigned changed(unsigned sum, unsigned before, unsigned now) {
    // RFC 1624: what a checksum becomes when one of its words does.
    unsigned long next = (~sum & 0xffff) + (~before & 0xfffful) + now;
    while (next >> 16) next = (next & 0xffff) + (next >> 16);
    return ~(unsigned)next & 0xffff;
}

int shows_loopback(const uint8_t *frame, size_t length) {
    static const uint8_t loopback6[16] = {[15] = 1};
    struct datagram datagram;
    if (!read_datagram(frame, length, &datagram)) return 0;
    return datagram.family == AF_INET ? datagram.from_address[0] == 127 : memcmp(datagram.from_address, loopback6, sizeof loopback6) == 0;
}

void show_gateway(uint8_t *frame, size_t length) {
    struct datagram datagram;
    if (!read_datagram(frame, length, &datagram)) return;
    int is4 = datagram.family == AF_INET;
    uint8_t *from = frame + (datagram.from_address - frame), *packet = frame + ETHERNET;
    uint8_t *sums[] = {frame + (datagram.data - frame) - 2, packet + 10};
    const uint8_t *now = is4 ? gateway : gateway6;
    for (size_t i = 0; i < (is4 ? 2 : 1); i++) {
        unsigned sum = u16(sums[i]);
        for (size_t at = 0; at < size_of(datagram.family); at += 2) sum = changed(sum, u16(from + at), u16(now + at));
        // A datagram's own says by 0 that there is none.
        if (i == 0 && (u16(sums[i]) == 0 || sum == 0)) sum = u16(sums[i]) == 0 ? 0 : 0xffff;
        sums[i][0] = (uint8_t)(sum >> 8), sums[i][1] = (uint8_t)sum;
    }
    memcpy(from, now, size_of(datagram.family));
}

static int is_answer_to_client(const struct datagram *datagram, int64_t now_ms) {
    const struct client *client = find_client(datagram->family, datagram->to_address, datagram->to, datagram->from);
    return client != NULL && now_ms - client->seen_ms <= KEPT_MS;
}

int is_answer(const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    return read_datagram(frame, length, &datagram) && is_answer_to_client(&datagram, now_ms);
}

static void send_to_loopback(const struct port *port, const struct datagram *datagram) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(datagram->to), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 to6 = {.sin6_family = AF_INET6, .sin6_port = htons(datagram->to), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int is4 = datagram->family == AF_INET;
    sendto(port->fd, datagram->data, datagram->length, MSG_DONTWAIT | MSG_NOSIGNAL, is4 ? (struct sockaddr *)&to : (struct sockaddr *)&to6,
           is4 ? sizeof to : sizeof to6);
}

int answer_on_loopback(const struct net *net, const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    if (!read_datagram(frame, length, &datagram) || !is_gateway(datagram.family, datagram.to_address)) return 0;
    if (!is_answer_to_client(&datagram, now_ms)) return 0;
    for (int i = 0; i < net->port_count; i++) {
        const struct port *port = &net->ports[i];
        if (!port->is_udp || port->guest_port != datagram.from || port->host.ss_family != datagram.family) continue;
        if (port->fd >= 0) send_to_loopback(port, &datagram);
    }
    return 1;
}
