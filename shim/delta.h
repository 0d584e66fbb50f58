#pragma once
/*
 * What a VM has changed of its memory, as a file. Little endian:
 *
 *   0   header, 64 bytes (struct delta_header)
 *   64  runs of pages in ascending order, 16 bytes each: number of the first page; count, its top bit set when all of them are zero
 *       and therefore not stored
 *   …   from `data_at` on, a multiple of 4096: the stored pages in the order of the runs, to the end of the file
 *
 * One that is packed has the same in another order, since the runs are known last:
 *
 *   0   header, `packing` as in pack.h
 *   64  the stored pages, PIECE_PAGES at a time, each piece packed by itself, or as it is where that would not make it smaller
 *   …   runs
 *   …   the index: for each piece how many bytes it has become, 4 bytes each, to the end of the file
 *
 * `sum` is that of every page of the delta, with its number, zero pages included: a run that was flipped is seen too. It is the same
 * however the pages are packed.
 */
#include <stddef.h>
#include <stdint.h>

#include "pack.h"
#include "pages.h"

struct delta_header {
    char magic[8]; /* DMDELTA1 */
    uint32_t page_size;
    uint32_t packing; /* 0: not packed */
    uint64_t memory_bytes; /* of the whole memory that this is laid over */
    uint64_t run_count;
    uint64_t stored_pages;
    uint64_t zero_pages;
    uint64_t sum;
    uint64_t data_at;
};

struct delta_run {
    uint64_t first;
    uint64_t count; /* with DELTA_ZERO */
};

#define DELTA_ZERO (1ULL << 63)

/* Where PIECE_PAGES stored pages begin: in the file, and among the runs. */
struct delta_piece {
    uint64_t at;
    size_t run;
    uint64_t page; /* of the run */
};

struct delta {
    int fd;
    struct delta_header header;
    struct delta_run *runs;
    struct delta_piece *pieces; /* while it is read; the one after the last is the end */
    size_t piece_count;
    /* while it is written */
    off_t end;
    off_t begun; /* up to here the disk has been told to write */
    size_t run_capacity;
    const char *held; /* pages that are side by side and wait to be written in one go */
    size_t held_bytes;
    struct packer *packer;
    char *filling; /* a piece */
    uint32_t *index;
    size_t index_capacity;
};

/* Begins to write a delta of at most `most_pages` pages to an empty file. What cannot be written ends the program. */
void begin_delta(struct delta *delta, int fd, uint64_t memory_bytes, uint64_t most_pages);
/* The same for one that is packed; the packer stays the caller's. */
void begin_packed_delta(struct delta *delta, int fd, uint64_t memory_bytes, struct packer *packer);
/* In ascending order. The pages are read again until `flush_delta`. */
void add_to_delta(struct delta *delta, const char *pages, uint64_t first, size_t count);
void flush_delta(struct delta *delta);
void finish_delta(struct delta *delta);

/* Reads header and runs, and checks them against each other and the file's size. NULL, or what is wrong, in words. */
const char *open_delta(struct delta *delta, int fd);
enum { MOST_READERS = 4 };
/*
 * Gives all its pages, zero ones too. NULL when their sum is right; else what is wrong, after some may have been given. With one reader
 * they come in order; with more, `take` is called by several threads at once, a piece in order each.
 */
const char *read_delta(const struct delta *delta, int readers, take_pages *take, void *context);
/* Of what was written or read; the file stays open. */
void close_delta(struct delta *delta);

/* What it would take, or takes, unpacked. */
uint64_t plain_delta_bytes(const struct delta *delta);

static inline uint64_t delta_pages(const struct delta *delta) { return delta->header.stored_pages + delta->header.zero_pages; }
