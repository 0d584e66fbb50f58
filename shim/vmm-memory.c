#include "vmm-memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pages.h"

static int open_of(pid_t pid, const char *name, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    return open(path, flags | O_CLOEXEC);
}

int open_vmm_files(struct vmm_files *files, pid_t vmm) {
    *files = (struct vmm_files){open_of(vmm, "maps", O_RDONLY), open_of(vmm, "pagemap", O_RDONLY), open_of(vmm, "mem", O_RDWR)};
    if (files->maps >= 0 && files->pagemap >= 0 && files->mem >= 0) return 0;
    int error = errno;
    close_vmm_files(files);
    errno = error;
    return -1;
}

void close_vmm_files(const struct vmm_files *files) {
    if (files->maps >= 0) close(files->maps);
    if (files->pagemap >= 0) close(files->pagemap);
    if (files->mem >= 0) close(files->mem);
}

static int add_stretch(struct stretches *stretches, struct stretch stretch) {
    if (stretches->count == stretches->capacity) {
        size_t capacity = stretches->capacity == 0 ? 1024 : stretches->capacity * 2;
        struct stretch *list = reallocarray(stretches->list, capacity, sizeof *list);
        if (list == NULL) return -1;
        stretches->list = list;
        stretches->capacity = capacity;
    }
    stretches->list[stretches->count++] = stretch;
    stretches->pages += stretch.count;
    return 0;
}

static int by_first(const void *a, const void *b) {
    const struct stretch *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

struct mapping {
    uint64_t start, end, offset, inode;
    char mode[5];
    unsigned major, minor;
};

/* The next line of a maps file. */
static int read_mapping(FILE *maps, struct mapping *mapping) {
    static char *line;
    static size_t capacity;
    while (getline(&line, &capacity, maps) > 0)
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &mapping->start, &mapping->end, mapping->mode,
                   &mapping->offset, &mapping->major, &mapping->minor, &mapping->inode) == 7)
            return 1;
    return 0;
}

/*
 * Device and inode of a file as they appear in a maps file. On some file systems (btrfs, overlayfs) stat says other ones, so a page is
 * mapped here and looked up.
 */
static int appearance(int fd, struct mapping *found) {
    void *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    if (page == MAP_FAILED) return -1;
    FILE *maps = fopen("/proc/self/maps", "re");
    int is_found = 0;
    while (maps != NULL && !is_found && read_mapping(maps, found)) is_found = found->start == (uint64_t)page;
    if (maps != NULL) fclose(maps);
    munmap(page, PAGE);
    return is_found ? 0 : -1;
}

/* Each region is looked for from the beginning. */
static void rewind_file(int fd) { lseek(fd, 0, SEEK_SET); }

const char *find_memory(struct vmm_memory *memory, pid_t vmm, const struct vmm_files *files, int memory_fd) {
    *memory = (struct vmm_memory){.pid = vmm, .files = *files, .base = -1, .copy = -1};
    struct stat facts;
    struct mapping known, mapping;
    rewind_file(files->maps);
    if (fstat(memory_fd, &facts) < 0 || appearance(memory_fd, &known) < 0) return "the memory that the VMM was given cannot be looked at";
    memory->bytes = (uint64_t)facts.st_size;
    FILE *maps = fdopen(dup(files->maps), "r");
    if (maps == NULL) return "the VMM's mappings cannot be read";
    while (read_mapping(maps, &mapping)) {
        if (mapping.inode != known.inode || mapping.major != known.major || mapping.minor != known.minor || mapping.mode[3] != 'p') continue;
        struct stretch stretch = {mapping.offset / PAGE, (mapping.end - mapping.start) / PAGE, mapping.start};
        if (add_stretch(&memory->mapped, stretch) < 0) break;
    }
    fclose(maps);
    // It may lie in several mappings, when parts of it were advised differently.
    struct stretches *mapped = &memory->mapped;
    if (mapped->count == 0) return "the VMM has not mapped the memory that it was given";
    qsort(mapped->list, mapped->count, sizeof *mapped->list, by_first);
    uint64_t next = 0;
    for (size_t i = 0; i < mapped->count && mapped->list[i].first == next; i++) next += mapped->list[i].count;
    if (next * PAGE == memory->bytes && mapped->pages == next) return NULL;
    return "the VMM has not mapped its memory once and as a whole";
}

/* Addresses are then places in the copy. */
const char *take_copy(struct vmm_memory *memory, int base, int copy) {
    struct stat facts;
    *memory = (struct vmm_memory){.files = {-1, -1, copy}, .is_denied = 1, .base = base, .copy = copy};
    if (fstat(copy, &facts) < 0) return "the memory that the VMM was given cannot be looked at";
    memory->bytes = (uint64_t)facts.st_size;
    return add_stretch(&memory->mapped, (struct stretch){0, memory->bytes / PAGE, 0}) < 0 ? "there is no memory for it" : NULL;
}

const char *find_added_memory(struct vmm_memory *memory, pid_t vmm, const struct vmm_files *files, int number, uint64_t bytes) {
    char path[64];
    struct stat facts;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)vmm, number);
    // It may be anything by now, a pipe too.
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &facts) < 0 || !S_ISREG(facts.st_mode) || (uint64_t)facts.st_size != bytes) {
        if (fd >= 0) close(fd);
        return "memory that was added to the VM is not there as it was added";
    }
    const char *wrong = find_memory(memory, vmm, files, fd);
    close(fd);
    return wrong;
}

/* Linux 6.7; the headers of the distribution may be older than its kernel. */
struct scanned_region {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags, start, end, walk_end, regions, region_count, max_pages, inverted, all_of, any_of, reported;
};
#define SCAN_PAGEMAP _IOWR('f', 16, struct scan)
enum { SCAN_FILE = 1 << 2, SCAN_PRESENT = 1 << 3, SCAN_SWAPPED = 1 << 4, SCAN_REGIONS = 8192 };

/* 1: this kernel has no such scan; -1 with errno. */
static int scan_stretch(int pagemap, const struct stretch *stretch, struct stretches *changed) {
    static struct scanned_region regions[SCAN_REGIONS];
    uint64_t end = stretch->address + stretch->count * PAGE;
    struct scan scan = {
        .size = sizeof scan,
        .start = stretch->address,
        .end = end,
        .regions = (uint64_t)regions,
        .region_count = SCAN_REGIONS,
        .inverted = SCAN_FILE,
        .all_of = SCAN_FILE,
        .any_of = SCAN_PRESENT | SCAN_SWAPPED,
        .reported = SCAN_FILE,
    };
    for (long count = SCAN_REGIONS; count == SCAN_REGIONS && scan.start < end;) {
        count = ioctl(pagemap, SCAN_PAGEMAP, &scan);
        if (count < 0 && errno == EINTR) {
            count = SCAN_REGIONS;
            continue;
        }
        if (count < 0) return errno == ENOTTY || errno == EINVAL ? 1 : -1;
        for (long i = 0; i < count; i++) {
            uint64_t first = stretch->first + (regions[i].start - stretch->address) / PAGE;
            struct stretch found = {first, (regions[i].end - regions[i].start) / PAGE, regions[i].start};
            if (add_stretch(changed, found) < 0) return -1;
        }
        // Not `walk_end`: Linux leaves it in the middle when it has come to the end.
        if (count == SCAN_REGIONS) scan.start = regions[count - 1].end;
    }
    return 0;
}

#define PAGEMAP_PRESENT_OR_SWAPPED (3ULL << 62)
#define PAGEMAP_FILE (1ULL << 61)
enum { WORDS = 1 << 15 };

static int read_pagemap(int pagemap, const struct stretch *stretch, struct stretches *changed) {
    static uint64_t words[WORDS];
    struct stretch run = {0, 0, 0};
    for (uint64_t done = 0; done < stretch->count;) {
        size_t want = stretch->count - done < WORDS ? (size_t)(stretch->count - done) : WORDS;
        ssize_t got = pread(pagemap, words, want * sizeof *words, (off_t)((stretch->address / PAGE + done) * sizeof *words));
        if (got < 0 && errno == EINTR) continue;
        if (got < (ssize_t)sizeof *words) return errno = got < 0 ? errno : EIO, -1;
        size_t count = (size_t)got / sizeof *words;
        for (size_t i = 0; i < count; i++) {
            if ((words[i] & PAGEMAP_PRESENT_OR_SWAPPED) == 0 || (words[i] & PAGEMAP_FILE) != 0) continue;
            uint64_t number = stretch->first + done + i;
            if (run.count > 0 && run.first + run.count == number) {
                run.count++;
                continue;
            }
            if (run.count > 0 && add_stretch(changed, run) < 0) return -1;
            run = (struct stretch){number, 1, stretch->address + (done + i) * PAGE};
        }
        done += count;
    }
    return run.count > 0 ? add_stretch(changed, run) : 0;
}

struct comparison {
    const char *base;
    struct stretches changed;
    int failed;
};

static void compare(void *context, const char *pages, uint64_t first, size_t count) {
    struct comparison *comparison = context;
    const char *base = comparison->base + first * PAGE;
    for (size_t page = 0; page < count && !comparison->failed; page++) {
        size_t from = page;
        while (page < count && memcmp(pages + page * PAGE, base + page * PAGE, PAGE) != 0) page++;
        struct stretch differing = {first + from, page - from, (first + from) * PAGE};
        comparison->failed = page > from && add_stretch(&comparison->changed, differing) < 0;
    }
}

/* Whatever is in a hole of the copy has never been written: no one punches holes into it, and all of the base that is not zero was copied. */
static const char *find_differing(const struct vmm_memory *memory, struct stretches *changed) {
    const char *base = mmap(NULL, memory->bytes, PROT_READ, MAP_PRIVATE, memory->base, 0);
    if (base == MAP_FAILED) return strerror(errno);
    struct comparison comparison = {base, {0}, 0};
    read_pages(memory->copy, (off_t)memory->bytes, compare, &comparison);
    munmap((void *)base, memory->bytes);
    *changed = comparison.changed;
    return comparison.failed ? "there is no memory for it" : NULL;
}

const char *find_changed(const struct vmm_memory *memory, struct stretches *changed) {
    *changed = (struct stretches){0};
    if (memory->copy >= 0) return find_differing(memory, changed);
    int is_old_kernel = 0;
    for (size_t i = 0; i < memory->mapped.count; i++) {
        const struct stretch *stretch = &memory->mapped.list[i];
        int failed = is_old_kernel ? 1 : scan_stretch(memory->files.pagemap, stretch, changed);
        is_old_kernel = failed == 1;
        if (is_old_kernel) failed = read_pagemap(memory->files.pagemap, stretch, changed);
        if (failed != 0) return strerror(errno);
    }
    return NULL;
}

enum { MOST_PARTS = 1024 /* IOV_MAX */ };

static ssize_t read_parts(struct vmm_memory *memory, const struct iovec *parts, size_t count, char *buffer, size_t length) {
    if (!memory->is_denied) {
        ssize_t got = process_vm_readv(memory->pid, &(struct iovec){buffer, length}, 1, parts, count, 0);
        if (got >= 0 || (errno != EPERM && errno != ENOSYS)) return got;
        // It asks anew whether we may, and under Yama only the parent may. What the parent has opened serves as well.
        memory->is_denied = 1;
    }
    size_t done = 0;
    for (size_t i = 0; i < count; i++) {
        for (size_t have = 0; have < parts[i].iov_len;) {
            ssize_t got = pread(memory->files.mem, buffer + done, parts[i].iov_len - have, (off_t)parts[i].iov_base + (off_t)have);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return -1;
            have += (size_t)got;
            done += (size_t)got;
        }
    }
    return (ssize_t)done;
}

ssize_t read_stretches(struct vmm_memory *memory, const struct stretches *from, struct place *place, char *buffer, size_t most) {
    struct iovec parts[MOST_PARTS];
    size_t count = 0, pages = 0;
    while (count < MOST_PARTS && pages < most && place->index < from->count) {
        const struct stretch *stretch = &from->list[place->index];
        uint64_t left = stretch->count - place->done;
        size_t part = left < most - pages ? (size_t)left : most - pages;
        parts[count++] = (struct iovec){(void *)(stretch->address + place->done * PAGE), part * PAGE};
        pages += part;
        place->done += part;
        if (place->done == stretch->count) *place = (struct place){place->index + 1, 0};
    }
    if (pages == 0) return 0;
    return read_parts(memory, parts, count, buffer, pages * PAGE) == (ssize_t)(pages * PAGE) ? (ssize_t)pages : -1;
}

int has_ended(const struct vmm_memory *memory) {
    char byte;
    if (memory->copy >= 0) return 0;
    return memory->mapped.count == 0 || pread(memory->files.mem, &byte, 1, (off_t)memory->mapped.list[0].address) != 1;
}

int write_memory(const struct vmm_memory *memory, const char *pages, uint64_t first, size_t count) {
    for (size_t i = 0; i < memory->mapped.count && count > 0; i++) {
        const struct stretch *stretch = &memory->mapped.list[i];
        if (first < stretch->first || first - stretch->first >= stretch->count) continue;
        uint64_t into = first - stretch->first;
        size_t part = stretch->count - into < count ? (size_t)(stretch->count - into) : count;
        for (size_t done = 0; done < part * PAGE;) {
            ssize_t wrote = pwrite(memory->files.mem, pages + done, part * PAGE - done, (off_t)(stretch->address + into * PAGE + done));
            if (wrote < 0 && errno == EINTR) continue;
            if (wrote <= 0) return errno = wrote < 0 ? errno : EIO, -1;
            done += (size_t)wrote;
        }
        pages += part * PAGE;
        first += part;
        count -= part;
    }
    return count == 0 ? 0 : (errno = EFAULT, -1);
}
