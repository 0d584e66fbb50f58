#pragma once
/* What the daemon asks of one shim, read from its arguments, and the descriptors opened for it. */
#include <stddef.h>
#include <sys/types.h>

#include "answer.h"

enum { MAX_DESCRIPTORS = 96, MAX_LOGS = 4, MAX_GROUPS = 8, MAX_HELPER_ARGS = 72, MAX_CGROUPS = 4, MAX_SERVED = 4 };

/* A descriptor that the VMM or the helper gets under a number that its own arguments name. */
struct descriptor {
    int number;
    int fd;
};

struct log_plan {
    const char *name;
    const char *path;
    int is_capped; /* stops at the limit; the others are rotated, one older file is kept */
    long long max_bytes;
};

/* The shim's end of a stream that it drains into a log; -1: none is there now. */
struct source_plan {
    int fd;
    int log;
};

/* A socket by which the VMM opens such a stream itself. */
struct served_plan {
    int fd;
    int source;
};

struct plan {
    const char *dir;
    const char *cgroups[MAX_CGROUPS];
    size_t cgroup_count;
    int has_user;
    uid_t uid;
    gid_t gid;
    gid_t groups[MAX_GROUPS];
    size_t group_count;
    struct log_plan logs[MAX_LOGS];
    size_t log_count;
    struct source_plan sources[MAX_DESCRIPTORS];
    size_t source_count;
    const char *own_dir; /* the VMM's working directory, and its own; NULL: none */
    int own_dir_fd;
    struct served_plan served[MAX_SERVED];
    size_t served_count;
    struct descriptor vmm_fds[MAX_DESCRIPTORS];
    size_t vmm_fd_count;
    int blank_fd;  /* -1: none was asked for */
    int memory_fd; /* the base of its guest's memory; -1: not named */
    int copy_fd;   /* what the VMM maps instead of the base, where we may not read it; -1: it maps the base */
    int tap_fd;    /* the TAP that its card is behind; -1: none */
    char **vmm_argv;
    int waits;            /* its VM is no one's yet, and ends with the daemon's last connection */
    int isolates_network; /* the VMM itself gets an empty network namespace */
    int answers_tun;      /* its TAP is what the VMM finds that opens /dev/net/tun */
    int answers_opens;    /* so is what `answers` names, now or later */
    struct answers answers;
    long long locked_bytes; /* memory that the VMM may keep from being moved, for devices that reach it; 0: as little as anyone */
    struct descriptor helper_fds[MAX_DESCRIPTORS];
    size_t helper_fd_count;
    char *helper_argv[MAX_HELPER_ARGS + 1];
    size_t helper_argc;
    int helper_dir_fd; /* where the helper is started; -1: in the root */
    /* Names of sockets in `dir`, to be unlinked at the end. */
    const char *sockets[MAX_DESCRIPTORS];
    size_t socket_count;
};

/*
 * Options, each followed by its value:
 *   --inherited COUNT         descriptors handed over, from 3 on; all others are closed; comes first
 *   --dir DIR                 the run directory; the shim's working directory and where its sockets are
 *   --cgroup DIR              a cgroup that the shim enters before it starts anything; repeated, one for each hierarchy
 *   --user UID:GID            whom the VMM and the helper run as
 *   --group GID               a further group of the VMM's, for the devices it may open
 *   --rotated NAME=BYTES:FILE a log that is rotated at BYTES
 *   --capped NAME=BYTES:FILE  a log that begins empty and ends at BYTES
 *   --own-dir NAME            a directory in DIR that is the VMM's user's, and where it is started; comes after --user
 *   --serve NAME=SOCKET       a socket in that directory, by which the VMM opens a stream into that log
 *   --fd N=KIND, --helper-fd N=KIND   descriptor N of the VMM or of the helper, where KIND is
 *       inherit:M     descriptor M of the shim itself
 *       listen:NAME   a listening unix socket in DIR, for the daemon's user alone
 *       offer:SUB/NAME the same in a directory of its own below, for whoever is handed that directory
 *       log:NAME      a stream that the shim drains into that log
 *       read:FILE     FILE, opened by the shim
 *       write:FILE    FILE, opened by the shim for reading and writing
 *       blank:        an empty memfd, which the shim keeps and names in its `ready` line
 *       scratch:DIR   an empty file without a name on the file system of DIR: memory that the kernel can write back and drop
 *       sized:BYTES:DIR the same, of that size: for VMMs that map what is there
 *       hold:         one end of a stream whose other end the shim holds open and does nothing with
 *       tap:NAME      the TAP of that name, which lets large frames through; `NAME%d` makes one that goes with its last user
 *       pair:NAME     one end of a packet socket; the second use of NAME is the other end
 *   --memory N                descriptor N of the VMM is its guest's memory, which it maps privately
 *   --copies-memory yes       the VMM gets a memfd with what is in its memory's descriptor instead, and maps it shared
 *   --waits yes               ends the VMM when the last connection does, until `claim`
 *   --isolate-network yes     gives the VMM a network namespace with nothing in it
 *   --answer-tun yes          the VMM that opens /dev/net/tun finds its TAP there, whatever name it has for it; shut, until `open`
 *   --answers yes             the VMM may be given files by names that it opens, now and later (answer.h)
 *   --answer NAME=KIND        one of them; KIND is ro:FILE, rw:FILE or blank:
 *   --locked BYTES            how much memory the VMM may lock, as it does for devices of the host
 *   --helper ARG              a word of the helper's command line; repeated
 *   --helper-dir DIR          where the helper is started, though its user may have no way there
 *   -- VMM ARGS
 */
void read_plan(struct plan *plan, int argc, char **argv);

int listen_on(const char *name);
/* -1 with errno. */
int open_dir(const char *path);
/* The lowest number that the shim's own descriptors have: the numbers below are the children's. */
enum { OWN_DESCRIPTORS = 100 };
