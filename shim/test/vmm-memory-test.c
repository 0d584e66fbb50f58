/*
 * Which pages are a process's own is seen the same by the quick scan and by pagemap, and read the same by both ways; which of a copy are, by
 * comparing it with its base.
 */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* For what it does not show. */
#include "../vmm-memory.c"

enum { PAGES = 20000, SIZE = PAGES * PAGE };

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

/* More runs than one scan reports, long ones, and the last page. */
static int is_changed(int page) { return page < 18000 ? page % 2 == 0 : page < 18100 || page == PAGES - 1; }

static void dirty_and_wait(int fd, int ready) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) _exit(1);
    madvise(memory + (size_t)7000 * PAGE, (size_t)100 * PAGE, MADV_DONTDUMP);
    volatile char sink = 0;
    for (int page = 0; page < PAGES; page++) {
        if (is_changed(page)) memset(memory + (size_t)page * PAGE, page % 250 + 2, PAGE);
        else sink += memory[(size_t)page * PAGE];
    }
    if (write(ready, "x", 1) == 1) pause();
    _exit(0);
}

static void check_pages(struct vmm_memory *memory, const struct stretches *changed) {
    char *pages = malloc(changed->pages * PAGE);
    struct place place = {0, 0};
    uint64_t have = 0;
    for (ssize_t got; (got = read_stretches(memory, changed, &place, pages + have * PAGE, changed->pages - have)) > 0;) have += (uint64_t)got;
    CHECK(have == changed->pages);
    const char *page = pages;
    for (size_t i = 0; i < changed->count && failures == 0; i++)
        for (uint64_t k = 0; k < changed->list[i].count; k++, page += PAGE) {
            uint64_t number = changed->list[i].first + k;
            CHECK(is_changed((int)number) && page[0] == (char)(number % 250 + 2) && page[PAGE - 1] == page[0]);
        }
    free(pages);
}

static struct stretches by_pagemap(const struct vmm_memory *memory) {
    struct stretches changed = {0};
    for (size_t i = 0; i < memory->mapped.count; i++) CHECK(read_pagemap(memory->files.pagemap, &memory->mapped.list[i], &changed) == 0);
    return changed;
}

/* Written, written with what was there before, written with zeros, and not at all. */
static void check_copy(void) {
    int base = memfd_create("base", 0), copy = memfd_create("copy", 0);
    char page[PAGE];
    CHECK(ftruncate(base, SIZE) == 0 && ftruncate(copy, SIZE) == 0);
    for (int number = 0; number < 20; number++) {
        memset(page, number + 1, PAGE);
        CHECK(pwrite(base, page, PAGE, (off_t)number * PAGE) == PAGE && pwrite(copy, page, PAGE, (off_t)number * PAGE) == PAGE);
    }
    struct vmm_memory memory;
    struct stretches changed;
    CHECK(take_copy(&memory, base, copy) == NULL && memory.bytes == SIZE);
    CHECK(find_changed(&memory, &changed) == NULL && changed.pages == 0);
    memset(page, 0, PAGE);
    CHECK(write_memory(&memory, page, 3, 1) == 0);
    CHECK(write_memory(&memory, page, PAGES - 2, 1) == 0);
    page[PAGE - 1] = 1;
    CHECK(write_memory(&memory, page, 4, 1) == 0);
    CHECK(write_memory(&memory, page, PAGES - 1, 1) == 0);
    CHECK(find_changed(&memory, &changed) == NULL && changed.pages == 3 && changed.count == 2);
    CHECK(changed.list[0].first == 3 && changed.list[0].count == 2 && changed.list[1].first == PAGES - 1);
    char pages[3 * PAGE];
    struct place place = {0, 0};
    CHECK(read_stretches(&memory, &changed, &place, pages, 3) == 3 && memcmp(pages + 2 * PAGE, page, PAGE) == 0 && pages[0] == 0);
    CHECK(!has_ended(&memory));
    free(changed.list);
    free(memory.mapped.list);
    close(base);
    close(copy);
}

int main(void) {
    int fd = memfd_create("memory", 0), ready[2];
    if (fd < 0 || ftruncate(fd, SIZE) < 0 || pipe(ready) < 0) return 1;
    pid_t pid = fork();
    if (pid == 0) dirty_and_wait(fd, ready[1]);
    char byte;
    struct vmm_files files;
    CHECK(read(ready[0], &byte, 1) == 1 && open_vmm_files(&files, pid) == 0);

    struct vmm_memory memory;
    CHECK(find_memory(&memory, pid, &files, fd) == NULL);
    CHECK(memory.bytes == SIZE && memory.mapped.count == 3);
    struct stretches quick, slow = by_pagemap(&memory);
    CHECK(find_changed(&memory, &quick) == NULL);
    CHECK(quick.pages == 9000 + 100 + 1 && quick.pages == slow.pages && quick.count == slow.count);
    CHECK(memcmp(quick.list, slow.list, quick.count * sizeof *quick.list) == 0);
    check_pages(&memory, &quick);
    memory.is_denied = 1;
    check_pages(&memory, &slow);

    char pages[2 * PAGE];
    memset(pages, 'w', sizeof pages);
    CHECK(write_memory(&memory, pages, 6999, 2) == 0);
    CHECK(write_memory(&memory, pages, PAGES - 1, 2) < 0);
    char seen[2];
    CHECK(pread(files.mem, seen, 1, (off_t)(memory.mapped.list[0].address + 6999ULL * PAGE)) == 1 && seen[0] == 'w');
    CHECK(pread(fd, seen, 1, 6999LL * PAGE) == 1 && seen[0] == 0);

    CHECK(!has_ended(&memory));
    int other = memfd_create("other", 0);
    struct vmm_memory none;
    CHECK(ftruncate(other, SIZE) == 0 && find_memory(&none, pid, &files, other) != NULL);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    CHECK(has_ended(&memory));
    struct place place = {0, 0};
    CHECK(read_stretches(&memory, &quick, &place, pages, 1) < 0);
    check_copy();
    free(quick.list);
    free(slow.list);
    free(memory.mapped.list);
    free(none.mapped.list);
    return failures != 0;
}
