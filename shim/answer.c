#include "answer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "plan.h"

#if defined __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "not an architecture that is known here"
#endif

static const char TUN[] = "/dev/net/tun", FILES[] = "/proc/dormouse/";
/* Room for the longest name that is answered, and its end. */
enum { PATH_SIZE = sizeof FILES + MAX_NAME };
/* Of what it asks to open a file with, it has its way in this. */
enum { ITS_FLAGS = O_DIRECT | O_SYNC | O_DSYNC };
/* More than wait in a TAP (its txqueuelen); one whose VM runs is never empty. */
enum { MOST_FRAMES = 4096 };

#define LOAD(what) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, what))
#define IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)

/*
 * Whatever it opens is asked for, since a filter sees no names, and which interface a descriptor of /dev/net/tun is to be. A call that gets
 * around this opens what is there where the VMM is, as the VMM's user: no such file, and no such TAP.
 */
int ask_for_answers(int to) {
    struct sock_filter code[] = {
        LOAD(arch),
        IS(ARCHITECTURE, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        LOAD(nr),
#ifdef SYS_open
        IS(SYS_open, 5, 0),
#else
        IS(SYS_openat, 5, 0),
#endif
        IS(SYS_openat, 4, 0),
        IS(SYS_ioctl, 0, 2),
        LOAD(args[1]),
        IS((unsigned)TUNSETIFF, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(SECCOMP_RET_USER_NOTIF),
    };
    const struct sock_fprog program = {sizeof code / sizeof *code, code};
    int asker = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (asker < 0) return -1;
    char byte = 0;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec bytes = {&byte, 1};
    const struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof asker), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.header), &asker, sizeof asker);
    return sendmsg(to, &message, 0) == 1 ? 0 : -1;
}

int take_asker(int from) {
    char byte;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec bytes = {&byte, 1};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1) return -1;
    const struct cmsghdr *got = CMSG_FIRSTHDR(&message);
    int asker = -1;
    if (got != NULL && got->cmsg_type == SCM_RIGHTS) memcpy(&asker, CMSG_DATA(got), sizeof asker);
    return asker;
}

/*
 * What it says may be another thing a moment later, or another process's when it has died; but a descriptor goes to who asked or to no one, and
 * nothing is granted by a name but what is this VM's. Everything else it opens by itself, as its own user. Empty when it is none that could be answered.
 */
static void read_path(const struct seccomp_notif *asked, char path[PATH_SIZE]) {
    char file[32];
    snprintf(file, sizeof file, "/proc/%d/mem", (int)asked->pid);
    int memory = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t got = memory < 0 ? -1 : pread(memory, path, PATH_SIZE, (off_t)asked->data.args[asked->data.nr == SYS_openat ? 1 : 0]);
    if (memory >= 0) close(memory);
    if (got <= 0 || memchr(path, '\0', (size_t)got) == NULL) *path = '\0';
}

static const struct answered *file_named(const struct answers *answers, const char *name) {
    for (size_t i = 0; i < MAX_ANSWERED; i++)
        if (answers->files[i].name[0] != '\0' && strcmp(answers->files[i].name, name) == 0) return &answers->files[i];
    return NULL;
}

/* -1 with errno. */
static int open_anew(const struct answered *file, int flags) {
    char path[32];
    int access = file->is_writable ? flags & O_ACCMODE : O_RDONLY;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file->fd);
    return open(path, access | (flags & ITS_FLAGS) | O_CLOEXEC);
}

/*
 * What is given is the VMM's alone, once it is. Descriptor and answer go in one step where the kernel knows that (Linux 5.14): a signal between the two
 * would have it ask again, and keep the first for ever. 1: it is answered, 0: `answer` is yet to be sent.
 */
static int give(int asker, int fd, struct seccomp_notif_resp *answer) {
    struct seccomp_notif_addfd given = {.id = answer->id, .flags = SECCOMP_ADDFD_FLAG_SEND, .srcfd = (unsigned)fd, .newfd_flags = O_CLOEXEC};
    int number = fd < 0 ? -1 : ioctl(asker, SECCOMP_IOCTL_NOTIF_ADDFD, &given);
    if (number >= 0) return 1;
    if (fd >= 0 && errno == EINVAL) {
        given.flags = 0;
        number = ioctl(asker, SECCOMP_IOCTL_NOTIF_ADDFD, &given);
    }
    answer->flags = 0;
    answer->val = number < 0 ? 0 : number;
    answer->error = number < 0 ? -errno : 0;
    return 0;
}

/* What has come between its opening and its shutting would be put into a memory that is not loaded yet. No one else reads it before it is given. */
static void empty_tap(int tap) {
    static char frame[1 << 17];
    for (int frames = 0; frames < MOST_FRAMES && read(tap, frame, sizeof frame) > 0;) frames++;
}

static int answer_open(int asker, const struct seccomp_notif *asked, const struct answers *answers, struct seccomp_notif_resp *answer) {
    char path[PATH_SIZE];
    read_path(asked, path);
    if (answers->tap_fd >= 0 && strcmp(path, TUN) == 0) {
        empty_tap(answers->tap_fd);
        return give(asker, answers->tap_fd, answer);
    }
    if (strncmp(path, FILES, sizeof FILES - 1) == 0) {
        const struct answered *file = file_named(answers, path + sizeof FILES - 1);
        errno = ENOENT;
        int fd = file == NULL ? -1 : open_anew(file, (int)asked->data.args[asked->data.nr == SYS_openat ? 2 : 1]);
        int is_answered = give(asker, fd, answer);
        if (fd >= 0) close(fd);
        return is_answered;
    }
    return 0;
}

int answer_one(int asker, const struct answers *answers) {
    struct pollfd is_there = {.fd = asker, .events = POLLIN};
    if (poll(&is_there, 1, 0) < 0 || is_there.revents == 0) return 0;
    if (!(is_there.revents & POLLIN)) return -1;
    struct seccomp_notif asked = {0};
    // It may have been killed meanwhile.
    if (ioctl(asker, SECCOMP_IOCTL_NOTIF_RECV, &asked) < 0) return 0;
    struct seccomp_notif_resp answer = {.id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    // Which TAP it is to be has been settled.
    if (asked.data.nr != SYS_ioctl) {
        if (answer_open(asker, &asked, answers, &answer)) return 0;
    } else if (answers->tap_fd >= 0) {
        answer.flags = 0;
    }
    ioctl(asker, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    return 0;
}

/* What can be handed to a VMM is a disk. */
static int open_disk(const char *file) {
    struct stat is;
    int fd = open(file, O_PATH | O_CLOEXEC);
    if (fd < 0) return -1;
    if (fstat(fd, &is) == 0 && (S_ISREG(is.st_mode) || S_ISBLK(is.st_mode))) return fd;
    close(fd);
    errno = EINVAL;
    return -1;
}

static int is_word(const char *text, const char *word) { return strncmp(text, word, strlen(word)) == 0; }

const char *set_answer(struct answers *answers, char *what) {
    char *file = strchr(what, '=');
    size_t length = file == NULL ? 0 : (size_t)(file - what);
    if (length == 0 || length >= MAX_NAME || memchr(what, '/', length) != NULL) return "a name and a file are wanted";
    *file++ = '\0';
    struct answered *place = (struct answered *)file_named(answers, what);
    for (size_t i = 0; place == NULL && i < MAX_ANSWERED; i++)
        if (answers->files[i].name[0] == '\0') place = &answers->files[i];
    if (place == NULL) return "too many names";
    if (!is_word(file, "ro:") && !is_word(file, "rw:") && strcmp(file, "blank:") != 0) return "ro:, rw: or blank: is wanted";
    int low = *file == 'b' ? memfd_create("dormouse-blank", MFD_CLOEXEC) : open_disk(file + 3);
    if (low < 0) return strerror(errno);
    // Out of the range that children use.
    int fd = fcntl(low, F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
    close(low);
    if (fd < 0) return strerror(errno);
    if (place->name[0] != '\0') close(place->fd);
    *place = (struct answered){.fd = fd, .is_writable = *file != 'r' || file[1] == 'w'};
    memcpy(place->name, what, length);
    return NULL;
}

const char *extend_answer(const struct answers *answers, char *words) {
    char *size = strchr(words, ' '), *end = NULL;
    if (size == NULL) return "a name and a size are wanted";
    *size++ = '\0';
    long long bytes = strtoll(size, &end, 10);
    const struct answered *file = file_named(answers, words);
    if (file == NULL || !file->is_writable) return "there is no such disk to write";
    if (end == size || *end != '\0' || bytes <= 0) return "a name and a size are wanted";
    int fd = open_anew(file, O_RDWR);
    struct stat is;
    const char *wrong = NULL;
    if (fd < 0 || fstat(fd, &is) < 0) wrong = strerror(errno);
    else if (is.st_size > bytes) wrong = "it is larger already";
    else if (is.st_size < bytes && ftruncate(fd, bytes) < 0) wrong = strerror(errno);
    if (fd >= 0) close(fd);
    return wrong;
}

int is_answer_locked(const struct answers *answers, const char *name) {
    const struct answered *file = file_named(answers, name);
    if (file == NULL) return 0;
    int fd = open_anew(file, O_RDONLY);
    if (fd < 0) return -1;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int asked = fcntl(fd, F_OFD_GETLK, &lock);
    close(fd);
    return asked < 0 ? -1 : lock.l_type != F_UNLCK;
}

void take_answer(struct answers *answers, const char *name) {
    struct answered *place = (struct answered *)file_named(answers, name);
    if (place == NULL) return;
    close(place->fd);
    place->name[0] = '\0';
}
