/* The published ports, and what the daemon asks: one line, one answer, `ok` or `error`. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ignore.h"
#include "net.h"

static int parse_number(const char *text, uint16_t *port) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 1 || value > 65535) return -1;
    *port = (uint16_t)value;
    return 0;
}

/* PROTOCOL:ADDRESS:HOSTPORT:GUESTPORT, an IPv6 address in brackets. */
static int parse_port(const char *word, struct port *port) {
    memset(port, 0, sizeof *port);
    if (strlen(word) >= sizeof port->word) return -1;
    strcpy(port->word, word);
    char text[sizeof port->word];
    strcpy(text, word);
    if (strncmp(text, "udp:", 4) == 0) port->is_udp = 1;
    else if (strncmp(text, "tcp:", 4) != 0) return -1;
    char *guest = strrchr(text, ':');
    *guest++ = '\0';
    char *host = strrchr(text, ':');
    if (host == NULL || host <= text + 3) return -1;
    *host++ = '\0';
    uint16_t host_port;
    if (parse_number(guest, &port->guest_port) < 0 || parse_number(host, &host_port) < 0) return -1;
    char *address = text + 4;
    size_t length = strlen(address);
    if (length > 1 && address[0] == '[' && address[length - 1] == ']') {
        address[length - 1] = '\0';
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&port->host;
        *in6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(host_port)};
        port->host_size = sizeof *in6;
        return inet_pton(AF_INET6, address + 1, &in6->sin6_addr) == 1 ? 0 : -1;
    }
    struct sockaddr_in *in = (struct sockaddr_in *)&port->host;
    *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(host_port)};
    port->host_size = sizeof *in;
    return inet_pton(AF_INET, address, &in->sin_addr) == 1 ? 0 : -1;
}

static int find_port(const struct net *net, const char *word) {
    for (int i = 0; i < net->port_count; i++)
        if (strcmp(net->ports[i].word, word) == 0) return i;
    return -1;
}

/*
 * For the next life of this helper, should the shim have to start another one. There is room for two lists and a header that says
 * which of them holds: a life may end between any two writes.
 */
struct remembered {
    uint64_t at, length;
};

enum { LIST_SIZE = MAX_PORTS * sizeof(struct port), LISTS_AT = 4096 };

static int read_remembered(struct remembered *remembered) {
    if (pread(PORTS_FD, remembered, sizeof *remembered, 0) != sizeof *remembered) return -1;
    return remembered->at != 0 && remembered->length < LIST_SIZE ? 0 : -1;
}

static void remember_ports(const struct net *net) {
    static char text[LIST_SIZE];
    size_t length = 0;
    for (int i = 0; i < net->port_count; i++) length += (size_t)snprintf(text + length, sizeof text - length, "%s\n", net->ports[i].word);
    struct remembered last, next = {.at = LISTS_AT, .length = length};
    if (read_remembered(&last) == 0 && last.at == LISTS_AT) next.at += LIST_SIZE;
    if (pwrite(PORTS_FD, text, length, (off_t)next.at) != (ssize_t)length) return;
    if (pwrite(PORTS_FD, &next, sizeof next, 0) < 0) fprintf(stderr, "dormouse-net: the ports cannot be kept: %s\n", strerror(errno));
}

static int port_flags(const struct port *port) {
    return (port->is_udp ? SLIRP_HOSTFWD_UDP : 0) | (port->host.ss_family == AF_INET6 ? SLIRP_HOSTFWD_V6ONLY : 0);
}

/* The socket that libslirp has just opened for a port: the one that is bound to its address, and no connection of that port's. */
static int socket_of(const struct port *port) {
    for (int fd = PORTS_FD + 1; fd < MAX_POLLS; fd++) {
        struct sockaddr_storage bound;
        socklen_t size = sizeof bound, int_size = sizeof(int);
        int type, listens;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &int_size) < 0 || type != (port->is_udp ? SOCK_DGRAM : SOCK_STREAM)) continue;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &int_size) < 0 || listens == port->is_udp) continue;
        if (getsockname(fd, (struct sockaddr *)&bound, &size) == 0 && size == port->host_size && memcmp(&bound, &port->host, size) == 0) return fd;
    }
    return -1;
}

static int publish(struct net *net, const char *word, char *why, size_t why_size) {
    struct port port;
    if (find_port(net, word) >= 0) return 0;
    if (net->port_count == MAX_PORTS || parse_port(word, &port) < 0) {
        snprintf(why, why_size, "not a port, or one too many: %.100s", word);
        return -1;
    }
    struct sockaddr_in guest = {.sin_family = AF_INET, .sin_port = htons(port.guest_port)};
    inet_pton(AF_INET, GUEST_ADDRESS, &guest.sin_addr);
    struct sockaddr_in6 guest6 = {.sin6_family = AF_INET6, .sin6_port = htons(port.guest_port)};
    inet_pton(AF_INET6, GUEST_ADDRESS6, &guest6.sin6_addr);
    int is6 = port.host.ss_family == AF_INET6;
    errno = 0;
    if (slirp_add_hostxfwd(net->slirp, (struct sockaddr *)&port.host, port.host_size, is6 ? (struct sockaddr *)&guest6 : (struct sockaddr *)&guest,
                           is6 ? sizeof guest6 : sizeof guest, port_flags(&port)) < 0) {
        if (errno == EADDRINUSE) snprintf(why, why_size, "port_in_use %.200s", word);
        else snprintf(why, why_size, "cannot publish %.120s: %s", word, strerror(errno));
        return -1;
    }
    port.fd = socket_of(&port);
    net->ports[net->port_count++] = port;
    return 0;
}

int add_port(struct net *net, const char *word, char *why, size_t why_size) {
    if (publish(net, word, why, why_size) < 0) return -1;
    remember_ports(net);
    return 0;
}

static int remove_port(struct net *net, const char *word, char *why, size_t why_size) {
    int index = find_port(net, word);
    if (index < 0) return 0;
    const struct port *port = &net->ports[index];
    if (slirp_remove_hostxfwd(net->slirp, (const struct sockaddr *)&port->host, port->host_size, port_flags(port)) < 0) {
        snprintf(why, why_size, "cannot withdraw %.120s", word);
        return -1;
    }
    net->ports[index] = net->ports[--net->port_count];
    remember_ports(net);
    return 0;
}

int restore_ports(struct net *net) {
    static char text[LIST_SIZE];
    struct remembered remembered;
    char why[256];
    if (read_remembered(&remembered) < 0) return 0;
    if (pread(PORTS_FD, text, remembered.length, (off_t)remembered.at) != (ssize_t)remembered.length) return 0;
    char *rest = text;
    // Not remembered anew: what this life cannot publish, or does not live to, is for the next one to try.
    for (char *word; (word = strsep(&rest, "\n")) != NULL;)
        if (*word != '\0' && publish(net, word, why, sizeof why) < 0) fprintf(stderr, "dormouse-net: %s\n", why);
    return 1;
}

static void answer(struct net *net, char *line, int64_t now_ns, char *text, size_t size) {
    char why[256];
    if (strcmp(line, "traffic") == 0) {
        snprintf(text, size, "ok %llu %llu\n", (unsigned long long)net->to_guest_bytes, (unsigned long long)net->from_guest_bytes);
    } else if (strcmp(line, "ports") == 0) {
        size_t at = (size_t)snprintf(text, size, "ok");
        for (int i = 0; i < net->port_count; i++) at += (size_t)snprintf(text + at, size - at, " %s", net->ports[i].word);
        snprintf(text + at, size - at, "\n");
    } else if (strncmp(line, "add ", 4) == 0) {
        if (add_port(net, line + 4, why, sizeof why) < 0) snprintf(text, size, "error %s\n", why);
        else snprintf(text, size, "ok\n");
    } else if (strncmp(line, "remove ", 7) == 0) {
        if (remove_port(net, line + 7, why, sizeof why) < 0) snprintf(text, size, "error %s\n", why);
        else snprintf(text, size, "ok\n");
    } else if (strncmp(line, "inbound", 7) == 0) {
        if (tell_inbound(line + 7, now_ns / 1000000, text, size) < 0) snprintf(text, size, "error not ports and networks\n");
    } else if (strncmp(line, "rates ", 6) == 0) {
        snprintf(text, size, set_rates(net, line + 6, now_ns) < 0 ? "error not two rates\n" : "ok\n");
    } else {
        snprintf(text, size, "error no such request\n");
    }
}

/* A guest may use up every descriptor there is; one is kept for the daemon. */
static int spare = -1;

void keep_spare(void) {
    if (spare < 0) spare = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
}

static int accept_daemon(int listener) {
    if (spare >= 0) close(spare);
    spare = -1;
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

void serve_control(struct net *net, int listener, int64_t now_ns) {
    static char text[MAX_PORTS * sizeof(struct port) + 16];
    static char line[IGNORE_SIZE];
    int fd = accept_daemon(listener);
    if (fd < 0) {
        keep_spare();
        return;
    }
    // Only the daemon can connect, and it sends its line at once; the guest's traffic must not wait on it for longer than this.
    struct timeval limit = {0, 200 * 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    size_t length = 0;
    ssize_t got;
    while ((got = recv(fd, line + length, sizeof line - 1 - length, 0)) > 0) {
        length += (size_t)got;
        char *end = memchr(line, '\n', length);
        if (end == NULL) continue;
        *end = '\0';
        answer(net, line, now_ns, text, sizeof text);
        send(fd, text, strlen(text), MSG_NOSIGNAL);
        break;
    }
    close(fd);
    keep_spare();
}
