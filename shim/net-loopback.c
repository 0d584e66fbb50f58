/*
 * Datagrams between a published port and a client on the host itself, whose addresses are closed to guests: they are answered only
 * when they have written first, only from the port they wrote to, and only for a while. A client on the loopback is shown to the guest
 * as libslirp's gateway (10.0.2.2), to which libslirp sends nothing: those are answered from here.
 */
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>

#include "net.h"

enum { IP_HEADER = 20, UDP_HEADER = 8, UDP = 17, CLIENTS = 128, KEPT_MS = 120 * 1000 };

static const uint8_t gateway[4] = {10, 0, 2, 2};

struct client {
    uint8_t address[4];
    uint16_t client_port, guest_port;
    int64_t seen_ms; /* 0: there is none */
};

static struct client clients[CLIENTS];

struct datagram {
    const uint8_t *from_address, *to_address;
    uint16_t from, to;
    const uint8_t *data;
    size_t length;
};

static unsigned u16(const uint8_t *bytes) { return (unsigned)bytes[0] << 8 | bytes[1]; }

/* An IPv4 datagram that is whole, no fragment. */
static int read_datagram(const uint8_t *frame, size_t length, struct datagram *datagram) {
    if (length < ETHERNET + IP_HEADER + UDP_HEADER || u16(frame + 12) != 0x0800) return 0;
    const uint8_t *packet = frame + ETHERNET;
    size_t header = (packet[0] & 15u) * 4;
    if (packet[0] >> 4 != 4 || header < IP_HEADER || packet[9] != UDP || (u16(packet + 6) & 0x3fff) != 0) return 0;
    if (length < ETHERNET + header + UDP_HEADER) return 0;
    const uint8_t *udp = packet + header;
    size_t size = u16(udp + 4);
    if (size < UDP_HEADER || size > length - ETHERNET - header) return 0;
    *datagram = (struct datagram){packet + 12, packet + 16, (uint16_t)u16(udp), (uint16_t)u16(udp + 2), udp + UDP_HEADER, size - UDP_HEADER};
    return 1;
}

static struct client *find_client(const uint8_t *address, uint16_t client_port, uint16_t guest_port) {
    for (int i = 0; i < CLIENTS; i++) {
        struct client *client = &clients[i];
        if (client->seen_ms == 0 || client->client_port != client_port || client->guest_port != guest_port) continue;
        if (memcmp(client->address, address, 4) == 0) return client;
    }
    return NULL;
}

void note_to_guest(const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    if (!read_datagram(frame, length, &datagram)) return;
    if (memcmp(datagram.from_address, gateway, 4) != 0 && !is_hosts_own(AF_INET, datagram.from_address, now_ms)) return;
    struct client *client = find_client(datagram.from_address, datagram.from, datagram.to);
    if (client == NULL) {
        client = &clients[0];
        for (int i = 1; i < CLIENTS; i++)
            if (clients[i].seen_ms < client->seen_ms) client = &clients[i];
        *client = (struct client){.client_port = datagram.from, .guest_port = datagram.to};
        memcpy(client->address, datagram.from_address, 4);
    }
    client->seen_ms = now_ms;
}

static int is_answer_to_client(const struct datagram *datagram, int64_t now_ms) {
    const struct client *client = find_client(datagram->to_address, datagram->to, datagram->from);
    return client != NULL && now_ms - client->seen_ms <= KEPT_MS;
}

int is_answer(const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    return read_datagram(frame, length, &datagram) && is_answer_to_client(&datagram, now_ms);
}

int answer_on_loopback(const struct net *net, const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    if (!read_datagram(frame, length, &datagram) || memcmp(datagram.to_address, gateway, 4) != 0) return 0;
    if (!is_answer_to_client(&datagram, now_ms)) return 0;
    for (int i = 0; i < net->port_count; i++) {
        const struct port *port = &net->ports[i];
        if (!port->is_udp || port->guest_port != datagram.from || port->host.ss_family != AF_INET) continue;
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(datagram.to), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        if (port->fd >= 0) sendto(port->fd, datagram.data, datagram.length, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof to);
    }
    return 1;
}
