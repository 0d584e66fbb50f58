/* The proxy that is the way out of a guest: at 10.0.2.4, port 3128, each connection of the guest's is one to a unix socket of the host's. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "net.h"

int show_proxy(Slirp *slirp, const char *socket) {
    struct in_addr address;
    inet_pton(AF_INET, "10.0.2.4", &address);
    return slirp_add_unix(slirp, socket, &address, PROXY_PORT);
}

/*
 * In place of the C library's, for libslirp, which would wait for a proxy that takes no one, and the guest's whole network with it; and
 * which writes a line about each that is not there. A socket that leads nowhere is closed at its first use: the guest sees its
 * connection end.
 */
int connect(int fd, __CONST_SOCKADDR_ARG to, socklen_t size) {
    if (to.__sockaddr__->sa_family != AF_UNIX) return (int)syscall(SYS_connect, fd, to.__sockaddr__, size);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return -1;
    syscall(SYS_connect, fd, to.__sockaddr__, size);
    return 0;
}
