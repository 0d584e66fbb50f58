/* For the guest of a test: sends every datagram back to where it came from, over IPv4 and IPv6. udp-echo PORT */
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    int fd = socket(AF_INET6, SOCK_DGRAM, 0), both = 0;
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)atoi(argc > 1 ? argv[1] : "7"))};
    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &both, sizeof both) < 0) return 1;
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0) return 1;
    for (;;) {
        char data[2048];
        struct sockaddr_in6 from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size);
        if (length >= 0) sendto(fd, data, (size_t)length, 0, (struct sockaddr *)&from, size);
    }
}
