#include "control.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "answer.h"
#include "tap.h"

static int answer(const struct client *client, const char *text) {
    // A client that does not read is let go, never waited for.
    size_t length = strlen(text);
    return send(client->fd, text, length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length ? 0 : -1;
}

static int signal_named(const char *name) {
    static const int known[] = {SIGKILL, SIGTERM, SIGSTOP, SIGCONT};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(sigabbrev_np(known[i]), name) == 0) return known[i];
    return 0;
}

/* NAME FILE */
static const char *move_log_named(const struct controlled *what, char *words) {
    char *file = strchr(words, ' ');
    if (file == NULL) return "a log and a file are wanted";
    *file++ = '\0';
    for (size_t i = 0; i < what->log_count; i++)
        if (strcmp(what->logs[i].plan.name, words) == 0) return move_log(&what->logs[i], file) == 0 ? NULL : strerror(errno);
    return "no such log";
}

static int obey(const struct client *client, char *line, const struct controlled *what) {
    const struct vmm *vmm = &what->vmm;
    char text[LINE_SIZE];
    if (strcmp(line, "status") == 0) {
        snprintf(text, sizeof text, "running %d\n", (int)vmm->pid);
        return answer(client, text);
    }
    if (strncmp(line, "signal ", 7) == 0) {
        int number = signal_named(line + 7);
        if (number == 0) return answer(client, "error no such signal\n");
        // The VMM is our child and not reaped yet, so the pid is its own.
        if (kill(vmm->pid, number) == 0) return answer(client, "ok\n");
        snprintf(text, sizeof text, "error %s\n", strerror(errno));
        return answer(client, text);
    }
    // Another helper in place of one that serves would cut its guest off.
    if (strncmp(line, "egress ", 7) == 0 && !*what->waits) return answer(client, "error the VM does not wait\n");
    if (strncmp(line, "log ", 4) == 0 || strncmp(line, "egress ", 7) == 0) {
        const char *wrong = line[0] == 'l' ? move_log_named(what, line + 4) : what->give_proxy(what->context, line + 7);
        if (wrong == NULL) return answer(client, "ok\n");
        snprintf(text, sizeof text, "error %s\n", wrong);
        return answer(client, text);
    }
    if (strcmp(line, "claim") == 0) {
        *what->waits = 0;
        return answer(client, "ok\n");
    }
    if (strcmp(line, "cut") == 0) {
        what->cut_streams(what->context);
        return answer(client, "ok\n");
    }
    if (strcmp(line, "shut") == 0 || strcmp(line, "open") == 0) {
        if (vmm->tap_fd < 0) return answer(client, "error it has no TAP that could be shut\n");
        if ((*line == 's' ? shut_tap : open_tap_again)(vmm->tap_fd) == 0) return answer(client, "ok\n");
        snprintf(text, sizeof text, "error %s\n", strerror(errno));
        return answer(client, text);
    }
    if (strncmp(line, "answer ", 7) == 0 || strncmp(line, "extend ", 7) == 0 || strncmp(line, "refuse ", 7) == 0) {
        const char *wrong = what->answers == NULL ? "it opens everything by itself" : NULL;
        if (wrong == NULL && line[0] == 'a') wrong = set_answer(what->answers, line + 7);
        else if (wrong == NULL && line[0] == 'e') wrong = extend_answer(what->answers, line + 7);
        else if (wrong == NULL) take_answer(what->answers, line + 7);
        if (wrong == NULL) return answer(client, "ok\n");
        snprintf(text, sizeof text, "error %s\n", wrong);
        return answer(client, text);
    }
    if (strncmp(line, "locked ", 7) == 0) {
        int locked = what->answers == NULL ? 0 : is_answer_locked(what->answers, line + 7);
        if (locked >= 0) return answer(client, locked ? "yes\n" : "no\n");
        snprintf(text, sizeof text, "error %s\n", strerror(errno));
        return answer(client, text);
    }
    switch (start_job(client->fd, line, vmm)) {
        case 0: return answer(client, "error no such request\n");
        case 1: return -1;
    }
    snprintf(text, sizeof text, "error the VM cannot be worked on: %s\n", strerror(errno));
    answer(client, text);
    return -1;
}

int serve_client(struct client *client, const struct controlled *what) {
    ssize_t got = recv(client->fd, client->line + client->length, LINE_SIZE - client->length, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (got <= 0) return -1;
    client->length += (size_t)got;
    for (char *newline; (newline = memchr(client->line, '\n', client->length)) != NULL;) {
        *newline = '\0';
        if (obey(client, client->line, what) < 0) return -1;
        size_t used = (size_t)(newline - client->line) + 1;
        client->length -= used;
        memmove(client->line, newline + 1, client->length);
    }
    return client->length == LINE_SIZE ? -1 : 0;
}
