#pragma once
/* Connections that keep no one awake: those to some ports, and those from some networks. */
#include <stdint.h>

enum { MAX_IGNORED = 256, IGNORE_SIZE = 32 * 1024 };

struct ignored_net {
    int family;
    uint8_t address[16];
    unsigned prefix;
};

struct ignore {
    uint16_t ports[MAX_IGNORED];
    struct ignored_net nets[MAX_IGNORED];
    int port_count, net_count;
};

/* Words such as `22` and `10.0.0.0/8`, parted by blanks; the text is taken apart. -1 when one of them is neither, or there are too many. */
int parse_ignore(struct ignore *ignore, char *words);
/* Whether a connection from there to that port of the guest is one of them. `family` is AF_INET or AF_INET6. */
int is_ignored(const struct ignore *ignore, int family, const uint8_t *from, uint16_t guest_port);
