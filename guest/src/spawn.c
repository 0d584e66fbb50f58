#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "cgroup.h"
#include "io.h"
#include "users.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static void fail(struct spawn_failure *f, const char *text, const char *detail)
{
	snprintf(f->text, sizeof f->text, "%.220s%s%.180s", text, detail ? ": " : "", detail ? detail : "");
}

static const char *lookup(char **env, const char *name)
{
	size_t n = strlen(name);
	for (; *env; env++)
		if (strncmp(*env, name, n) == 0 && (*env)[n] == '=')
			return *env + n + 1;
	return NULL;
}

static bool has_name(char **env, const char *word)
{
	size_t n = strcspn(word, "=");
	for (; *env; env++)
		if (strncmp(*env, word, n) == 0 && (*env)[n] == '=')
			return true;
	return false;
}

static size_t length(char **list)
{
	size_t n = 0;
	while (list && list[n])
		n++;
	return n;
}

static char **environment(const struct spawn *s, const char *home)
{
	static char *none[] = { NULL };
	char **over = s->env_over ? s->env_over : none;
	char **env = malloc((length(s->env) + length(over) + 4) * sizeof *env);
	char *home_word = malloc(strlen(home) + 6);
	if (!env || !home_word)
		return NULL;
	size_t n = 0;
	for (char **word = s->env; *word; word++)
		if (!has_name(over, *word))
			env[n++] = *word;
	for (char **word = over; *word; word++)
		env[n++] = *word;
	env[n] = NULL;
	if (!lookup(env, "PATH"))
		env[n++] = "PATH=" DEFAULT_PATH;
	env[n] = NULL;
	if (!lookup(env, "HOME")) {
		sprintf(home_word, "HOME=%s", home);
		env[n++] = home_word;
	}
	env[n] = NULL;
	if (s->tty && !lookup(env, "TERM"))
		env[n++] = "TERM=xterm";
	env[n] = NULL;
	return env;
}

/* As execvp, but by the new environment's PATH, and without its fall-back to a shell: what is no program is said to be none. */
static int run(char **args, char **env)
{
	const char *command = args[0], *path = lookup(env, "PATH");
	if (strchr(command, '/') || !*command) {
		execve(command, args, env);
		return errno;
	}
	int error = ENOENT;
	for (;;) {
		size_t n = strcspn(path, ":");
		char full[4096];
		if (n + strlen(command) + 3 <= sizeof full) {
			snprintf(full, sizeof full, "%.*s/%s", n ? (int)n : 1, n ? path : ".", command);
			execve(full, args, env);
			/* One that is there but may not be run is told, unless a later one runs. */
			if (errno != ENOENT && errno != ENOTDIR)
				error = errno;
		}
		if (!path[n])
			return error;
		path += n + 1;
	}
}

/* False when what the program needs did not come about; `f` then says why. */
static bool wait_at_gate(int gate, struct spawn_failure *f)
{
	size_t used = 0;
	ssize_t n;
	while (used < sizeof f->text - 1 && (n = read(gate, f->text + used, sizeof f->text - 1 - used)) != 0) {
		if (n > 0)
			used += (size_t)n;
		else if (errno != EINTR)
			break;
	}
	f->text[used] = 0;
	f->code = 125;
	return used == 0;
}

static bool set_stdio(const struct spawn *s)
{
	int from[3] = { s->in, s->out, s->err };
	/* First out of the way: one of them may itself be 0, 1 or 2. */
	for (int i = 0; i < 3; i++)
		if ((from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 10)) < 0)
			return false;
	for (int i = 0; i < 3; i++)
		if (dup2(from[i], i) < 0)
			return false;
	return true;
}

void spawn_become(const struct spawn *s, struct spawn_failure *f)
{
	f->error = 0;
	f->code = 126;
	fail(f, "the process could not be set up", NULL);
	for (int signal = 1; signal < 65; signal++)
		if (signal != SIGKILL && signal != SIGSTOP)
			sigaction(signal, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
	write_at(agent.proc, "self/oom_score_adj", "0");
	umask(022);
	if (setns(cgroup_namespace(), CLONE_NEWCGROUP) < 0)
		return fail(f, "its cgroup namespace could not be entered", strerror(errno));
	if (getpid() != 1)
		setsid();
	if (!set_stdio(s) || (s->tty && ioctl(0, TIOCSCTTY, 0) < 0))
		return fail(f, "its standard streams could not be set up", strerror(errno));

	struct identity *who = malloc(sizeof *who);
	const char *wrong = who ? identity_resolve(who, s->user ? s->user : "", "/etc/passwd", "/etc/group") : "Out of memory";
	if (wrong)
		return fail(f, wrong, s->user);
	/* So that /dev/stdout can be opened again by who is no longer root. */
	for (int fd = s->tty ? 0 : 1; fd < 3; fd++)
		(void)!fchown(fd, who->uid, s->tty ? 5 : who->gid);
	if (s->cwd && s->make_cwd && !make_path(s->cwd, 0755))
		return fail(f, "the working directory could not be made", s->cwd);
	if (s->cwd && chdir(s->cwd) < 0)
		return fail(f, "the working directory cannot be entered", s->cwd);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 1024, 524288 });
	if (setgroups(who->group_count, who->groups) < 0 || setresgid(who->gid, who->gid, who->gid) < 0 ||
	    setresuid(who->uid, who->uid, who->uid) < 0)
		return fail(f, "its user could not be set", strerror(errno));

	char **env = environment(s, who->home);
	if (!env)
		return;
	if (s->gate >= 0 && !wait_at_gate(s->gate, f))
		return;
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	f->error = run(s->args, env);
	fail(f, s->args[0], NULL);
}

pid_t spawn_start(const struct spawn *s, int *status_fd)
{
	int status[2];
	if (pipe2(status, O_CLOEXEC) < 0)
		return -1;
	pid_t pid = cgroup_fork(s->cgroup);
	if (pid == 0) {
		struct spawn_failure failure;
		spawn_become(s, &failure);
		write_all(status[1], &failure, sizeof failure);
		_exit(failure.error == ENOENT ? 127 : 126);
	}
	int error = errno;
	close(status[1]);
	if (pid < 0) {
		close(status[0]);
		errno = error;
		return -1;
	}
	fcntl(status[0], F_SETFL, O_NONBLOCK);
	*status_fd = status[0];
	return pid;
}
