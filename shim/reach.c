/* May we look into the memory of a child that has become another user? Tried, since rights, Yama and namespaces all have a say in it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "commands.h"
#include "fail.h"
#include "launch.h"
#include "pages.h"
#include "vmm-memory.h"

/* By all three ways that a capture and a load take. */
static int reaches(const struct vmm_files *files) {
    uint64_t address, word;
    char page[PAGE];
    FILE *maps = fdopen(dup(files->maps), "r");
    int found = maps != NULL && fscanf(maps, "%" SCNx64, &address) == 1;
    if (maps != NULL) fclose(maps);
    return found && pread(files->pagemap, &word, sizeof word, (off_t)(address / PAGE * sizeof word)) == sizeof word &&
           pread(files->mem, page, PAGE, (off_t)address) == PAGE;
}

/* `-` or UID:GID of whom VMMs run as. Prints `yes`, or `no WHY`. */
int command_reach(const char *user) {
    unsigned uid = 0, gid = 0;
    int has_user = strcmp(user, "-") != 0;
    if (has_user && sscanf(user, "%u:%u", &uid, &gid) != 2) fail("not a user: %s", user);
    // Launched is not yet loaded: for a moment its memory is a stack on the move. Once it has written it is at rest, its pipe full.
    char *argv[] = {"yes", NULL}, written;
    int output[2];
    if (pipe2(output, O_CLOEXEC) < 0) fail_errno("cannot make a pipe");
    pid_t child = launch(&(struct launch){.argv = argv, .stderr_fd = output[1], .has_user = has_user, .uid = uid, .gid = gid});
    if (child < 0) fail_errno("cannot start a process to try it on");
    close(output[1]);
    if (read(output[0], &written, 1) != 1) fail("a process to try it on ended at once");
    struct vmm_files files;
    int can = open_vmm_files(&files, child) == 0 && reaches(&files);
    int error = errno;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (can) puts("yes");
    else printf("no %s\n", strerror(error));
    return 0;
}
