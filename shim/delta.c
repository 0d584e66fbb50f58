#include "delta.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fail.h"

_Static_assert(sizeof(struct delta_header) == 64 && sizeof(struct delta_run) == 16, "as the file has them");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are written as they lie in memory");

enum { BEGIN_BYTES = 1 << 20 };

static const char magic[8] = {'D', 'M', 'D', 'E', 'L', 'T', 'A', '1'};

static uint64_t up_to_page(uint64_t bytes) { return (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1); }

static uint64_t piece_count(const struct delta_header *header) { return (header->stored_pages + PIECE_PAGES - 1) / PIECE_PAGES; }
static uint64_t index_bytes(const struct delta_header *header) { return piece_count(header) * sizeof(uint32_t); }

static void begin(struct delta *delta, int fd, uint64_t memory_bytes) {
    *delta = (struct delta){.fd = fd};
    memcpy(delta->header.magic, magic, sizeof magic);
    delta->header.page_size = PAGE;
    delta->header.memory_bytes = memory_bytes;
}

void begin_delta(struct delta *delta, int fd, uint64_t memory_bytes, uint64_t most_pages) {
    begin(delta, fd, memory_bytes);
    // How many runs there are is only known when the last page has been looked at, so there is room for one a page: 0.4 %, a hole mostly.
    delta->header.data_at = up_to_page(sizeof delta->header + most_pages * sizeof *delta->runs);
    delta->begun = delta->end = (off_t)delta->header.data_at;
}

/* The disk begins while the pages that follow are looked at, so that there is less to wait for at the end. */
static void begin_to_store(struct delta *delta) {
    if (delta->end - delta->begun < BEGIN_BYTES) return;
    sync_file_range(delta->fd, delta->begun, delta->end - delta->begun, SYNC_FILE_RANGE_WRITE);
    delta->begun = delta->end;
}

void begin_packed_delta(struct delta *delta, int fd, uint64_t memory_bytes, struct packer *packer) {
    begin(delta, fd, memory_bytes);
    delta->header.packing = packing_of(packer);
    delta->header.data_at = sizeof delta->header;
    delta->end = (off_t)delta->header.data_at;
    delta->packer = packer;
    // One beside the other: as it is, and packed.
    delta->filling = malloc(2 * PIECE_PAGES * PAGE);
    if (delta->filling == NULL) fail("no memory to compress in");
}

static void *grown(void *list, size_t *capacity, size_t size) {
    *capacity = *capacity == 0 ? 1024 : *capacity * 2;
    list = reallocarray(list, *capacity, size);
    if (list == NULL) fail("no memory for the runs of a delta");
    return list;
}

static void pack_piece(struct delta *delta) {
    if (delta->held_bytes == 0) return;
    char *packed = delta->filling + PIECE_PAGES * PAGE;
    size_t bytes = pack(delta->packer, delta->filling, delta->held_bytes, packed);
    if (bytes == 0) packed = delta->filling, bytes = delta->held_bytes;
    uint64_t piece = piece_count(&delta->header) - 1;
    if (piece >= delta->index_capacity) delta->index = grown(delta->index, &delta->index_capacity, sizeof *delta->index);
    delta->index[piece] = (uint32_t)bytes;
    write_all(delta->fd, packed, bytes, delta->end);
    delta->end += (off_t)bytes;
    delta->held_bytes = 0;
}

void flush_delta(struct delta *delta) {
    // What is held was copied, and goes on to fill its piece.
    if (delta->packer != NULL) return;
    write_all(delta->fd, delta->held, delta->held_bytes, delta->end);
    delta->end += (off_t)delta->held_bytes;
    delta->held_bytes = 0;
    begin_to_store(delta);
}

/* Called when the page is counted. */
static void store_page(struct delta *delta, const char *page) {
    if (delta->packer != NULL) {
        memcpy(delta->filling + delta->held_bytes, page, PAGE);
        delta->held_bytes += PAGE;
        if (delta->held_bytes == PIECE_PAGES * PAGE) pack_piece(delta);
        return;
    }
    if (delta->held_bytes > 0 && (delta->held + delta->held_bytes != page || delta->held_bytes == BEGIN_BYTES)) flush_delta(delta);
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
    if (header->run_count == delta->run_capacity) delta->runs = grown(delta->runs, &delta->run_capacity, sizeof *delta->runs);
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
    size_t runs_bytes = delta->header.run_count * sizeof *delta->runs;
    if (delta->packer != NULL) {
        pack_piece(delta);
        write_all(delta->fd, delta->runs, runs_bytes, delta->end);
        write_all(delta->fd, delta->index, index_bytes(&delta->header), delta->end + (off_t)runs_bytes);
        delta->end += (off_t)(runs_bytes + index_bytes(&delta->header));
    } else {
        flush_delta(delta);
        if (ftruncate(delta->fd, delta->end) < 0) fail_errno("cannot size a delta");
        write_all(delta->fd, delta->runs, runs_bytes, sizeof delta->header);
    }
    write_all(delta->fd, &delta->header, sizeof delta->header, 0);
}

uint64_t plain_delta_bytes(const struct delta *delta) {
    const struct delta_header *header = &delta->header;
    return up_to_page(sizeof *header + header->run_count * sizeof *delta->runs) + header->stored_pages * PAGE;
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
    if (header->page_size != PAGE || header->packing >= PACKINGS) return "it has pages of another size, or a newer form";
    uint64_t pages = header->memory_bytes / PAGE;
    if (header->memory_bytes % PAGE != 0 || header->memory_bytes > INT64_MAX) return "its memory has no whole number of pages";
    if (header->stored_pages > pages || header->zero_pages > pages || header->run_count > pages) return "it has more pages than the memory";
    // With at most 2^51 pages, none of these can overflow.
    if (header->packing != PACK_NONE) {
        uint64_t tables = header->run_count * sizeof(struct delta_run) + index_bytes(header);
        if (header->data_at != sizeof *header) return "its pages lie elsewhere";
        return tables > file_bytes || file_bytes - tables < header->data_at ? "it has another size" : NULL;
    }
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

/* Where the pages lie: as many in each piece as fit, and what they have become is what lies between the header and the runs. */
static const char *find_pieces(struct delta *delta, uint64_t index_at) {
    const struct delta_header *header = &delta->header;
    uint64_t pieces = piece_count(header), stored = 0, next = 1;
    // One at least, for zero pages that go without any.
    delta->piece_count = pieces == 0 ? 1 : pieces;
    delta->pieces = calloc(delta->piece_count + 1, sizeof *delta->pieces);
    uint32_t *index = calloc(pieces + 1, sizeof *index);
    const char *wrong = delta->pieces == NULL || index == NULL ? "there is no memory for its index" : NULL;
    if (wrong == NULL && header->packing != PACK_NONE) wrong = read_at(delta->fd, index, pieces * sizeof *index, index_at);
    uint64_t at = header->data_at;
    if (wrong == NULL) delta->pieces[0].at = at;
    for (uint64_t i = 0; wrong == NULL && i < pieces; i++) {
        uint64_t left = header->stored_pages - i * PIECE_PAGES, bytes = (left < PIECE_PAGES ? left : PIECE_PAGES) * PAGE;
        if (header->packing == PACK_NONE) index[i] = (uint32_t)bytes;
        if (index[i] == 0 || index[i] > bytes) wrong = "a piece of it has an impossible size";
        delta->pieces[i].at = at;
        at += index[i];
    }
    if (wrong == NULL && header->packing != PACK_NONE && at != index_at - header->run_count * sizeof *delta->runs)
        wrong = "its pieces have other sizes";
    for (size_t i = 0; wrong == NULL && i < header->run_count; i++) {
        if ((delta->runs[i].count & DELTA_ZERO) != 0) continue;
        for (; next < pieces && next * PIECE_PAGES - stored < delta->runs[i].count; next++) {
            delta->pieces[next].run = i;
            delta->pieces[next].page = next * PIECE_PAGES - stored;
        }
        stored += delta->runs[i].count;
    }
    if (wrong == NULL) delta->pieces[delta->piece_count] = (struct delta_piece){at, header->run_count, 0};
    free(index);
    return wrong;
}

const char *open_delta(struct delta *delta, int fd) {
    *delta = (struct delta){.fd = fd};
    struct stat facts;
    if (fstat(fd, &facts) < 0) return strerror(errno);
    const char *wrong = read_at(fd, &delta->header, sizeof delta->header, 0);
    if (wrong == NULL) wrong = check_header(&delta->header, (uint64_t)facts.st_size);
    if (wrong != NULL) return wrong;
    // Both are bounded by the file's own size, which was just checked.
    uint64_t runs_bytes = delta->header.run_count * sizeof *delta->runs, runs_at = sizeof delta->header;
    if (delta->header.packing != PACK_NONE) runs_at = (uint64_t)facts.st_size - index_bytes(&delta->header) - runs_bytes;
    delta->runs = calloc(delta->header.run_count + 1, sizeof *delta->runs);
    if (delta->runs == NULL) return "there is no memory for its runs";
    wrong = read_at(fd, delta->runs, runs_bytes, runs_at);
    if (wrong == NULL) wrong = check_runs(delta);
    if (wrong == NULL) wrong = find_pieces(delta, runs_at + runs_bytes);
    if (wrong != NULL) close_delta(delta);
    return wrong;
}

void close_delta(struct delta *delta) {
    free(delta->runs);
    free(delta->pieces);
    free(delta->filling);
    free(delta->index);
    *delta = (struct delta){.fd = delta->fd, .header = delta->header};
}

/* A delta that several read at once, a piece each. */
struct reading {
    const struct delta *delta;
    take_pages *take;
    void *context;
    atomic_size_t next;
    _Atomic(const char *) wrong;
    _Atomic uint64_t sum;
};

struct room {
    char *pages, *packed; /* a piece each */
    struct unpacker *unpacker;
};

/* The pages of a piece, and the zero pages that come among them or next. NULL, or what is wrong. */
static const char *give_piece(struct reading *reading, size_t number, const struct room *room) {
    static const _Alignas(PAGE) char zeros[PAGE * PIECE_PAGES];
    const struct delta *delta = reading->delta;
    const struct delta_piece *piece = &delta->pieces[number], *end = piece + 1;
    uint64_t left = delta->header.stored_pages - (uint64_t)number * PIECE_PAGES, sum = 0;
    size_t bytes = (left < PIECE_PAGES ? (size_t)left : PIECE_PAGES) * PAGE, stored = (size_t)(end->at - piece->at);
    int is_packed = stored != bytes;
    const char *wrong = read_at(delta->fd, is_packed ? room->packed : room->pages, stored, piece->at);
    if (wrong != NULL) return wrong;
    if (is_packed && unpack(room->unpacker, room->packed, stored, room->pages, bytes) < 0) return "a piece of it cannot be unpacked";
    const char *next = room->pages;
    uint64_t page = piece->page;
    for (size_t i = piece->run; i < end->run || (i == end->run && page < end->page); i++, page = 0) {
        const struct delta_run *run = &delta->runs[i];
        int is_zero = (run->count & DELTA_ZERO) != 0;
        uint64_t until = i == end->run ? end->page : run->count & ~DELTA_ZERO;
        while (page < until) {
            size_t count = until - page < PIECE_PAGES ? (size_t)(until - page) : PIECE_PAGES;
            const char *pages = is_zero ? zeros : next;
            for (size_t k = 0; k < count; k++) {
                // Whoever lays a delta over something relies on it.
                if (!is_zero && is_zero_page(pages + k * PAGE)) return "a zero page is stored in it";
                sum += sum_page(pages + k * PAGE, run->first + page + k);
            }
            reading->take(reading->context, pages, run->first + page, count);
            if (!is_zero) next += count * PAGE;
            page += count;
        }
    }
    reading->sum += sum;
    return NULL;
}

static void *read_pieces(void *argument) {
    struct reading *reading = argument;
    struct room room = {.pages = aligned_alloc(PAGE, 2 * PIECE_PAGES * PAGE), .unpacker = new_unpacker(reading->delta->header.packing)};
    room.packed = room.pages + PIECE_PAGES * PAGE;
    const char *wrong = room.pages == NULL || room.unpacker == NULL ? "there is no memory to read it" : NULL;
    for (size_t piece; wrong == NULL && reading->wrong == NULL && (piece = reading->next++) < reading->delta->piece_count;)
        wrong = give_piece(reading, piece, &room);
    if (wrong != NULL) reading->wrong = wrong;
    free_unpacker(room.unpacker);
    free(room.pages);
    return NULL;
}

const char *read_delta(const struct delta *delta, int readers, take_pages *take, void *context) {
    struct reading reading = {.delta = delta, .take = take, .context = context};
    pthread_t others[MOST_READERS - 1];
    int begun = 0;
    // One that cannot be had is done without.
    while (begun < MOST_READERS - 1 && begun + 1 < readers && pthread_create(&others[begun], NULL, read_pieces, &reading) == 0) begun++;
    read_pieces(&reading);
    while (begun > 0) pthread_join(others[--begun], NULL);
    if (reading.wrong != NULL) return reading.wrong;
    return reading.sum == delta->header.sum ? NULL : "it has another checksum";
}
