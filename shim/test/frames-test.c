/* What may leave a guest and what is answered on the loopback, frame by frame, then with noise. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "../net.h"

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

static size_t ipv4_frame(uint8_t *frame, const char *from, const char *to, int protocol, size_t payload) {
    memset(frame, 0, 14 + 20 + payload);
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[14 + 9] = (uint8_t)protocol;
    inet_pton(AF_INET, from, frame + 14 + 12);
    inet_pton(AF_INET, to, frame + 14 + 16);
    return 14 + 20 + payload;
}

static int leaves4(const char *to) {
    uint8_t frame[64];
    return may_leave(frame, ipv4_frame(frame, "10.0.2.15", to, 6, 20), 0);
}

static int leaves6(const char *to) {
    uint8_t frame[64] = {0};
    frame[12] = 0x86;
    frame[13] = 0xdd;
    inet_pton(AF_INET6, to, frame + 14 + 24);
    return may_leave(frame, 54, 0);
}

static void addresses(void) {
    CHECK(leaves4("192.0.2.1"));
    CHECK(leaves4("10.0.2.3"));
    CHECK(leaves4("255.255.255.255"));
    CHECK(!leaves4("127.0.0.1"));
    CHECK(!leaves4("127.255.255.254"));
    CHECK(!leaves4("0.0.0.0"));
    CHECK(!leaves4("169.254.169.254"));
    CHECK(!leaves4("100.100.100.200"));
    CHECK(leaves4("100.100.100.201"));
    CHECK(!leaves4("168.63.129.16"));
    CHECK(!leaves6("fd00:ec2::254"));
    CHECK(!leaves6("fd20:ce::254"));
    CHECK(leaves6("fd00:ec2::255"));
    CHECK(!leaves6("64:ff9b::169.254.169.254"));
    CHECK(!leaves6("64:ff9b::127.0.0.1"));
    CHECK(leaves6("64:ff9b::192.0.2.1"));
    CHECK(!leaves6("2002:a9fe:a9fe::1"));
    CHECK(leaves6("2001:db8::1"));
    CHECK(leaves6("ff02::2"));
    CHECK(!leaves6("::1"));
    CHECK(!leaves6("::"));
    CHECK(!leaves6("::ffff:127.0.0.1"));
    CHECK(!leaves6("::127.0.0.1"));
    const uint8_t arp[42] = {[12] = 0x08, [13] = 0x06};
    CHECK(may_leave(arp, sizeof arp, 0));
    CHECK(!may_leave(arp, 13, 0));
    const uint8_t controller[60] = {[12] = 0x88, [13] = 0xf8};
    CHECK(!may_leave(controller, sizeof controller, 0));
    uint8_t cut[64];
    CHECK(!may_leave(cut, ipv4_frame(cut, "10.0.2.15", "192.0.2.1", 6, 0) - 1, 0));
}

static int leaves(const char *to, int protocol, int port_or_type) {
    uint8_t frame[64] = {0};
    int is6 = strchr(to, ':') != NULL;
    size_t length = is6 ? 62 : ipv4_frame(frame, "10.0.2.15", to, protocol, 8);
    if (is6) {
        frame[12] = 0x86, frame[13] = 0xdd, frame[14 + 6] = (uint8_t)protocol;
        inet_pton(AF_INET6, to, frame + 14 + 24);
    }
    frame[length - 8] = (uint8_t)port_or_type;
    frame[length - 5] = (uint8_t)port_or_type;
    return may_leave(frame, length, 0);
}

/* What libslirp would serve and no guest needs: addresses, files, advertisements. */
static void services(void) {
    CHECK(!leaves("10.0.2.2", 17, 67));
    CHECK(!leaves("10.0.2.2", 17, 69));
    CHECK(!leaves("255.255.255.255", 17, 67));
    CHECK(leaves("10.0.2.3", 17, 53));
    CHECK(leaves("10.0.2.2", 1, 8));
    CHECK(!leaves("fdd0:6d05:e000::2", 17, 69));
    CHECK(!leaves("ff02::1:2", 17, 35));
    CHECK(leaves("fdd0:6d05:e000::3", 17, 53));
    CHECK(!leaves("ff02::2", 58, 133));
    CHECK(leaves("ff02::1:ff00:2", 58, 135));
    CHECK(leaves("fdd0:6d05:e000::2", 58, 128));
    CHECK(!leaves("fdd0:6d05:e000::77", 58, 128));
    CHECK(!leaves("2001:db8::1", 58, 128));
    CHECK(leaves("2001:db8::1", 17, 7));
}

static size_t udp_frame(uint8_t *frame, const char *from, const char *to, int from_port, int to_port, const char *text) {
    size_t length = ipv4_frame(frame, from, to, 17, 8 + strlen(text));
    uint8_t *udp = frame + 34;
    udp[0] = (uint8_t)(from_port >> 8), udp[1] = (uint8_t)from_port, udp[2] = (uint8_t)(to_port >> 8), udp[3] = (uint8_t)to_port;
    udp[5] = (uint8_t)(8 + strlen(text));
    memcpy(udp + 8, text, strlen(text));
    return length;
}

static void datagrams(void) {
    static struct net net;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof any;
    int client = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(bind(client, (struct sockaddr *)&any, sizeof any) == 0);
    CHECK(getsockname(client, (struct sockaddr *)&any, &size) == 0);
    int client_port = ntohs(any.sin_port);
    net.ports[0] = (struct port){.is_udp = 1, .guest_port = 7, .fd = socket(AF_INET, SOCK_DGRAM, 0), .host.ss_family = AF_INET};
    net.port_count = 1;

    uint8_t frame[256];
    char got[16] = "";
    size_t length = udp_frame(frame, "10.0.2.15", "10.0.2.2", 7, client_port, "early");
    CHECK(!answer_on_loopback(&net, frame, length, 1000));
    length = udp_frame(frame, "10.0.2.2", "10.0.2.15", client_port, 7, "ping");
    note_to_guest(frame, length, 1000);
    length = udp_frame(frame, "10.0.2.15", "10.0.2.2", 7, client_port, "pong");
    CHECK(answer_on_loopback(&net, frame, length, 2000));
    CHECK(recv(client, got, sizeof got - 1, MSG_DONTWAIT) == 4 && strcmp(got, "pong") == 0);
    CHECK(!is_answer(frame, udp_frame(frame, "10.0.2.15", "10.0.2.3", 7, client_port, "x"), 2000));
    // Another port of the client's host, another port of the guest, a fragment, a lying length, much later: none of these.
    CHECK(!answer_on_loopback(&net, frame, udp_frame(frame, "10.0.2.15", "10.0.2.2", 7, client_port ^ 1, "x"), 2000));
    CHECK(!answer_on_loopback(&net, frame, udp_frame(frame, "10.0.2.15", "10.0.2.2", 8, client_port, "x"), 2000));
    length = udp_frame(frame, "10.0.2.15", "10.0.2.2", 7, client_port, "x");
    frame[14 + 6] = 0x20;
    CHECK(!answer_on_loopback(&net, frame, length, 2000));
    length = udp_frame(frame, "10.0.2.15", "10.0.2.2", 7, client_port, "x");
    frame[34 + 5] = 200;
    CHECK(!answer_on_loopback(&net, frame, length, 2000));
    CHECK(!answer_on_loopback(&net, frame, udp_frame(frame, "10.0.2.15", "10.0.2.2", 7, client_port, "late"), 1000000));
    CHECK(recv(client, got, sizeof got, MSG_DONTWAIT) < 0);
}

static unsigned sum_of(const uint8_t *bytes, size_t length, unsigned long sum) {
    for (size_t i = 0; i < length; i++) sum += i % 2 ? bytes[i] : (unsigned)bytes[i] << 8;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return (unsigned)sum;
}

/* With the checksums that libslirp has put into it. */
static void loopbacks(void) {
    uint8_t frame[256];
    for (int round = 0; round < 1000; round++) {
        char text[8];
        snprintf(text, sizeof text, "%d", round * 7919);
        size_t length = udp_frame(frame, "127.0.0.1", "10.0.2.15", 30000 + round, 7, text), udp = length - 34;
        unsigned whole = sum_of(frame + 34, udp, sum_of(frame + 26, 8, 17 + udp)) ^ 0xffff;
        frame[40] = (uint8_t)(whole >> 8), frame[41] = (uint8_t)whole;
        unsigned header = sum_of(frame + 14, 20, 0) ^ 0xffff;
        frame[24] = (uint8_t)(header >> 8), frame[25] = (uint8_t)header;
        CHECK(shows_loopback(frame, length));
        show_gateway(frame, length);
        CHECK(!shows_loopback(frame, length) && memcmp(frame + 26, "\x0a\0\2\2", 4) == 0);
        CHECK(sum_of(frame + 14, 20, 0) == 0xffff && sum_of(frame + 34, udp, sum_of(frame + 26, 8, 17 + udp)) == 0xffff);
    }
}

/* A SYN, or another segment; -1: it goes on, else how long the answer is. */
static int refusal(const char *to, int port, int flags, size_t cut, uint8_t *answer) {
    uint8_t frame[128] = {0};
    int is6 = strchr(to, ':') != NULL;
    size_t length = is6 ? 14 + 40 + 20 : ipv4_frame(frame, "10.0.2.15", to, 6, 20), answer_length;
    if (is6) {
        frame[12] = 0x86, frame[13] = 0xdd, frame[14] = 0x60, frame[14 + 6] = 6, frame[14 + 5] = 20;
        inet_pton(AF_INET6, "fdd0:6d05:e000::15", frame + 14 + 8);
        inet_pton(AF_INET6, to, frame + 14 + 24);
    } else {
        frame[14 + 3] = 40;
    }
    uint8_t *tcp = frame + length - 20;
    memcpy(frame, "\x52\x55\x0a\0\2\2\2\0\0\0\0\1", 12);
    tcp[0] = 0x80, tcp[2] = (uint8_t)(port >> 8), tcp[3] = (uint8_t)port;
    memset(tcp + 4, 0xff, 4);
    tcp[12] = 5 << 4, tcp[13] = (uint8_t)flags;
    return is_refused(frame, length - cut, answer, &answer_length) ? (int)answer_length : -1;
}

static void refusals(void) {
    enum { SYN = 2, RST = 4, ACK = 16 };
    uint8_t answer[RESET_SIZE];
    CHECK(refusal("192.0.2.1", 443, SYN, 0, answer) == -1);
    CHECK(refuse("some") == -1);
    CHECK(refuse("http_https_only") == 0);
    CHECK(refusal("192.0.2.1", 443, SYN, 0, answer) == 54);
    CHECK(refusal("192.0.2.1", 8443, SYN, 0, answer) == -1);
    CHECK(refuse("all") == 0);
    CHECK(refusal("192.0.2.1", 8443, SYN, 0, answer) == 54);
    CHECK(memcmp(answer, "\2\0\0\0\0\1\x52\x55\x0a\0\2\2\x08\0\x45", 15) == 0);
    CHECK(memcmp(answer + 26, "\xc0\0\2\1\x0a\0\2\x0f", 8) == 0);
    // Ports, no number, and all of its own after the last one: 0.
    CHECK(memcmp(answer + 34, "\x20\xfb\x80\0\0\0\0\0\0\0\0\0\x50\x14", 14) == 0);
    CHECK(sum_of(answer + 14, 20, 0) == 0xffff && sum_of(answer + 34, 20, sum_of(answer + 26, 8, 6 + 20)) == 0xffff);
    CHECK(refusal("2001:db8::1", 22, SYN, 0, answer) == 74);
    CHECK(sum_of(answer + 54, 20, sum_of(answer + 22, 32, 6 + 20)) == 0xffff && answer[67] == (RST | ACK));
    CHECK(refusal("192.0.2.1", 80, SYN | ACK, 0, answer) == -1);
    CHECK(refusal("192.0.2.1", 80, ACK, 0, answer) == -1);
    CHECK(refusal("192.0.2.1", 80, SYN | RST, 0, answer) == 0);
    CHECK(refusal("192.0.2.1", 80, SYN, 1, answer) == 0);
    CHECK(refusal("10.0.2.4", 3128, SYN, 0, answer) == -1);
    CHECK(refusal("10.0.2.4", 80, SYN, 0, answer) == 54);
    CHECK(refusal("10.0.2.3", 53, SYN, 0, answer) == -1);
    CHECK(refusal("fdd0:6d05:e000::3", 53, SYN, 0, answer) == -1);
    CHECK(refusal("fdd0:6d05:e000::2", 53, SYN, 0, answer) == 74);
    CHECK(refusal("192.0.2.1", 53, SYN, 0, answer) == 54);
}

static void noise(void) {
    static struct net net;
    uint8_t reset[RESET_SIZE];
    size_t reset_length;
    srand(1);
    for (int round = 0; round < 300000; round++) {
        size_t length = (size_t)rand() % 96;
        uint8_t *frame = malloc(length + 1);
        for (size_t i = 0; i < length; i++) frame[i] = (uint8_t)rand();
        if (length > 14 && round % 2) frame[12] = 0x08, frame[13] = 0, frame[14] = (uint8_t)(0x40 | rand() % 16);
        if (length > 34 && round % 4 == 1) frame[23] = 17, memcpy(frame + 30, "\x0a\0\2\2", 4), frame[20] = frame[21] = 0;
        if (length > 34 && round % 8 == 1) frame[26] = 127;
        if (length > 54 && round % 4 == 2) frame[12] = 0x86, frame[13] = 0xdd, frame[14] = 0x60, frame[20] = 17, memset(frame + 22, 0, 15), frame[37] = 1;
        uint8_t *exact = realloc(frame, length == 0 ? 1 : length);
        may_leave(exact, length, round);
        note_to_guest(exact, length, round);
        if (shows_loopback(exact, length)) show_gateway(exact, length);
        answer_on_loopback(&net, exact, length, round);
        if (length > 23 && round % 4 < 2) exact[23] = 6, exact[16] = 0, exact[17] = (uint8_t)(rand() % 96);
        if (length > 23 && round % 4 == 2) exact[20] = 6, exact[18] = 0, exact[19] = (uint8_t)(rand() % 64);
        is_refused(exact, length, reset, &reset_length);
        free(exact);
    }
}

int main(void) {
    addresses();
    services();
    datagrams();
    loopbacks();
    refusals();
    noise();
    return failures != 0;
}
