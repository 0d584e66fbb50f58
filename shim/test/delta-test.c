/* A delta is read as it was written, and whatever else a file may hold is refused in words: never a crash, never a page out of bounds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../delta.h"

enum { MEMORY_PAGES = 1700, ROUNDS = 1500 };

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

/* Filled by several readers at once. */
struct laid {
    char *memory;
    _Atomic uint64_t pages, outside;
};

/* NULL: not packed. */
struct form {
    const char *word;
    int level, readers;
};
static const struct form forms[] = {{NULL, 0, 1}, {NULL, 0, 3}, {"zstd", 1, 1}, {"zstd", 1, 4}, {"zstd", 19, 1}, {"lz4", 0, 1}, {"lz4", 0, 9}, {"lz4", 9, 1}};

static void lay(void *context, const char *pages, uint64_t first, size_t count) {
    struct laid *laid = context;
    laid->pages += count;
    if (first >= MEMORY_PAGES || count > MEMORY_PAGES - first) laid->outside++;
    else memcpy(laid->memory + first * PAGE, pages, count * PAGE);
}

static char *new_memory(void) { return aligned_alloc(PAGE, (size_t)MEMORY_PAGES * PAGE); }

static const char *read_all(int fd, int readers, struct laid *laid) {
    struct delta delta;
    const char *wrong = open_delta(&delta, fd);
    if (wrong != NULL) return wrong;
    // The memory that it is laid over has a size of its own; the loader compares them.
    if (delta.header.memory_bytes != (uint64_t)MEMORY_PAGES * PAGE) wrong = "another memory";
    if (wrong == NULL) wrong = read_delta(&delta, readers, lay, laid);
    close_delta(&delta);
    return wrong;
}

/* Every third page is changed, every fifth of those to zeros, and a stretch of 600, longer than a piece. */
static int is_changed(int page) { return page % 3 == 0 || (page >= 1000 && page < 1600); }

/* Some compress well, some somewhat, and the last third, a whole piece of them, not at all. */
static void fill(char *page, int number) {
    memset(page, number % 5 == 0 ? 0 : number | 1, PAGE);
    for (int i = 0; number % 5 != 0 && i < (number < 1100 ? number % 7 * 100 : PAGE); i++) page[i] = (char)(rand() >> 8);
}

static void begin_as(const struct form *form, struct delta *delta, int fd, uint64_t most) {
    uint64_t bytes = (uint64_t)MEMORY_PAGES * PAGE;
    if (form->word == NULL) begin_delta(delta, fd, bytes, most);
    else begin_packed_delta(delta, fd, bytes, new_packer(form->word, form->level));
}

static void end(struct delta *delta) {
    finish_delta(delta);
    if (delta->packer != NULL) free_packer(delta->packer);
}

static int write_one(const char *memory, const struct form *form, uint64_t *sum) {
    int fd = memfd_create("delta", 0);
    struct delta delta;
    begin_as(form, &delta, fd, MEMORY_PAGES);
    for (int page = 0; page < MEMORY_PAGES; page++) {
        if (is_changed(page)) add_to_delta(&delta, memory + (size_t)page * PAGE, (uint64_t)page, 1);
        if (page % 700 == 0) flush_delta(&delta);
    }
    end(&delta);
    struct stat facts;
    fstat(fd, &facts);
    if (form->word != NULL) CHECK(delta.end == facts.st_size && (uint64_t)facts.st_size < plain_delta_bytes(&delta));
    *sum = delta.header.sum;
    close_delta(&delta);
    return fd;
}

static void comes_back_as_it_was(int fd, const struct form *form, const char *written, uint64_t sum) {
    char *memory = new_memory();
    memset(memory, 0x77, (size_t)MEMORY_PAGES * PAGE);
    struct laid laid = {memory, 0, 0};
    CHECK(read_all(fd, form->readers, &laid) == NULL);
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

static void nothing_changed_is_a_delta_too(const struct form *form) {
    int fd = memfd_create("delta", 0);
    struct delta delta;
    begin_as(form, &delta, fd, 0);
    end(&delta);
    close_delta(&delta);
    struct laid laid = {NULL, 0, 0};
    CHECK(read_all(fd, form->readers, &laid) == NULL && laid.pages == 0);
    close(fd);
}

static void zeros_alone_are_a_delta_too(const struct form *form) {
    int fd = memfd_create("delta", 0);
    struct delta delta;
    static const _Alignas(PAGE) char page[PAGE];
    char *memory = new_memory();
    begin_as(form, &delta, fd, MEMORY_PAGES);
    for (uint64_t number = 5; number < 900; number++) add_to_delta(&delta, page, number, 1);
    end(&delta);
    close_delta(&delta);
    struct laid laid = {memory, 0, 0};
    CHECK(read_all(fd, form->readers, &laid) == NULL && laid.pages == 895 && laid.outside == 0);
    free(memory);
    close(fd);
}

/* Flips, cuts and nonsense, most of them in header and runs. */
static void hostile_files_are_refused(int fd, const struct form *form) {
    struct stat facts;
    fstat(fd, &facts);
    char *good = malloc((size_t)facts.st_size), *memory = new_memory();
    CHECK(pread(fd, good, (size_t)facts.st_size, 0) == facts.st_size);
    struct delta_header *header = (struct delta_header *)good;
    size_t runs = header->run_count * sizeof(struct delta_run), head = sizeof *header + runs;
    size_t index = (header->stored_pages + PIECE_PAGES - 1) / PIECE_PAGES * 4;
    // Runs and index are where they are most worth hitting, be they at the beginning or at the end.
    size_t table_at = form->word == NULL ? 0 : (size_t)facts.st_size - runs - index, table = form->word == NULL ? head : runs + index;
    int bad = memfd_create("bad", 0), accepted = 0;
    CHECK(pwrite(bad, good, (size_t)facts.st_size, 0) == facts.st_size);
    for (int round = 0; round < ROUNDS; round++) {
        size_t length = 8, at;
        char bytes[8];
        for (int i = 0; i < 8; i++) bytes[i] = (char)rand();
        switch (rand() % 6) {
            case 0: at = (size_t)(rand() % 8) * 8; break;
            case 1: at = (size_t)(rand() % 8) * 8, memset(bytes, rand() % 2 ? 0xff : 0, 8), bytes[rand() % 8] ^= (char)(1 << rand() % 8); break;
            case 2: at = table_at + (size_t)rand() % (table / 8) * 8; break;
            case 3: at = table_at + (size_t)rand() % table, length = 1, bytes[0] = (char)(good[at] ^ 1 << rand() % 8); break;
            case 4: at = header->data_at + (size_t)rand() % ((size_t)facts.st_size - header->data_at), length = 1, bytes[0] = (char)(good[at] ^ 1 << rand() % 8); break;
            default: at = 0, length = 0;
        }
        if (at + length > (size_t)facts.st_size) continue;
        if (length > 0 && memcmp(good + at, bytes, length) == 0) continue;
        off_t cut = length == 0 ? rand() % facts.st_size : facts.st_size;
        CHECK(pwrite(bad, bytes, length, (off_t)at) == (ssize_t)length);
        if (cut < facts.st_size) CHECK(ftruncate(bad, cut) == 0);
        struct laid laid = {memory, 0, 0};
        const char *wrong = read_all(bad, form->readers, &laid);
        CHECK(laid.outside == 0);
        if (wrong == NULL) accepted++;
        if (cut < facts.st_size) CHECK(pwrite(bad, good + cut, (size_t)(facts.st_size - cut), cut) == facts.st_size - cut);
        CHECK(pwrite(bad, good + at, length, (off_t)at) == (ssize_t)length);
        if (failures > 20) break;
    }
    CHECK(accepted == 0);
    struct laid laid = {memory, 0, 0};
    CHECK(read_all(bad, form->readers, &laid) == NULL);
    close(bad);
    free(good);
    free(memory);
}

/* A frame that says that it becomes, or needs, more memory than anyone has, and an index that says it of a piece. */
static void huge_claims_are_refused(int fd) {
    static const unsigned char claims[][14] = {
        {0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1},
        {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 1, 0, 0, 0, 0, 0, 0, 0},
        {0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0x80, 0, 'x'},
    };
    char *room = new_memory(), before[sizeof claims[0]];
    struct laid laid = {room, 0, 0};
    CHECK(pread(fd, before, sizeof before, sizeof(struct delta_header)) == sizeof before);
    for (size_t i = 0; i < sizeof claims / sizeof *claims; i++) {
        CHECK(pwrite(fd, claims[i], sizeof claims[i], sizeof(struct delta_header)) == sizeof claims[i]);
        const char *wrong = read_all(fd, 1, &laid);
        CHECK(wrong != NULL && strcmp(wrong, "a piece of it cannot be unpacked") == 0);
    }
    CHECK(pwrite(fd, before, sizeof before, sizeof(struct delta_header)) == sizeof before);
    struct stat facts;
    fstat(fd, &facts);
    uint32_t last, huge = UINT32_MAX;
    CHECK(pread(fd, &last, sizeof last, facts.st_size - 4) == 4 && pwrite(fd, &huge, sizeof huge, facts.st_size - 4) == 4);
    const char *wrong = read_all(fd, 1, &laid);
    CHECK(wrong != NULL && strcmp(wrong, "a piece of it has an impossible size") == 0);
    CHECK(pwrite(fd, &last, sizeof last, facts.st_size - 4) == 4 && read_all(fd, 1, &laid) == NULL);
    free(room);
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
    uint64_t first_sum = 0;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const struct form *form = &forms[i];
        uint64_t sum;
        int fd = write_one(memory, form, &sum);
        if (i == 0) first_sum = sum;
        CHECK(sum == first_sum);
        comes_back_as_it_was(fd, form, memory, sum);
        nothing_changed_is_a_delta_too(form);
        zeros_alone_are_a_delta_too(form);
        hostile_files_are_refused(fd, form);
        if (form->word != NULL && strcmp(form->word, "zstd") == 0) huge_claims_are_refused(fd);
        close(fd);
        if (failures > 0) printf("as %s %d with %d readers\n", form->word == NULL ? "it is" : form->word, form->level, form->readers);
    }
    sums_do_not_depend_on_order(memory);
    free(memory);
    return failures != 0;
}
