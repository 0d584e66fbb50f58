#pragma once
/*
 * The guest's memory as it lies in the VMM: a private mapping of a base, and pages of its own where it has been written. Where we may not
 * look into the VMM, it maps a copy of the base instead, which we have as well: what was written is then found by comparing them.
 */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Opened by the VMM's parent, which is who may even as an ordinary user under Yama; read by a worker that inherits them. */
struct vmm_files {
    int maps, pagemap, mem;
};

/* Pages side by side in the memory and in the VMM. */
struct stretch {
    uint64_t first;
    uint64_t count;
    uint64_t address;
};

struct stretches {
    struct stretch *list;
    size_t count, capacity;
    uint64_t pages;
};

struct vmm_memory {
    pid_t pid;
    struct vmm_files files;
    uint64_t bytes;
    struct stretches mapped; /* all of it, in order */
    int is_denied;           /* the quick way to read it */
    int base, copy;          /* -1: the VMM has mapped the base itself */
};

/* -1 with errno. */
int open_vmm_files(struct vmm_files *files, pid_t vmm);
void close_vmm_files(const struct vmm_files *files);

/* Finds where the VMM has mapped the file `memory_fd`. NULL, or in words why it cannot be used. */
const char *find_memory(struct vmm_memory *memory, pid_t vmm, const struct vmm_files *files, int memory_fd);
/* A VMM that has mapped `copy`, which began as `base`. NULL, or in words why it cannot be used. */
const char *take_copy(struct vmm_memory *memory, int base, int copy);
/*
 * The same for memory that was added later: the file is known by its number among the VMM's own descriptors, and has to have so many bytes.
 * A VMM that was taken over may name any mapping of its own, and no one else's.
 */
const char *find_added_memory(struct vmm_memory *memory, pid_t vmm, const struct vmm_files *files, int number, uint64_t bytes);
/* The pages that are the VMM's own, swapped-out ones included. NULL, or in words what failed. */
const char *find_changed(const struct vmm_memory *memory, struct stretches *changed);

/* How far into `stretches` has been read. */
struct place {
    size_t index;
    uint64_t done;
};

/* Reads the next pages, at most `most`, to `buffer`. Returns how many; 0 at the end; -1 when the VMM's memory cannot be read. */
ssize_t read_stretches(struct vmm_memory *memory, const struct stretches *from, struct place *place, char *buffer, size_t most);
/* 0 when the VMM had not ended yet, so that what was read so far was its own. */
int has_ended(const struct vmm_memory *memory);
/* -1 with errno. */
int write_memory(const struct vmm_memory *memory, const char *pages, uint64_t first, size_t count);
