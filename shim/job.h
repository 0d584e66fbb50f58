#pragma once
/*
 * What takes longer than a word, or may wait for a disk, is done by a worker: a fork of the shim that has the client's connection for
 * its standard output and ends with it. The shim goes on draining logs.
 */
#include <sys/types.h>

#include "vmm-memory.h"

/* What the shim knows of its VMM. */
struct vmm {
    pid_t pid;
    int memory_fd; /* the base of its guest's; -1: not known */
    int copy_fd;   /* what it maps instead; -1: it maps the base */
    int state_fd;  /* what it saves device state to; -1: none */
    int tap_fd;    /* its card's; -1: none, or one that is for ever */
};

struct job {
    const struct vmm *vmm;
    struct vmm_files files;
    char *words; /* of the request, after its first */
};

/* Memory that was added to the VM: files by their numbers among the VMM's descriptors. */
enum { MAX_ADDED = 8 };
struct added {
    struct {
        int number;
        uint64_t bytes;
    } list[MAX_ADDED];
    size_t count;
};
/* Reads `FD:BYTES,FD:BYTES…` from the beginning of a request's words; returns what follows. */
char *read_added(struct added *added, char *words);

/*
 *   capture DIR          →  read PAGES BYTES, stored SUM PAGES ZERO_PAGES DELTA_BYTES STATE_BYTES
 *   capture-with FD:BYTES,… DIR  →  the same, and before `stored` for each, in order: added SUM PAGES DELTA_BYTES
 *   load FILE            →  loaded PAGES SUM
 *   load-added FD:BYTES FILE     →  the same
 *   give FILE ro|rw SET  →  gave FD
 *   tap NAME             →  took NAME
 * and `error WHY` at any point, after which nothing is left of what it was about to make.
 */
void capture(const struct job *job);
void capture_with(const struct job *job);
void load(const struct job *job);
void load_added(const struct job *job);
void give(const struct job *job);
void take_tap(const struct job *job);

/* NULL, or in words why it cannot be used. */
const char *find_job_memory(struct vmm_memory *memory, const struct job *job);
/* The same for memory that was added, the file `number` of the VMM's. */
const char *find_job_added(struct vmm_memory *memory, const struct job *job, int number, uint64_t bytes);

/* 1: the line names a job, and the client is the worker's now; 0: it does not; -1 with errno: the job could not be started. */
int start_job(int client, char *line, const struct vmm *vmm);

/* One line to the client, at once. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
