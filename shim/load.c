/* A delta over the base that a VMM has mapped: writing to a private mapping copies the page, so the base stays as it is. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "delta.h"
#include "fail.h"
#include "job.h"

static void write_pages(void *context, const char *pages, uint64_t first, size_t count) {
    if (write_memory(context, pages, first, count) < 0) fail_errno("cannot write the VM's memory");
}

/* Writing is as quick as the kernel has it, by however many; unpacking beside it costs no time where there is a processor for it. */
static int readers_of(const struct delta *delta) {
    return delta->header.packing == PACK_NONE ? 1 : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static void load_into(struct vmm_memory *memory, const char *file) {
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) fail_errno("cannot open %s", file);
    struct delta delta;
    const char *wrong = open_delta(&delta, fd);
    if (wrong == NULL && delta.header.memory_bytes != memory->bytes) wrong = "it belongs to a memory of another size";
    if (wrong == NULL) wrong = read_delta(&delta, readers_of(&delta), write_pages, memory);
    if (wrong != NULL) fail("the delta %s cannot be used: %s", file, wrong);
    say("loaded %llu %016llx", (unsigned long long)delta_pages(&delta), (unsigned long long)delta.header.sum);
}

void load(const struct job *job) {
    struct vmm_memory memory;
    const char *wrong = find_job_memory(&memory, job);
    if (wrong != NULL) fail("%s", wrong);
    load_into(&memory, job->words);
}

void load_added(const struct job *job) {
    struct vmm_memory memory;
    struct added added;
    const char *file = read_added(&added, job->words);
    if (added.count != 1) fail("one piece of memory and a file are wanted");
    const char *wrong = find_job_added(&memory, job, added.list[0].number, added.list[0].bytes);
    if (wrong != NULL) fail("%s", wrong);
    load_into(&memory, file);
}
