/* Opens a TAP by a name, as VMMs do that know it by nothing else, and says in one line each what came of it and of every frame. */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR}, real = {0};
    strcpy(request.ifr_name, "made-up");
    int other = open("/proc/self/comm", O_RDONLY), fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (other < 0 || fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0 || ioctl(fd, TUNGETIFF, &real) < 0) {
        perror("failed");
        return 1;
    }
    printf("opened %s, %d here\n", real.ifr_name, if_nametoindex(real.ifr_name) != 0);
    for (;;) {
        char frame[65536];
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        poll(&ready, 1, -1);
        if (read(fd, frame, sizeof frame) > 0) printf("frame\n");
    }
}
