/* A process becomes someone else's program: user, groups, directory, environment, terminal, cgroup. */
#ifndef DORMOUSE_SPAWN_H
#define DORMOUSE_SPAWN_H
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct spawn {
	char **args;
	/* Two lists, the second wins. */
	char **env, **env_over;
	const char *cwd, *user;
	bool make_cwd;
	/* What becomes 0, 1 and 2. */
	int in, out, err;
	/* `in` is a terminal, to be the controlling one. */
	bool tty;
	/* Where the child is born. */
	int cgroup;
	/*
	 * The last thing before it runs: reads this to its end. What it reads is why it must not run after all. -1: nothing to
	 * wait for.
	 */
	int gate;
};

/* Written by the child when it could not become the program; nothing is written when it did. */
struct spawn_failure {
	/* errno of the execve and its command as text; or 0, a code, and what went wrong before it. */
	int error, code;
	char text[248];
};

/* Gives the child's pid, or -1 with errno; *status_fd then reads one spawn_failure, or the end of file. */
pid_t spawn_start(const struct spawn *spawn, int *status_fd);
/* The child's half: returns only when it failed. */
void spawn_become(const struct spawn *spawn, struct spawn_failure *failure);

#endif
