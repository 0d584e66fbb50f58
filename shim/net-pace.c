/*
 * How fast a guest may be: a bucket of tokens for each direction. What passes is never held by us and never dropped for it. When a
 * bucket is empty, what would fill it further is not read: frames then wait in QEMU, which stops taking them from the guest, and data
 * for the guest waits in the sockets of the host, whose peers slow down.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net.h"

/* A tenth of a second may come at once, so that a helper that gets its turn late loses nothing; and one large frame always. */
enum { BURSTS_A_SECOND = 10, LEAST_BURST = 65536, RATES_AT = 64 };

static void refill(struct pace *pace, int64_t now_ns) {
    double burst = (double)pace->bytes_a_second / BURSTS_A_SECOND;
    if (burst < LEAST_BURST) burst = LEAST_BURST;
    pace->tokens += (double)(now_ns - pace->at_ns) * (double)pace->bytes_a_second / 1e9;
    if (pace->tokens > burst) pace->tokens = burst;
    pace->at_ns = now_ns;
}

int must_wait(struct pace *pace, int64_t now_ns) {
    if (pace->bytes_a_second == 0) return 0;
    refill(pace, now_ns);
    return pace->tokens <= 0;
}

uint32_t wait_of(const struct pace *pace) {
    if (pace->bytes_a_second == 0 || pace->tokens > 0) return UINT32_MAX;
    double ms = -pace->tokens * 1000 / (double)pace->bytes_a_second;
    return ms > 1e6 ? 1000000 : (uint32_t)ms + 1;
}

void spend(struct pace *pace, size_t bytes) {
    // Into debt, if need be: what is here has to go on.
    if (pace->bytes_a_second > 0) pace->tokens -= (double)bytes;
}

static void set_rate(struct pace *pace, uint64_t bytes_a_second, int64_t now_ns) {
    if (pace->bytes_a_second == bytes_a_second) return;
    // A debt of the old rate is none of the new one.
    *pace = (struct pace){.bytes_a_second = bytes_a_second, .at_ns = now_ns};
}

static int parse_rate(const char *text, const char *end_at, uint64_t *rate, const char **end) {
    char *stop;
    if (*text < '0' || *text > '9') return -1;
    errno = 0;
    *rate = strtoull(text, &stop, 10);
    *end = stop;
    return errno == 0 && *rate < 1ULL << 50 && strchr(end_at, *stop) != NULL ? 0 : -1;
}

static int apply(struct net *net, const uint64_t rates[2], int64_t now_ns) {
    set_rate(&net->to_guest, rates[0], now_ns);
    set_rate(&net->from_guest, rates[1], now_ns);
    return 0;
}

int set_rates(struct net *net, const char *words, int64_t now_ns) {
    uint64_t rates[2];
    const char *end;
    if (parse_rate(words, " ", &rates[0], &end) < 0 || *end == '\0') return -1;
    if (parse_rate(end + 1, "", &rates[1], &end) < 0) return -1;
    // For the next life of this helper, beside its ports.
    const uint64_t kept[3] = {1, rates[0], rates[1]};
    if (pwrite(PORTS_FD, kept, sizeof kept, RATES_AT) < 0) fprintf(stderr, "dormouse-net: the rates cannot be kept: %s\n", strerror(errno));
    return apply(net, rates, now_ns);
}

int restore_rates(struct net *net, int64_t now_ns) {
    uint64_t kept[3];
    if (pread(PORTS_FD, kept, sizeof kept, RATES_AT) != sizeof kept || kept[0] != 1) return 0;
    apply(net, kept + 1, now_ns);
    return 1;
}
