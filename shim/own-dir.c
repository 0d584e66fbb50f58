#include "own-dir.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "fail.h"

void make_own_dir(struct plan *plan, const char *name) {
    if (strchr(name, '/') != NULL || *name == '.') fail("not a directory's name: %s", name);
    if (mkdir(name, 0700) < 0 && errno != EEXIST) fail_errno("cannot make %s", name);
    int fd = open(name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    plan->own_dir_fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    if (plan->own_dir_fd < 0) fail_errno("cannot open %s", name);
    close(fd);
    if (plan->has_user && fchown(plan->own_dir_fd, plan->uid, plan->gid) < 0) fail_errno("cannot give %s to the VMM's user", name);
    plan->own_dir = name;
}

void serve_log(struct plan *plan, const char *name, int log) {
    if (plan->own_dir == NULL) fail("the VMM has no directory of its own");
    if (plan->served_count == MAX_SERVED || plan->source_count == MAX_DESCRIPTORS) fail("too many logs are served");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", plan->own_dir, name);
    if (length >= (int)sizeof address.sun_path || strchr(name, '/') != NULL) fail("not a socket's name: %s", name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) fail_errno("cannot make a socket");
    unlink(address.sun_path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail_errno("cannot bind %s", name);
    if (chmod(address.sun_path, 0600) < 0) fail_errno("cannot guard %s", name);
    if (plan->has_user && chown(address.sun_path, plan->uid, plan->gid) < 0) fail_errno("cannot give %s to the VMM's user", name);
    if (listen(fd, 4) < 0) fail_errno("cannot listen on %s", name);
    int high = fcntl(fd, F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    if (high < 0) fail_errno("cannot move a descriptor");
    close(fd);
    plan->served[plan->served_count++] = (struct served_plan){high, (int)plan->source_count};
    plan->sources[plan->source_count++] = (struct source_plan){-1, log};
}

static int remove_one(const char *path, const struct stat *facts, int kind, struct FTW *place) {
    (void)facts;
    (void)kind;
    (void)place;
    remove(path);
    return 0;
}

void remove_own_dir(const char *name) { nftw(name, remove_one, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT); }
