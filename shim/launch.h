#pragma once
#include <sys/types.h>

#include "plan.h"

struct launch {
    char **argv;
    const struct descriptor *fds;
    size_t fd_count;
    int stderr_fd; /* also its standard output */
    int has_user;
    uid_t uid;
    gid_t gid;
    const gid_t *groups;
    size_t group_count;
    int isolates_network;
    long long locked_bytes; /* 0: as little as anyone */
    int may_bind_low_ports;
    int *asker; /* gets the descriptor by which the child is answered that opens certain names; NULL: no one answers */
    int has_dir; /* it is started in the directory that dir_fd is, else in the root */
    int dir_fd;
};

/*
 * Starts a child that dies with the shim, as its own user, with no way to gain rights, and with no descriptor but those named.
 * Returns its pid, or -1 with errno when it could not be started; the program was found and runs when this returns.
 */
pid_t launch(const struct launch *how);
