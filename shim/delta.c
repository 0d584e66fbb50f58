#include "delta.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fail.h"

_Static_assert(sizeof(struct delta_header) == 64 && sizeof(struct delta_run) == 16, "as the file has them");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are written as they lie in memory");

static const char magic[8] = {'D', 'M', 'D', 'E', 'L', 'T', 'A', '1'};

static uint64_t up_to_page(uint64_t bytes) { return (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1); }

void begin_delta(struct delta *delta, int fd, uint64_t memory_bytes, uint64_t most_pages) {
    *delta = (struct delta){.fd = fd};
    memcpy(delta->header.magic, magic, sizeof magic);
    delta->header.page_size = PAGE;
    delta->header.memory_bytes = memory_bytes;
    // How many runs there are is only known when the last page has been looked at, so there is room for one a page: 0.4 %, a hole mostly.
    delta->header.data_at = up_to_page(sizeof delta->header + most_pages * sizeof *delta->runs);
    delta->end = (off_t)delta->header.data_at;
}

void flush_delta(struct delta *delta) {
    write_all(delta->fd, delta->held, delta->held_bytes, delta->end);
    delta->end += (off_t)delta->held_bytes;
    delta->held_bytes = 0;
}

static void store_page(struct delta *delta, const char *page) {
    if (delta->held_bytes > 0 && delta->held + delta->held_bytes != page) flush_delta(delta);
    if (delta->held_bytes == 0) delta->held = page;
    delta->held_bytes += PAGE;
}

static void count_page(struct delta *delta, uint64_t number, uint64_t zero) {
    struct delta_header *header = &delta->header;
    if (header->run_count > 0) {
        struct delta_run *last = &delta->runs[header->run_count - 1];
        uint64_t count = last->count & ~DELTA_ZERO;
        if (last->first + count == number && (last->count & DELTA_ZERO) == zero) {
            last->count++;
            return;
        }
    }
    if (header->run_count == delta->run_capacity) {
        delta->run_capacity = delta->run_capacity == 0 ? 1024 : delta->run_capacity * 2;
        delta->runs = reallocarray(delta->runs, delta->run_capacity, sizeof *delta->runs);
        if (delta->runs == NULL) fail("no memory for the runs of a delta");
    }
    delta->runs[header->run_count++] = (struct delta_run){number, 1 | zero};
}

void add_to_delta(struct delta *delta, const char *pages, uint64_t first, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const char *page = pages + i * PAGE;
        int is_zero = is_zero_page(page);
        delta->header.sum += sum_page(page, first + i);
        count_page(delta, first + i, is_zero ? DELTA_ZERO : 0);
        if (is_zero) {
            delta->header.zero_pages++;
        } else {
            delta->header.stored_pages++;
            store_page(delta, page);
        }
    }
}

void finish_delta(struct delta *delta) {
    flush_delta(delta);
    if (ftruncate(delta->fd, delta->end) < 0) fail_errno("cannot size a delta");
    write_all(delta->fd, delta->runs, delta->header.run_count * sizeof *delta->runs, sizeof delta->header);
    write_all(delta->fd, &delta->header, sizeof delta->header, 0);
}

/* NULL, or what is wrong. */
static const char *read_at(int fd, void *buffer, size_t length, uint64_t at) {
    for (size_t have = 0; have < length;) {
        ssize_t got = pread(fd, (char *)buffer + have, length - have, (off_t)(at + have));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return strerror(errno);
        if (got == 0) return "it ends early";
        have += (size_t)got;
    }
    return NULL;
}

static const char *check_header(const struct delta_header *header, uint64_t file_bytes) {
    if (memcmp(header->magic, magic, sizeof magic) != 0) return "it is no delta";
    if (header->page_size != PAGE || header->zero != 0) return "it has pages of another size, or a newer form";
    uint64_t pages = header->memory_bytes / PAGE;
    if (header->memory_bytes % PAGE != 0 || header->memory_bytes > INT64_MAX) return "its memory has no whole number of pages";
    if (header->stored_pages > pages || header->zero_pages > pages || header->run_count > pages) return "it has more pages than the memory";
    // With at most 2^51 pages, none of these can overflow.
    if (header->data_at % PAGE != 0 || header->data_at < sizeof *header + header->run_count * sizeof(struct delta_run))
        return "its pages lie where its runs are";
    if (header->data_at > file_bytes || file_bytes - header->data_at != header->stored_pages * PAGE) return "it has another size";
    return NULL;
}

static const char *check_runs(const struct delta *delta) {
    const struct delta_header *header = &delta->header;
    uint64_t next = 0, pages = header->memory_bytes / PAGE, stored = 0, zero = 0;
    for (size_t i = 0; i < header->run_count; i++) {
        uint64_t first = delta->runs[i].first, count = delta->runs[i].count & ~DELTA_ZERO;
        if (first < next || first >= pages || count == 0 || count > pages - first) return "its runs are not in order";
        next = first + count;
        *(delta->runs[i].count & DELTA_ZERO ? &zero : &stored) += count;
    }
    return stored == header->stored_pages && zero == header->zero_pages ? NULL : "its runs have another number of pages";
}

const char *open_delta(struct delta *delta, int fd) {
    *delta = (struct delta){.fd = fd};
    struct stat facts;
    if (fstat(fd, &facts) < 0) return strerror(errno);
    const char *wrong = read_at(fd, &delta->header, sizeof delta->header, 0);
    if (wrong == NULL) wrong = check_header(&delta->header, (uint64_t)facts.st_size);
    if (wrong != NULL) return wrong;
    // Bounded by the file's own size, which was just checked.
    delta->runs = calloc(delta->header.run_count + 1, sizeof *delta->runs);
    if (delta->runs == NULL) return "there is no memory for its runs";
    wrong = read_at(fd, delta->runs, delta->header.run_count * sizeof *delta->runs, sizeof delta->header);
    if (wrong == NULL) wrong = check_runs(delta);
    if (wrong != NULL) close_delta(delta);
    return wrong;
}

void close_delta(struct delta *delta) {
    free(delta->runs);
    delta->runs = NULL;
}

const char *read_delta(const struct delta *delta, take_pages *take, void *context) {
    static _Alignas(PAGE) char buffer[PAGE * PIECE_PAGES];
    static const _Alignas(PAGE) char zeros[PAGE * PIECE_PAGES];
    uint64_t at = delta->header.data_at, left = delta->header.stored_pages, sum = 0;
    size_t next = 0, ready = 0; /* of the pages in the buffer; it is filled whole, however short the runs are */
    for (size_t i = 0; i < delta->header.run_count; i++) {
        uint64_t first = delta->runs[i].first, end = first + (delta->runs[i].count & ~DELTA_ZERO);
        int is_zero = (delta->runs[i].count & DELTA_ZERO) != 0;
        while (first < end) {
            if (!is_zero && next == ready) {
                ready = left < PIECE_PAGES ? (size_t)left : PIECE_PAGES;
                const char *wrong = read_at(delta->fd, buffer, ready * PAGE, at);
                if (wrong != NULL) return wrong;
                at += ready * PAGE;
                left -= ready;
                next = 0;
            }
            size_t most = is_zero ? PIECE_PAGES : ready - next;
            size_t count = end - first < most ? (size_t)(end - first) : most;
            const char *pages = is_zero ? zeros : buffer + next * PAGE;
            for (size_t k = 0; k < count; k++) {
                // Whoever lays a delta over something relies on it.
                if (!is_zero && is_zero_page(pages + k * PAGE)) return "a zero page is stored in it";
                sum += sum_page(pages + k * PAGE, first + k);
            }
            take(context, pages, first, count);
            if (!is_zero) next += count;
            first += count;
        }
    }
    return sum == delta->header.sum ? NULL : "it has another checksum";
}
