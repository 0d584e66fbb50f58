#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"
#include "cgroup.h"
#include "connection.h"
#include "freeze.h"
#include "io.h"
#include "journal.h"
#include "log.h"
#include "loop.h"
#include "mount-calls.h"
#include "power.h"
#include "root.h"
#include "spawn.h"

/* How long the last words may take on their way to a host that does not read them. */
#define LAST_WORDS_MS 2000
#define SIGRTMIN_OF_IMAGE 34

static struct child child;
static struct watch status = { .fd = -1 };
static struct timer grace;
static struct spawn_failure failure;
static size_t failure_length;
static void (*tell)(const struct ending *failure);
static int wait_status;
static bool ended, running, stopping;

void workload_over(const struct ending *ending)
{
	agent.phase = PHASE_EXITED;
	agent.ending = *ending;
	/* What it left behind goes with it, and must be gone before the disks are settled. */
	if (getpid() == 1) {
		cgroup_kill();
		for (uint64_t end = now_ms() + LAST_WORDS_MS; cgroup_is_populated() && now_ms() < end;) {
			struct pollfd waiting = { .fd = cgroup_events(), .events = POLLPRI };
			poll(&waiting, 1, 50);
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		}
	}
	log_flush(LAST_WORDS_MS);
	journal_exited(ending);
	uint8_t bytes[1024];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_EVENT, EVENT_EXITED);
	tlv_put_number(&fields, TAG_EXIT_CODE, (uint64_t)ending->code);
	tlv_put_text(&fields, TAG_MESSAGE, ending->message);
	connection_send_fields(FRAME_EVENT, 0, &fields);
	connection_flush(LAST_WORDS_MS);
	/* An init that is process 1 powers off itself, in its own time; unless it had its time. */
	if (getpid() != 1 && !stopping)
		_exit(0);
	root_seal();
	power_off();
}

static void over_when_known(void)
{
	struct ending ending;
	if (!ended || status.fd >= 0)
		return;
	if (running) {
		ending_of_status(&ending, wait_status, cgroup_oom_kills() > 0);
	} else if (failure.error) {
		ending_of_exec(&ending, failure.error, failure.text);
		tell(&ending);
	} else {
		ending.code = failure.code;
		strcpy(ending.message, failure.text);
		tell(&ending);
	}
	workload_over(&ending);
}

static void child_ended(struct child *c, int how)
{
	(void)c;
	ended = true;
	wait_status = how;
	over_when_known();
}

static void status_ready(struct watch *watch, uint32_t events)
{
	(void)events;
	ssize_t n = read(watch->fd, (char *)&failure + failure_length, sizeof failure - failure_length);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0 && (failure_length += (size_t)n) < sizeof failure)
		return;
	watch_set(watch, 0);
	close(watch->fd);
	watch->fd = -1;
	failure.text[sizeof failure.text - 1] = 0;
	running = failure_length < sizeof failure;
	if (running) {
		agent.phase = PHASE_RUNNING;
		journal_started();
		tell(NULL);
	} else if (child.pid == 1) {
		/* Process 1 waits for its end and can only get it with the machine's. */
		ended = stopping = true;
	}
	over_when_known();
}

static void follow(int status_fd)
{
	status = (struct watch){ .fd = status_fd, .ready = status_ready };
	watch_set(&status, EPOLLIN);
}

static void start_program(const struct spawn *base)
{
	struct spawn spawn = *base;
	int output[2], status_fd;
	if (pipe2(output, O_CLOEXEC) < 0)
		return;
	spawn.out = spawn.err = output[1];
	spawn.cgroup = cgroup_main();
	pid_t pid = spawn_start(&spawn, &status_fd);
	close(output[1]);
	close(spawn.cgroup);
	if (pid < 0) {
		failure.code = 125;
		snprintf(failure.text, sizeof failure.text, "the process could not be made: %s", strerror(errno));
		close(output[0]);
		ended = true;
		over_when_known();
		return;
	}
	log_follow(output[0]);
	child = (struct child){ .pid = pid, .ended = child_ended };
	child_expect(&child);
	follow(status_fd);
}

/* An init that goes down ends everyone, us too: then the machine is about to power off. */
static void told_to_end(int signal, pid_t from)
{
	(void)from;
	if (signal != SIGTERM)
		return;
	struct ending ending = { .code = 0, .message = "its init shut the machine down" };
	stopping = false;
	workload_over(&ending);
}

/* A terminal in place of /dev/console, so that what the init prints goes where a program's output goes. */
static int open_console(int *terminal)
{
	int master = openat(agent.pts, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), unlocked = 0;
	ioctl(master, TIOCSPTLCK, &unlocked);
	*terminal = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	char path[64];
	unsigned number = 0;
	ioctl(master, TIOCGPTN, &number);
	snprintf(path, sizeof path, "%u", number);
	int bind = mount_handle(agent.pts, path, true);
	if (bind < 0 || !mount_attach(bind, "/dev/console"))
		say("/dev/console: %s", strerror(errno));
	return master;
}

static void start_init(const struct spawn *base)
{
	struct spawn spawn = *base;
	int pipe_ends[2], terminal;
	int console = open_console(&terminal);
	if (pipe2(pipe_ends, O_CLOEXEC) < 0)
		return;
	spawn.out = spawn.err = terminal;
	pid_t pid = fork();
	if (pid != 0) {
		/* Process 1 becomes the image's init; the agent lives on in the child, at the top of the cgroups. */
		struct spawn_failure said = { .code = 125 };
		if (cgroup_enter_workload())
			spawn_become(&spawn, &said);
		else
			snprintf(said.text, sizeof said.text, "its cgroup could not be entered: %s", strerror(errno));
		write_all(pipe_ends[1], &said, sizeof said);
		for (;;)
			pause();
	}
	setsid();
	loop_restart();
	on_signal = told_to_end;
	close(pipe_ends[1]);
	close(terminal);
	log_follow(console);
	child.pid = 1;
	fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK);
	follow(pipe_ends[0]);
}

void workload_start(int gate, void (*started)(const struct ending *failure))
{
	const struct request *c = &agent.config;
	int null = openat(agent.dev, "null", O_RDWR | O_CLOEXEC);
	struct spawn spawn = {
		.args = c->args,
		.env = c->env,
		.cwd = c->cwd,
		.user = c->user,
		.make_cwd = true,
		.in = null,
		.gate = gate,
	};
	tell = started;
	if (c->workload_kind == WORKLOAD_SYSTEMD)
		start_init(&spawn);
	else
		start_program(&spawn);
	close(null);
}

static void grace_is_over(struct timer *timer)
{
	(void)timer;
	struct ending ending = { .code = 137, .message = "killed by signal 9 (SIGKILL) after its time to stop had passed" };
	if (child.pid == 1) {
		stopping = true;
		workload_over(&ending);
	}
	/* Its end is then told as any other. */
	cgroup_kill();
}

void workload_stop(uint64_t grace_ms)
{
	grace.fire = grace_is_over;
	/* A frozen program cannot end. */
	freeze_end();
	if (grace.at == 0) {
		int signal = (int)agent.config.signal;
		/* What systemd takes for "power off": SIGTERM would only make it load itself anew, and a halted machine never ends. */
		if (child.pid == 1 && (signal == SIGTERM || signal == SIGRTMIN_OF_IMAGE + 3))
			signal = SIGRTMIN_OF_IMAGE + 4;
		/* To the main process alone, as Docker does: what it started is its own to end. */
		kill(child.pid, signal);
	} else if (grace.at <= now_ms() + grace_ms) {
		return;
	}
	timer_set(&grace, grace_ms);
}
