/*
 * Memory files and the memfds that VMs map. A base that more than one VM maps is a memfd sealed against writing: a VMM maps it
 * privately and may open it read-write, yet neither a write nor a punched hole can reach the pages of its siblings.
 *
 * The daemon takes the memfd by opening /proc/PID/fd/N of this process and then lets it go. Both ways of copying keep holes, and
 * both sum up the pages that are not zero, so that a flipped bit or a lost block of the file is found before anything runs on it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "fail.h"
#include "output.h"
#include "pages.h"

static int new_memfd(off_t size) {
    int fd = memfd_create("dormouse-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) fail_errno("cannot make a memfd");
    if (size <= 0 || size % PAGE != 0) fail("a memory has a whole number of pages");
    if (ftruncate(fd, size) < 0) fail_errno("cannot size a memfd");
    // VMMs of other users open it through /proc/self/fd; only who has been handed the descriptor gets that far.
    if (fchmod(fd, 0666) < 0) fail_errno("cannot open a memfd to its users");
    return fd;
}

int copy_of_memory(int base) {
    struct stat facts;
    if (fstat(base, &facts) < 0) fail_errno("the memory cannot be looked at");
    int fd = new_memfd(facts.st_size);
    copy_memory(base, fd, facts.st_size);
    return fd;
}

static void seal(int fd) {
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0) fail_errno("cannot seal memory");
}

/* Until the daemon has opened what is offered, or is gone. */
static int hold(int fd, struct copied copied) {
    printf("held %d %016llx %llu\n", fd, (unsigned long long)copied.sum, (unsigned long long)copied.pages);
    fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR) continue;
    return 0;
}

int command_base(const char *file) {
    int from = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (from < 0) fail_errno("cannot open %s", file);
    struct stat facts;
    if (fstat(from, &facts) < 0) fail_errno("cannot look at %s", file);
    int to = new_memfd(facts.st_size);
    struct copied copied = copy_memory(from, to, facts.st_size);
    close(from);
    seal(to);
    return hold(to, copied);
}

int command_blank(const char *bytes) {
    int fd = new_memfd(strtoll(bytes, NULL, 10));
    return hold(fd, (struct copied){0, 0});
}

int command_store(const char *file) {
    const int from = 3;
    struct stat facts;
    if (fstat(from, &facts) < 0) fail_errno("no memory was handed over");
    seal(from);
    int to = create_output(file);
    if (ftruncate(to, facts.st_size) < 0) fail_errno("cannot size %s", file);
    struct copied copied = copy_memory(from, to, facts.st_size);
    keep_outputs();
    printf("stored %016llx %llu\n", (unsigned long long)copied.sum, (unsigned long long)copied.pages);
    return 0;
}
