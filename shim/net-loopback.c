/*
 * Datagrams between a published port and a client on the host itself. libslirp shows such a client to the guest as the gateway
 * (10.0.2.2), and since the gateway is closed to guests it would drop the answer. So answers are sent from here: only to a client
 * that has written first, only from the port it wrote to, and only for a while.
 */
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>

#include "net.h"

enum { IP_HEADER = 20, UDP_HEADER = 8, UDP = 17, CLIENTS = 128, KEPT_MS = 120 * 1000 };

static const uint8_t gateway[4] = {10, 0, 2, 2};

struct client {
    uint16_t client_port, guest_port;
    int64_t seen_ms;
};

static struct client clients[CLIENTS];

struct datagram {
    uint16_t from, to;
    const uint8_t *data;
    size_t length;
};

static unsigned u16(const uint8_t *bytes) { return (unsigned)bytes[0] << 8 | bytes[1]; }

/* An IPv4 datagram that is whole (no fragment) and whose address at `address_at` is the gateway. */
static int read_datagram(const uint8_t *frame, size_t length, size_t address_at, struct datagram *datagram) {
    if (length < ETHERNET + IP_HEADER + UDP_HEADER || u16(frame + 12) != 0x0800) return 0;
    const uint8_t *packet = frame + ETHERNET;
    size_t header = (packet[0] & 15u) * 4;
    if (packet[0] >> 4 != 4 || header < IP_HEADER || packet[9] != UDP || (u16(packet + 6) & 0x3fff) != 0) return 0;
    if (memcmp(packet + address_at, gateway, 4) != 0 || length < ETHERNET + header + UDP_HEADER) return 0;
    const uint8_t *udp = packet + header;
    size_t size = u16(udp + 4);
    if (size < UDP_HEADER || size > length - ETHERNET - header) return 0;
    *datagram = (struct datagram){(uint16_t)u16(udp), (uint16_t)u16(udp + 2), udp + UDP_HEADER, size - UDP_HEADER};
    return 1;
}

void note_to_guest(const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    if (!read_datagram(frame, length, 12, &datagram)) return;
    struct client *oldest = &clients[0];
    for (int i = 0; i < CLIENTS; i++) {
        struct client *client = &clients[i];
        if (client->client_port == datagram.from && client->guest_port == datagram.to) {
            client->seen_ms = now_ms;
            return;
        }
        if (client->seen_ms < oldest->seen_ms) oldest = client;
    }
    *oldest = (struct client){datagram.from, datagram.to, now_ms};
}

int answer_on_loopback(const struct net *net, const uint8_t *frame, size_t length, int64_t now_ms) {
    struct datagram datagram;
    if (!read_datagram(frame, length, 16, &datagram)) return 0;
    for (int i = 0; i < CLIENTS; i++) {
        const struct client *client = &clients[i];
        if (client->seen_ms == 0 || client->client_port != datagram.to || client->guest_port != datagram.from) continue;
        if (now_ms - client->seen_ms > KEPT_MS) return 0;
        for (int k = 0; k < net->port_count; k++) {
            const struct port *port = &net->ports[k];
            if (!port->is_udp || port->guest_port != datagram.from || port->host.ss_family != AF_INET) continue;
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(datagram.to), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
            if (port->fd >= 0) sendto(port->fd, datagram.data, datagram.length, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof to);
        }
        return 1;
    }
    return 0;
}
