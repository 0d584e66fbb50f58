#pragma once
/* Guest memory as pages: summing them up, and moving those that are not zero. */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { PAGE = 4096, PIECE_PAGES = 256 };

/*
 * What one page adds to the sum of a memory. Addition is all that joins them, so the order does not matter and a page can be taken out
 * again; the number is mixed in, so that pages that changed places are seen.
 */
uint64_t sum_page(const char *page, uint64_t number);
int is_zero_page(const char *page);

struct copied {
    uint64_t sum;
    uint64_t pages;
};

/* Called with pages side by side, `count` of them from page `first` on. */
typedef void take_pages(void *context, const char *pages, uint64_t first, size_t count);

/* Gives every page of `from` that is not in a hole, in order, at most PIECE_PAGES at a time. `size` is a whole number of pages. */
void read_pages(int from, off_t size, take_pages *take, void *context);
/* Writes those that are not zero to their places in `to` (-1: nowhere) and adds them to `copied`. */
void copy_pages(struct copied *copied, int to, const char *pages, uint64_t first, size_t count);
/* A whole memory. */
struct copied copy_memory(int from, int to, off_t size);

/* A new memfd with what is in `base`, for one VMM to write. Ends the program when it cannot be made. */
int copy_of_memory(int base);
/* All of it, or the end of the program with a word. */
void write_all(int fd, const void *data, size_t length, off_t at);
