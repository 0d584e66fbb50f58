/*
 * For the guest of a test: a workload that would notice if its machine were another. It counts in RAM, by a timer; keeps a file open that
 * has no name any more; holds memory in a tmpfs; and tells all of it to whoever connects. wakeful PORT [MIB]
 *
 *   look              one line of JSON
 *   fill FIRST COUNT SEED   writes COUNT pages of the tmpfs from FIRST on, each with contents of its own
 *   sum               a sum over all pages of the tmpfs
 *   hog MS            for so long of its processor time nothing else runs on that processor, not the agent either
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define TICK_NS (20 * 1000 * 1000)

static uint64_t count, born, last_ns, steps_back;
static int held;
static uint64_t *ram;
static size_t ram_pages;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t chance(void) {
    uint64_t number = 0;
    if (getrandom(&number, sizeof number, 0) != sizeof number) die("getrandom");
    return number;
}

static uint64_t at_ns(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now) < 0) die("clock_gettime");
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* A clock that may never go back is watched for it at each tick. */
static void watch_clock(void) {
    uint64_t now = at_ns(CLOCK_MONOTONIC);
    if (now < last_ns) steps_back++;
    last_ns = now;
}

static void look(int to) {
    char boot_id[37] = "";
    uint64_t kept = 0;
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file == NULL || fread(boot_id, 1, 36, file) != 36) die("boot_id");
    fclose(file);
    if (pread(held, &kept, sizeof kept, 0) != sizeof kept) die("held");
    watch_clock();
    dprintf(to, "{\"boot\":\"%s\",\"born\":\"%016" PRIx64 "\",\"held\":\"%016" PRIx64 "\",\"count\":%" PRIu64, boot_id, born, kept, count);
    dprintf(to, ",\"monotonicMs\":%.3f,\"stepsBack\":%" PRIu64, (double)last_ns / 1e6, steps_back);
    dprintf(to, ",\"nowMs\":%.3f,\"chance\":\"%016" PRIx64 "\"}\n", (double)at_ns(CLOCK_REALTIME) / 1e6, chance());
}

static void fill(size_t first, size_t pages, uint64_t seed) {
    for (size_t page = first; page < first + pages && page < ram_pages; page++) {
        for (size_t word = 0; word < PAGE / 8; word++) ram[page * (PAGE / 8) + word] = seed * 0x9e3779b97f4a7c15u + page * 512 + word;
    }
}

static uint64_t sum(void) {
    uint64_t total = 0;
    for (size_t word = 0; word < ram_pages * (PAGE / 8); word++) total = total * 31 + ram[word];
    return total;
}

static uint64_t spent_ms(void) {
    struct timespec spent;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    return (uint64_t)spent.tv_sec * 1000 + (uint64_t)spent.tv_nsec / 1000000;
}

static void hog(unsigned long ms) {
    // Real-time programs may take all of a processor, and not only 95 %.
    FILE *limit = fopen("/proc/sys/kernel/sched_rt_runtime_us", "w");
    if (limit == NULL || fputs("-1", limit) < 0 || fclose(limit) != 0) die("sched_rt_runtime_us");
    struct sched_param first = {.sched_priority = sched_get_priority_max(SCHED_FIFO)}, ordinary = {0};
    if (sched_setscheduler(0, SCHED_FIFO, &first) < 0) die("sched_setscheduler");
    for (uint64_t until = spent_ms() + ms; spent_ms() < until;) continue;
    if (sched_setscheduler(0, SCHED_OTHER, &ordinary) < 0) die("sched_setscheduler");
}

static void serve(int connection) {
    char line[200] = "";
    unsigned long first, pages, seed, ms = 0;
    ssize_t length = read(connection, line, sizeof line - 1);
    if (length > 0 && strcmp(line, "look\n") == 0) {
        look(connection);
    } else if (length > 0 && sscanf(line, "fill %lu %lu %lu", &first, &pages, &seed) == 3) {
        fill(first, pages, seed);
        dprintf(connection, "filled\n");
    } else if (length > 0 && strcmp(line, "sum\n") == 0) {
        dprintf(connection, "%016" PRIx64 "\n", sum());
    } else if (length > 0 && sscanf(line, "hog %lu", &ms) == 1) {
        dprintf(connection, "hogging\n");
    }
    close(connection);
    if (ms > 0) hog(ms);
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int yes = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0) die("socket");
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 64) < 0) die("listen");
    return fd;
}

static void hold_ram(size_t mib) {
    int fd = open("/dev/shm/ram", O_RDWR | O_CREAT | O_EXCL, 0600);
    ram_pages = mib * 256;
    if (fd < 0 || ftruncate(fd, (off_t)(ram_pages * PAGE)) < 0) die("/dev/shm/ram");
    ram = mmap(NULL, ram_pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ram == MAP_FAILED) die("mmap");
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    born = chance();
    held = open("/root/held", O_RDWR | O_CREAT | O_EXCL, 0600);
    if (held < 0 || write(held, &born, sizeof born) != sizeof born || unlink("/root/held") < 0) die("/root/held");
    if (argc > 2) hold_ram((size_t)atol(argv[2]));
    struct pollfd waits[2] = {
        {.fd = listen_on(atoi(argv[1])), .events = POLLIN},
        {.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), .events = POLLIN},
    };
    struct itimerspec each = {.it_interval = {0, TICK_NS}, .it_value = {0, TICK_NS}};
    if (waits[1].fd < 0 || timerfd_settime(waits[1].fd, 0, &each, NULL) < 0) die("timer");
    for (;;) {
        uint64_t ticks;
        if (poll(waits, 2, -1) < 0) die("poll");
        if ((waits[1].revents & POLLIN) && read(waits[1].fd, &ticks, sizeof ticks) == sizeof ticks) {
            count += ticks;
            watch_clock();
        }
        if (waits[0].revents & POLLIN) {
            int connection = accept(waits[0].fd, NULL, NULL);
            if (connection >= 0) serve(connection);
        }
    }
}
