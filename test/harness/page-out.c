/* Has the host take what it can of a process's memory out of RAM: to swap, or back to the files that it comes from. page-out PID */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char path[64], line[4096];
    unsigned long from, to, size, inode, largest = 0;
    struct iovec range = {0};
    int target = argc > 1 ? (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0) : -1;
    snprintf(path, sizeof path, "/proc/%s/maps", argc > 1 ? argv[1] : "");
    FILE *maps = fopen(path, "r");
    if (target < 0 || maps == NULL) return perror(path), 1;
    /* A guest's RAM is the largest private mapping of a file that its VMM has. */
    while (fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%lx-%lx rw-p %*x %*s %lu", &from, &to, &inode) != 3 || inode == 0 || (size = to - from) <= largest) continue;
        largest = size;
        range = (struct iovec){(void *)from, size};
    }
    if (syscall(SYS_process_madvise, target, &range, 1, MADV_PAGEOUT, 0) < 0) return perror("process_madvise"), 1;
    return 0;
}
