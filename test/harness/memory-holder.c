/*
 * A VMM in the small: maps descriptor 17 privately and does with its pages what it is told on a socket, descriptor 11. One line asks,
 * one line answers: `ok`, a number, or why not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, CONTROL = 11, STATE = 16, MEMORY = 17 };

static char *memory;
static size_t pages;

static void fill(size_t first, size_t count, size_t step, uint64_t seed) {
    for (size_t i = 0; i < count; i++) {
        uint64_t *words = (uint64_t *)(memory + (first + i * step) * PAGE), x = seed + first + i * step;
        for (int k = 0; k < PAGE / 8; k++) words[k] = seed == 0 ? 0 : (x = x * 6364136223846793005ULL + 1442695040888963407ULL);
    }
}

/* As what programs have in memory: it repeats itself. */
static void paint(size_t first, size_t count, size_t step, uint64_t seed) {
    for (size_t i = 0; i < count; i++) {
        uint64_t *words = (uint64_t *)(memory + (first + i * step) * PAGE);
        for (int k = 0; k < PAGE / 8; k++) words[k] = seed + first + i * step + (uint64_t)(k / 16);
    }
}

static int write_whole(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644), failed = fd < 0;
    for (size_t done = 0; !failed && done < pages * PAGE;) {
        ssize_t wrote = write(fd, memory + done, pages * PAGE - done);
        if (wrote <= 0) failed = 1;
        else done += (size_t)wrote;
    }
    if (fd >= 0) close(fd);
    return failed ? -1 : 0;
}

static int save_state(const char *text) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", STATE);
    int fd = open(path, O_WRONLY | O_TRUNC);
    int failed = fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text);
    if (fd >= 0) close(fd);
    return failed ? -1 : 0;
}

/* Private and swapped out: what is only dropped is in the file still. */
static long swapped_kib(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    long kib = -1;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) sscanf(line, "VmSwap: %ld", &kib);
    if (file != NULL) fclose(file);
    return kib;
}

static int obey(const char *line) {
    size_t first, count, step;
    unsigned long long seed;
    char path[4096];
    if (sscanf(line, "fill %zu %zu %zu %llu", &first, &count, &step, &seed) == 4) {
        if (count > 0 && first + (count - 1) * step >= pages) return errno = ERANGE, -1;
        fill(first, count, step, seed);
        return 0;
    }
    if (sscanf(line, "paint %zu %zu %zu %llu", &first, &count, &step, &seed) == 4) {
        if (count > 0 && first + (count - 1) * step >= pages) return errno = ERANGE, -1;
        paint(first, count, step, seed);
        return 0;
    }
    /* Splits the mapping in two. */
    if (sscanf(line, "split %zu", &first) == 1) return madvise(memory + first * PAGE, (pages - first) * PAGE, MADV_DONTDUMP);
    if (sscanf(line, "unmap %zu", &first) == 1) return munmap(memory + first * PAGE, PAGE);
    if (strcmp(line, "pageout") == 0) return madvise(memory, pages * PAGE, MADV_PAGEOUT);
    if (sscanf(line, "write %4095[^\n]", path) == 1) return write_whole(path);
    if (sscanf(line, "state %4095[^\n]", path) == 1) return save_state(path);
    return errno = EINVAL, -1;
}

int main(void) {
    struct stat facts;
    if (fstat(MEMORY, &facts) < 0) return 1;
    pages = (size_t)facts.st_size / PAGE;
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, MEMORY, 0);
    if (memory == MAP_FAILED) return 1;
    for (;;) {
        int fd = accept(CONTROL, NULL, NULL);
        FILE *lines = fd < 0 ? NULL : fdopen(fd, "r");
        if (lines == NULL) return 1;
        for (char line[4200]; fgets(line, sizeof line, lines) != NULL;) {
            line[strcspn(line, "\n")] = '\0';
            if (strcmp(line, "swapped") == 0) dprintf(fd, "%ld\n", swapped_kib());
            else if (obey(line) == 0) dprintf(fd, "ok\n");
            else dprintf(fd, "%s\n", strerror(errno));
        }
        fclose(lines);
    }
}
