#include "plan.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "fail.h"
#include "own-dir.h"
#include "pages.h"
#include "tap.h"

static long long number(const char *text, long long max) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < 0 || value > max) fail("not a number: %s", text);
    return value;
}

/* Out of the range that children use, and closed on exec. */
static int raise_fd(int fd) {
    int high = fcntl(fd, F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    if (high < 0) fail_errno("cannot move a descriptor");
    close(fd);
    return high;
}

static int open_file(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) fail_errno("cannot open %s", path);
    return raise_fd(fd);
}

static int listen_as(const char *name, mode_t mode, int backlog) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(name) >= sizeof address.sun_path) fail("not a socket's name: %s", name);
    strcpy(address.sun_path, name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail_errno("cannot make a socket");
    unlink(name);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail_errno("cannot bind %s", name);
    if (chmod(name, mode) < 0) fail_errno("cannot guard %s", name);
    if (listen(fd, backlog) < 0) fail_errno("cannot listen on %s", name);
    return raise_fd(fd);
}

int listen_on(const char *name) {
    if (strchr(name, '/') != NULL) fail("not a socket's name: %s", name);
    return listen_as(name, 0600, 16);
}

/*
 * For another user's process: who may come in is whoever has been given the directory, which no path leads to for others. It may be there
 * from an earlier life, with that process standing in it.
 */
static int offer(const char *value) {
    const char *slash = strchr(value, '/');
    char dir[64];
    if (slash == NULL || strchr(slash + 1, '/') != NULL || slash[1] == '\0' || slash == value || (size_t)(slash - value) >= sizeof dir || value[0] == '.')
        fail("not a directory and a socket's name: %s", value);
    snprintf(dir, sizeof dir, "%.*s", (int)(slash - value), value);
    if ((mkdir(dir, 0711) < 0 && errno != EEXIST) || chmod(dir, 0711) < 0) fail_errno("cannot make %s", dir);
    return listen_as(value, 0666, SOMAXCONN);
}

int open_dir(const char *path) {
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -1 : raise_fd(fd);
}

static int log_named(struct plan *plan, const char *name) {
    for (size_t i = 0; i < plan->log_count; i++)
        if (strcmp(plan->logs[i].name, name) == 0) return (int)i;
    fail("no log is called %s", name);
}

static void socket_pair(int type, int ends[2]) {
    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends) < 0) fail_errno("cannot make a socket pair");
    ends[0] = raise_fd(ends[0]);
    ends[1] = raise_fd(ends[1]);
}

struct pair {
    const char *name;
    int other;
};

static int open_kind(struct plan *plan, struct pair *pairs, size_t *pair_count, const char *kind) {
    const char *colon = strchr(kind, ':');
    if (colon == NULL) fail("not a kind of descriptor: %s", kind);
    size_t length = (size_t)(colon - kind);
    const char *value = colon + 1;
#define IS(word) (length == strlen(word) && strncmp(kind, word, length) == 0)
    if (IS("inherit")) {
        int fd = fcntl((int)number(value, INT_MAX), F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
        if (fd < 0) fail_errno("descriptor %s was not handed over", value);
        return fd;
    }
    if (IS("listen")) {
        plan->sockets[plan->socket_count++] = value;
        return listen_on(value);
    }
    if (IS("offer")) {
        plan->sockets[plan->socket_count++] = value;
        return offer(value);
    }
    if (IS("log")) {
        int ends[2];
        socket_pair(SOCK_STREAM, ends);
        plan->sources[plan->source_count++] = (struct source_plan){ends[0], log_named(plan, value)};
        return ends[1];
    }
    if (IS("read")) return open_file(value, O_RDONLY);
    if (IS("write")) return open_file(value, O_RDWR);
    if (IS("blank")) {
        int fd = memfd_create("dormouse-state", MFD_CLOEXEC);
        if (fd < 0 || fchmod(fd, 0666) < 0) fail_errno("cannot make a memfd");
        return raise_fd(fd);
    }
    if (IS("scratch") || IS("sized")) {
        const char *size = IS("sized") ? value : NULL;
        char *end = NULL;
        long long bytes = size == NULL ? 0 : strtoll(size, &end, 10);
        if (size != NULL && (end == size || *end != ':' || bytes <= 0)) fail("not a size and a directory: %s", value);
        if (size != NULL) value = end + 1;
        int fd = open(value, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        // The VMM opens it anew by its descriptor, as a user of its own; it has no name that another could find.
        if (fd < 0 || fchmod(fd, 0666) < 0) fail_errno("cannot make a file in %s", value);
        if (bytes > 0 && ftruncate(fd, bytes) < 0) fail_errno("cannot size a file in %s", value);
        return raise_fd(fd);
    }
    if (IS("hold")) {
        // Our end is never closed and never read.
        int ends[2];
        socket_pair(SOCK_STREAM, ends);
        return ends[1];
    }
    if (IS("tap")) return plan->tap_fd = raise_fd(open_tap(value));
    if (IS("pair")) {
        for (size_t i = 0; i < *pair_count; i++)
            if (strcmp(pairs[i].name, value) == 0) return pairs[i].other;
        int ends[2];
        socket_pair(SOCK_SEQPACKET, ends);
        pairs[(*pair_count)++] = (struct pair){value, ends[1]};
        return ends[0];
    }
#undef IS
    fail("not a kind of descriptor: %s", kind);
}

static void add_log(struct plan *plan, char *value, int is_capped) {
    if (plan->log_count == MAX_LOGS) fail("too many logs");
    char *equals = strchr(value, '=');
    char *colon = equals == NULL ? NULL : strchr(equals, ':');
    if (colon == NULL) fail("not a log: %s", value);
    *equals = *colon = '\0';
    plan->logs[plan->log_count++] = (struct log_plan){value, colon + 1, is_capped, number(equals + 1, LLONG_MAX)};
}

static void add_descriptor(struct plan *plan, struct pair *pairs, size_t *pair_count, char *value, struct descriptor *list,
                           size_t *count) {
    if (*count == MAX_DESCRIPTORS || plan->source_count == MAX_DESCRIPTORS) fail("too many descriptors");
    char *equals = strchr(value, '=');
    if (equals == NULL) fail("not a descriptor: %s", value);
    *equals = '\0';
    int wanted = (int)number(value, OWN_DESCRIPTORS - 1);
    list[(*count)++] = (struct descriptor){wanted, open_kind(plan, pairs, pair_count, equals + 1)};
}

static int vmm_descriptor(const struct plan *plan, long long wanted) {
    for (size_t i = 0; i < plan->vmm_fd_count; i++)
        if (plan->vmm_fds[i].number == wanted) return plan->vmm_fds[i].fd;
    fail("the VMM has no descriptor %lld", wanted);
}

/* Other ways to look into it than the VMM's own are then needed by no one. */
static void copy_memory_for_vmm(struct plan *plan) {
    for (size_t i = 0; i < plan->vmm_fd_count; i++)
        if (plan->vmm_fds[i].fd == plan->memory_fd) plan->vmm_fds[i].fd = plan->copy_fd = raise_fd(copy_of_memory(plan->memory_fd));
    if (plan->copy_fd < 0) fail("no memory was named that could be copied");
}

void read_plan(struct plan *plan, int argc, char **argv) {
    struct pair pairs[MAX_DESCRIPTORS] = {0};
    size_t pair_count = 0;
    plan->blank_fd = plan->memory_fd = plan->copy_fd = plan->tap_fd = plan->own_dir_fd = plan->helper_dir_fd = -1;
    int i = 0;
    for (; i + 1 < argc && strcmp(argv[i], "--") != 0; i += 2) {
        char *value = argv[i + 1];
#define IS(option) (strcmp(argv[i], option) == 0)
        if (IS("--inherited")) {
            // What else the daemon had open is none of ours, and would be kept open for as long as the VM lives.
            if (close_range(3 + (unsigned)number(value, MAX_DESCRIPTORS), ~0U, 0) < 0) fail_errno("cannot close descriptors");
        } else if (IS("--dir")) {
            plan->dir = value;
            // From here on the sockets are named relative to it, so that its length does not count against sun_path.
            if (chdir(value) < 0) fail_errno("cannot enter %s", value);
        } else if (IS("--cgroup")) {
            if (plan->cgroup_count == MAX_CGROUPS) fail("too many cgroups");
            plan->cgroups[plan->cgroup_count++] = value;
        } else if (IS("--user")) {
            char *colon = strchr(value, ':');
            if (colon == NULL) fail("not a user: %s", value);
            *colon = '\0';
            plan->has_user = 1;
            plan->uid = (uid_t)number(value, UINT_MAX - 1);
            plan->gid = (gid_t)number(colon + 1, UINT_MAX - 1);
        } else if (IS("--group")) {
            if (plan->group_count == MAX_GROUPS) fail("too many groups");
            plan->groups[plan->group_count++] = (gid_t)number(value, UINT_MAX - 1);
        } else if (IS("--rotated") || IS("--capped")) {
            add_log(plan, value, IS("--capped"));
        } else if (IS("--own-dir")) {
            make_own_dir(plan, value);
        } else if (IS("--serve")) {
            char *equals = strchr(value, '=');
            if (equals == NULL) fail("not a served log: %s", value);
            *equals = '\0';
            serve_log(plan, equals + 1, log_named(plan, value));
        } else if (IS("--fd")) {
            add_descriptor(plan, pairs, &pair_count, value, plan->vmm_fds, &plan->vmm_fd_count);
            if (strcmp(value + strlen(value) + 1, "blank:") == 0) plan->blank_fd = plan->vmm_fds[plan->vmm_fd_count - 1].fd;
        } else if (IS("--helper-fd")) {
            add_descriptor(plan, pairs, &pair_count, value, plan->helper_fds, &plan->helper_fd_count);
        } else if (IS("--memory")) {
            plan->memory_fd = vmm_descriptor(plan, number(value, OWN_DESCRIPTORS - 1));
        } else if (IS("--copies-memory")) {
            if (strcmp(value, "yes") == 0) copy_memory_for_vmm(plan);
        } else if (IS("--waits")) {
            plan->waits = strcmp(value, "yes") == 0;
        } else if (IS("--isolate-network")) {
            plan->isolates_network = strcmp(value, "yes") == 0;
        } else if (IS("--answer-tun")) {
            plan->answers_tun = strcmp(value, "yes") == 0;
        } else if (IS("--answers")) {
            plan->answers_opens = strcmp(value, "yes") == 0;
        } else if (IS("--answer")) {
            const char *wrong = set_answer(&plan->answers, value);
            if (wrong != NULL) fail("cannot answer for %s: %s", value, wrong);
        } else if (IS("--locked")) {
            plan->locked_bytes = number(value, LLONG_MAX);
        } else if (IS("--helper-dir")) {
            plan->helper_dir_fd = open_dir(value);
            if (plan->helper_dir_fd < 0) fail_errno("cannot open %s", value);
        } else if (IS("--helper")) {
            if (plan->helper_argc == MAX_HELPER_ARGS) fail("too many words for the helper");
            plan->helper_argv[plan->helper_argc++] = value;
        } else {
            fail("not an option: %s", argv[i]);
        }
#undef IS
    }
    if (plan->dir == NULL) fail("no run directory was named");
    if (i + 1 >= argc) fail("no VMM was named");
    if (plan->answers_tun && plan->tap_fd < 0) fail("no TAP was named that the VMM could find");
    plan->answers.tap_fd = plan->answers_tun ? plan->tap_fd : -1;
    plan->vmm_argv = argv + i + 1;
}
