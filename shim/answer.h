#pragma once
#include <stddef.h>

/*
 * For a VMM that opens its files itself, by a path alone: what it opens under certain names is answered by the shim, with descriptors of
 * files that it needs no right to, and no way to. `/dev/net/tun`, in a network namespace with nothing in it, is the TAP that is its VM's.
 */

/*
 * A name, opened as `/proc/dormouse/NAME`, where no file can be. Its file is held by a descriptor that no one reads or writes by: each opening
 * is one of its own, whose locks end when the VMM closes it, whatever the shim has.
 */
enum { MAX_ANSWERED = 16, MAX_NAME = 32 };
struct answered {
    char name[MAX_NAME]; /* empty: free */
    int fd;
    int is_writable;
};
struct answers {
    int tap_fd; /* -1: /dev/net/tun is opened as by anyone */
    struct answered files[MAX_ANSWERED];
};

/*
 * NAME=ro:FILE, NAME=rw:FILE or NAME=blank: (an empty file of its own): what the VMM finds there from its next opening on, instead of what
 * was there. A file that is `ro` is only read, however it is opened. NULL, or in words why not; then all is as it was. Repeat is harmless.
 */
const char *set_answer(struct answers *answers, char *what);
/* NAME BYTES: the file that is there to write becomes so large. NULL, or in words why not: it never becomes smaller. Repeat is harmless. */
const char *extend_answer(const struct answers *answers, char *words);
/* 1: someone has a lock (fcntl(2)) on what is there, for reading or for writing, as a VMM that still has it open may; 0: no one; -1 with errno. */
int is_answer_locked(const struct answers *answers, const char *name);
/* A name that is not there any more, to whoever opens it from now on. What is open stays so. Repeat is harmless. */
void take_answer(struct answers *answers, const char *name);

/* In the child, last of all before its program: hands the descriptor by which it is answered over `to`. -1 with errno when it cannot be. */
int ask_for_answers(int to);
/* The other end of that; -1 when nothing came. */
int take_asker(int from);
/* Answers one question. -1: no one is left to ask. */
int answer_one(int asker, const struct answers *answers);
