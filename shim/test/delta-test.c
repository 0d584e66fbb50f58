/* A delta is read as it was written, and whatever else a file may hold is refused in words: never a crash, never a page out of bounds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../delta.h"

enum { MEMORY_PAGES = 1700, ROUNDS = 5000 };

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

struct laid {
    char *memory;
    uint64_t pages, outside;
};

static void lay(void *context, const char *pages, uint64_t first, size_t count) {
    struct laid *laid = context;
    laid->pages += count;
    if (first >= MEMORY_PAGES || count > MEMORY_PAGES - first) laid->outside++;
    else memcpy(laid->memory + first * PAGE, pages, count * PAGE);
}

static char *new_memory(void) { return aligned_alloc(PAGE, (size_t)MEMORY_PAGES * PAGE); }

static const char *read_all(int fd, struct laid *laid) {
    struct delta delta;
    const char *wrong = open_delta(&delta, fd);
    if (wrong != NULL) return wrong;
    // The memory that it is laid over has a size of its own; the loader compares them.
    if (delta.header.memory_bytes != (uint64_t)MEMORY_PAGES * PAGE) wrong = "another memory";
    if (wrong == NULL) wrong = read_delta(&delta, lay, laid);
    close_delta(&delta);
    return wrong;
}

/* Every third page is changed, every fifth of those to zeros, and a stretch of 600, longer than a piece. */
static int is_changed(int page) { return page % 3 == 0 || (page >= 1000 && page < 1600); }

static void fill(char *page, int number) {
    memset(page, number % 5 == 0 ? 0 : number | 1, PAGE);
}

static int write_one(const char *memory, uint64_t *sum) {
    int fd = memfd_create("delta", 0);
    struct delta delta;
    begin_delta(&delta, fd, (uint64_t)MEMORY_PAGES * PAGE, MEMORY_PAGES);
    for (int page = 0; page < MEMORY_PAGES; page++) {
        if (is_changed(page)) add_to_delta(&delta, memory + (size_t)page * PAGE, (uint64_t)page, 1);
        if (page % 700 == 0) flush_delta(&delta);
    }
    finish_delta(&delta);
    *sum = delta.header.sum;
    close_delta(&delta);
    return fd;
}

static void comes_back_as_it_was(int fd, const char *written, uint64_t sum) {
    char *memory = new_memory();
    memset(memory, 0x77, (size_t)MEMORY_PAGES * PAGE);
    struct laid laid = {memory, 0, 0};
    CHECK(read_all(fd, &laid) == NULL);
    uint64_t changed = 0, zero = 0, again = 0;
    for (int page = 0; page < MEMORY_PAGES; page++) {
        const char *found = memory + (size_t)page * PAGE;
        if (!is_changed(page)) {
            CHECK(found[0] == 0x77 && found[PAGE - 1] == 0x77);
            continue;
        }
        changed++;
        zero += page % 5 == 0;
        again += sum_page(found, (uint64_t)page);
        CHECK(memcmp(found, written + (size_t)page * PAGE, PAGE) == 0);
    }
    struct delta delta;
    CHECK(open_delta(&delta, fd) == NULL);
    CHECK(laid.pages == changed && delta_pages(&delta) == changed && delta.header.zero_pages == zero && again == sum);
    close_delta(&delta);
    free(memory);
}

static void nothing_changed_is_a_delta_too(void) {
    int fd = memfd_create("delta", 0);
    struct delta delta;
    begin_delta(&delta, fd, (uint64_t)MEMORY_PAGES * PAGE, 0);
    finish_delta(&delta);
    struct laid laid = {NULL, 0, 0};
    CHECK(read_all(fd, &laid) == NULL && laid.pages == 0);
    close(fd);
}

/* Flips, cuts and nonsense, most of them in header and runs. */
static void hostile_files_are_refused(int fd) {
    struct stat facts;
    fstat(fd, &facts);
    char *good = malloc((size_t)facts.st_size), *memory = new_memory();
    CHECK(pread(fd, good, (size_t)facts.st_size, 0) == facts.st_size);
    struct delta_header *header = (struct delta_header *)good;
    size_t table = sizeof *header + header->run_count * sizeof(struct delta_run);
    int bad = memfd_create("bad", 0), accepted = 0;
    CHECK(pwrite(bad, good, (size_t)facts.st_size, 0) == facts.st_size);
    for (int round = 0; round < ROUNDS; round++) {
        size_t length = 8, at;
        char bytes[8];
        for (int i = 0; i < 8; i++) bytes[i] = (char)rand();
        switch (rand() % 6) {
            case 0: at = (size_t)(rand() % 8) * 8; break;
            case 1: at = (size_t)(rand() % 8) * 8, memset(bytes, rand() % 2 ? 0xff : 0, 8), bytes[rand() % 8] ^= (char)(1 << rand() % 8); break;
            case 2: at = (size_t)rand() % (table / 8) * 8; break;
            case 3: at = (size_t)rand() % table, length = 1, bytes[0] = (char)(good[at] ^ 1 << rand() % 8); break;
            case 4: at = header->data_at + (size_t)rand() % ((size_t)facts.st_size - header->data_at), length = 1, bytes[0] = (char)(good[at] ^ 1 << rand() % 8); break;
            default: at = 0, length = 0;
        }
        if (at + length > (size_t)facts.st_size) continue;
        if (length > 0 && memcmp(good + at, bytes, length) == 0) continue;
        off_t cut = length == 0 ? rand() % facts.st_size : facts.st_size;
        CHECK(pwrite(bad, bytes, length, (off_t)at) == (ssize_t)length);
        if (cut < facts.st_size) CHECK(ftruncate(bad, cut) == 0);
        struct laid laid = {memory, 0, 0};
        const char *wrong = read_all(bad, &laid);
        CHECK(laid.outside == 0);
        if (wrong == NULL) accepted++;
        if (cut < facts.st_size) CHECK(pwrite(bad, good + cut, (size_t)(facts.st_size - cut), cut) == facts.st_size - cut);
        CHECK(pwrite(bad, good + at, length, (off_t)at) == (ssize_t)length);
        if (failures > 20) break;
    }
    CHECK(accepted == 0);
    struct laid laid = {memory, 0, 0};
    CHECK(read_all(bad, &laid) == NULL);
    close(bad);
    free(good);
    free(memory);
}

/* What two stores of the same pages have in common, in whatever order. */
static void sums_do_not_depend_on_order(const char *memory) {
    uint64_t up = 0, down = 0, moved = 0;
    for (int page = 0; page < 64; page++) up += sum_page(memory + (size_t)page * PAGE, (uint64_t)page);
    for (int page = 63; page >= 0; page--) down += sum_page(memory + (size_t)page * PAGE, (uint64_t)page);
    for (int page = 0; page < 64; page++) moved += sum_page(memory + (size_t)page * PAGE, (uint64_t)page ^ 1);
    CHECK(up == down && up != moved);
}

int main(void) {
    srand(1);
    char *memory = new_memory();
    for (int page = 0; page < MEMORY_PAGES; page++) fill(memory + (size_t)page * PAGE, page);
    uint64_t sum;
    int fd = write_one(memory, &sum);
    comes_back_as_it_was(fd, memory, sum);
    nothing_changed_is_a_delta_too();
    hostile_files_are_refused(fd);
    sums_do_not_depend_on_order(memory);
    close(fd);
    free(memory);
    return failures != 0;
}
