/*
 * A file for a QEMU that runs already: its descriptor travels over QEMU's control socket, which Node cannot make it do. QEMU may have
 * been taken over by its guest, so nothing that it says is believed further than its first word.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "fail.h"
#include "job.h"

enum { LINE = 1 << 16 };

static int connect_to(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail_errno("cannot reach QEMU");
    return fd;
}

/* Of the lines that begin with one of the words, the next; the others are events. */
static void next_line(FILE *qmp, const char *const *words, char *line) {
    for (;;) {
        if (fgets(line, LINE, qmp) == NULL) fail("QEMU closed its control connection");
        for (size_t i = 0; words[i] != NULL; i++)
            if (strncmp(line, words[i], strlen(words[i])) == 0) return;
    }
}

static void send_command(int socket, const char *text, int fd) {
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec data = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != (ssize_t)data.iov_len) fail_errno("cannot tell QEMU");
}

static void await_answer(FILE *qmp, char *line) {
    static const char *const answers[] = {"{\"return\":", "{\"error\":", NULL};
    next_line(qmp, answers, line);
    if (line[2] != 'e') return;
    char *words = strstr(line, "\"desc\": \"");
    words = words == NULL ? line : words + strlen("\"desc\": \"");
    words[strcspn(words, "\"\r\n")] = '\0';
    fail("QEMU refused the file: %.200s", words);
}

/* FILE ro|rw SET, where FILE may have spaces in it. */
static char *last_word(char *words) {
    char *space = strrchr(words, ' ');
    if (space == NULL) fail("a file, ro or rw, and a number are wanted");
    *space = '\0';
    return space + 1;
}

/* A note that QEMU keeps with the descriptor: what the file is called, so that whoever asks later knows which it is. */
static const char *name_of(const char *file) {
    const char *slash = strrchr(file, '/');
    const char *name = slash == NULL ? file : slash + 1;
    size_t plain = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return name[plain] == '\0' ? name : "";
}

void give(const struct job *job) {
    char *end;
    long set = strtol(last_word(job->words), &end, 10);
    const char *access = last_word(job->words);
    int is_writable = strcmp(access, "rw") == 0;
    if (*end != '\0' || set < 0 || (!is_writable && strcmp(access, "ro") != 0)) fail("a file, ro or rw, and a number are wanted");
    int fd = open(job->words, (is_writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0) fail_errno("cannot open %s", job->words);

    static char line[LINE];
    int socket = connect_to("qmp.sock");
    FILE *qmp = fdopen(dup(socket), "r");
    if (qmp == NULL) fail_errno("cannot listen to QEMU");
    next_line(qmp, (const char *const[]){"{\"QMP\":", NULL}, line);
    send_command(socket, "{\"execute\": \"qmp_capabilities\"}\n", -1);
    await_answer(qmp, line);
    char command[512];
    snprintf(command, sizeof command, "{\"execute\": \"add-fd\", \"arguments\": {\"fdset-id\": %ld, \"opaque\": \"%.255s\"}}\n", set,
             name_of(job->words));
    send_command(socket, command, fd);
    await_answer(qmp, line);
    fclose(qmp);
    close(socket);
    const char *number = strstr(line, "\"fd\": ");
    say("gave %d", number == NULL ? -1 : atoi(number + strlen("\"fd\": ")));
}
