/*
 * Takes files out of the host's page cache. What a process has mapped of them stays, and so does all of them on disk.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "fail.h"

/* Bytes of the file that are in memory. */
static long long cached(int fd, off_t size) {
    if (size == 0) return 0;
    long page = sysconf(_SC_PAGESIZE);
    size_t pages = ((size_t)size + (size_t)page - 1) / (size_t)page;
    unsigned char *there = malloc(pages);
    void *map = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
    if (there == NULL || map == MAP_FAILED) fail_errno("cannot map a file");
    if (mincore(map, (size_t)size, there) < 0) fail_errno("cannot look at a file's pages");
    long long count = 0;
    for (size_t i = 0; i < pages; i++) count += there[i] & 1;
    munmap(map, (size_t)size);
    free(there);
    return count * page;
}

/*
 * FILES: says how many bytes of them are in memory no more. One that is gone counts for nothing. With --dry-run before them: how many would
 * be, at most, as those that a process has mapped count too.
 */
int command_forget(int count, char **files) {
    long long freed = 0;
    int is_dry = count > 0 && strcmp(files[0], "--dry-run") == 0;
    for (int i = is_dry; i < count; i++) {
        int fd = open(files[i], O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        struct stat facts;
        if (fd < 0 || fstat(fd, &facts) < 0 || !S_ISREG(facts.st_mode)) {
            if (fd >= 0) close(fd);
            continue;
        }
        long long before = cached(fd, facts.st_size);
        if (is_dry) {
            freed += before;
            close(fd);
            continue;
        }
        // Pages that are not on disk yet are not let go of.
        fdatasync(fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        long long after = cached(fd, facts.st_size);
        if (after < before) freed += before - after;
        close(fd);
    }
    printf("forgot %lld\n", freed);
    return 0;
}
