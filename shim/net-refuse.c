/*
 * What a guest whose way out is a proxy may not open itself: its frame goes no further, and a reset comes back at once, so that a program
 * which knows no proxy fails and says where it wanted to go.
 */
#include <string.h>

#include "net.h"

enum { TYPE_IPV4 = 0x0800, TYPE_IPV6 = 0x86dd, IPV4_HEADER = 20, IPV6_HEADER = 40, TCP_HEADER = 20, TCP = 6 };
enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };
enum { DNS = 53, HTTP = 80, HTTPS = 443 };

static const uint8_t proxy[] = {10, 0, 2, 4}, name_server[] = {10, 0, 2, 3};
static const uint8_t name_server6[16] = {0xfd, 0xd0, 0x6d, 0x05, 0xe0, [15] = 3};

static enum { NOTHING, HTTP_HTTPS_ONLY, ALL } refused;

int refuse(const char *mode) {
    if (strcmp(mode, "all") == 0) refused = ALL;
    else if (strcmp(mode, "http_https_only") == 0) refused = HTTP_HTTPS_ONLY;
    else return -1;
    return 0;
}

static unsigned u16(const uint8_t *bytes) { return (unsigned)bytes[0] << 8 | bytes[1]; }
static void put16(uint8_t *to, unsigned value) { to[0] = (uint8_t)(value >> 8), to[1] = (uint8_t)value; }

static unsigned sum(const uint8_t *bytes, size_t length, unsigned long before) {
    for (size_t i = 0; i < length; i++) before += i % 2 ? bytes[i] : (unsigned)bytes[i] << 8;
    while (before >> 16) before = (before & 0xffff) + (before >> 16);
    return (unsigned)before;
}

/* A segment of the guest's. Its header is whole. */
struct segment {
    const uint8_t *from, *to, *bytes;
    size_t address_size, length;
};

/* 0 when the frame has no TCP in it, -1 when it is refused unread. */
static int read_segment(const uint8_t *frame, size_t length, struct segment *segment) {
    if (length < ETHERNET) return 0;
    const uint8_t *packet = frame + ETHERNET;
    size_t size = length - ETHERNET, header, whole;
    if (u16(frame + 12) == TYPE_IPV4) {
        if (size < IPV4_HEADER || packet[9] != TCP) return 0;
        header = (packet[0] & 15u) * 4;
        whole = u16(packet + 2);
        // In pieces it says too late what it is.
        if ((packet[6] & 0xbf) != 0 || packet[7] != 0) return -1;
        *segment = (struct segment){.from = packet + 12, .to = packet + 16, .address_size = 4};
    } else if (u16(frame + 12) == TYPE_IPV6) {
        // What has headers between is nothing that libslirp passes on.
        if (size < IPV6_HEADER || packet[6] != TCP) return 0;
        header = IPV6_HEADER;
        whole = IPV6_HEADER + u16(packet + 4);
        *segment = (struct segment){.from = packet + 8, .to = packet + 24, .address_size = 16};
    } else {
        return 0;
    }
    if (header < IPV4_HEADER || whole > size || whole < header + TCP_HEADER) return -1;
    segment->bytes = packet + header;
    segment->length = whole - header;
    return 1;
}

static int may_open(const struct segment *segment) {
    unsigned port = u16(segment->bytes + 2);
    int is4 = segment->address_size == 4;
    if (is4 && memcmp(segment->to, proxy, 4) == 0 && port == PROXY_PORT) return 1;
    // Names are asked for over TCP too, where an answer is long.
    if (port == DNS && memcmp(segment->to, is4 ? name_server : name_server6, segment->address_size) == 0) return 1;
    return refused == HTTP_HTTPS_ONLY && port != HTTP && port != HTTPS;
}

/* RFC 9293, 3.10.7.1: all that the segment holds is acknowledged, SYN and FIN too. */
static size_t write_reset(const uint8_t *frame, const struct segment *segment, uint8_t *answer) {
    const uint8_t *bytes = segment->bytes;
    size_t size = segment->address_size, header = size == 4 ? IPV4_HEADER : IPV6_HEADER, options = (size_t)(bytes[12] >> 4) * 4;
    uint8_t *packet = answer + ETHERNET, *tcp = packet + header, *addresses = packet + header - 2 * size;
    size_t data = options >= TCP_HEADER && options <= segment->length ? segment->length - options : 0;
    uint32_t next = (uint32_t)u16(bytes + 4) << 16 | u16(bytes + 6);
    next += (uint32_t)data + 1 + ((bytes[13] & FIN) != 0);
    memset(answer, 0, ETHERNET + header + TCP_HEADER);
    memcpy(answer, frame + 6, 6);
    memcpy(answer + 6, frame, 6);
    memcpy(answer + 12, frame + 12, 2);
    memcpy(addresses, segment->to, size);
    memcpy(addresses + size, segment->from, size);
    if (size == 4) {
        packet[0] = 0x45, packet[8] = 64, packet[9] = TCP;
        put16(packet + 2, IPV4_HEADER + TCP_HEADER);
        put16(packet + 10, ~sum(packet, IPV4_HEADER, 0) & 0xffff);
    } else {
        packet[0] = 0x60, packet[6] = TCP, packet[7] = 64;
        put16(packet + 4, TCP_HEADER);
    }
    memcpy(tcp, bytes + 2, 2);
    memcpy(tcp + 2, bytes, 2);
    put16(tcp + 8, next >> 16);
    put16(tcp + 10, next & 0xffff);
    tcp[12] = TCP_HEADER / 4 << 4;
    tcp[13] = RST | ACK;
    put16(tcp + 16, ~sum(tcp, TCP_HEADER, sum(addresses, 2 * size, TCP + TCP_HEADER)) & 0xffff);
    return ETHERNET + header + TCP_HEADER;
}

int is_refused(const uint8_t *frame, size_t length, uint8_t *answer, size_t *answer_length) {
    struct segment segment;
    *answer_length = 0;
    if (refused == NOTHING) return 0;
    int is_tcp = read_segment(frame, length, &segment);
    if (is_tcp <= 0) return is_tcp < 0;
    // What answers opens nothing: published ports go on.
    if ((segment.bytes[13] & (SYN | ACK)) != SYN || may_open(&segment)) return 0;
    if ((segment.bytes[13] & RST) == 0) *answer_length = write_reset(frame, &segment, answer);
    return 1;
}
