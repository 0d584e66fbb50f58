#include "ignore.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

static int parse_number(const char *text, unsigned long most, unsigned long *number) {
    char *end;
    if (*text < '0' || *text > '9') return -1;
    *number = strtoul(text, &end, 10);
    return *end == '\0' && *number <= most ? 0 : -1;
}

static int parse_net(struct ignored_net *net, char *text) {
    char *slash = strchr(text, '/');
    unsigned long prefix;
    if (slash == NULL) return -1;
    *slash = '\0';
    memset(net, 0, sizeof *net);
    net->family = strchr(text, ':') == NULL ? AF_INET : AF_INET6;
    if (inet_pton(net->family, text, net->address) != 1) return -1;
    if (parse_number(slash + 1, net->family == AF_INET ? 32 : 128, &prefix) < 0) return -1;
    net->prefix = (unsigned)prefix;
    return 0;
}

int parse_ignore(struct ignore *ignore, char *words) {
    ignore->port_count = ignore->net_count = 0;
    for (char *word; (word = strsep(&words, " ")) != NULL;) {
        unsigned long port;
        if (*word == '\0') continue;
        if (strchr(word, '/') != NULL) {
            if (ignore->net_count == MAX_IGNORED || parse_net(&ignore->nets[ignore->net_count], word) < 0) return -1;
            ignore->net_count++;
        } else {
            if (ignore->port_count == MAX_IGNORED || parse_number(word, 65535, &port) < 0) return -1;
            ignore->ports[ignore->port_count++] = (uint16_t)port;
        }
    }
    return 0;
}

static int is_within(const struct ignored_net *net, const uint8_t *address) {
    unsigned bytes = net->prefix / 8, bits = net->prefix % 8;
    if (memcmp(net->address, address, bytes) != 0) return 0;
    return bits == 0 || ((net->address[bytes] ^ address[bytes]) >> (8 - bits)) == 0;
}

int is_ignored(const struct ignore *ignore, int family, const uint8_t *from, uint16_t guest_port) {
    for (int i = 0; i < ignore->port_count; i++)
        if (ignore->ports[i] == guest_port) return 1;
    for (int i = 0; i < ignore->net_count; i++)
        if (ignore->nets[i].family == family && is_within(&ignore->nets[i], from)) return 1;
    return 0;
}
