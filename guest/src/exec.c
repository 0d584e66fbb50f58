#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"
#include "cgroup.h"
#include "connection.h"
#include "flow.h"
#include "freeze.h"
#include "io.h"
#include "spawn.h"

#define HANG_UP_GRACE_MS 5000

struct exec {
	struct stream stream;
	struct child child;
	struct watch status;
	struct timer deadline;
	struct outflow out, err;
	struct inflow in;
	uint32_t number;
	int terminal;
	char *command;
	/* The daemon is gone: nothing is sent any more, and only the process is waited for. */
	bool abandoned, reset;
	bool answered, timed_out, ended;
	int wait_status;
	uint64_t oom_kills;
	struct spawn_failure failure;
	size_t failure_length;
};

static uint32_t next_number = 1;

static void release(struct exec *e)
{
	timer_clear(&e->deadline);
	outflow_stop(&e->out);
	outflow_stop(&e->err);
	inflow_stop(&e->in);
	if (e->status.fd >= 0) {
		watch_set(&e->status, 0);
		close(e->status.fd);
	}
	if (e->terminal >= 0)
		close(e->terminal);
	cgroup_exec_remove(e->number);
	free(e->command);
	free(e);
}

/* Once the process has ended and all it wrote has been sent, its stream ends. */
static void finish_when_done(struct exec *e)
{
	if (!e->ended || e->status.fd >= 0)
		return;
	if (e->abandoned) {
		release(e);
		return;
	}
	if (e->out.open || e->err.open)
		return;
	struct ending ending;
	bool started = e->failure_length < sizeof e->failure;
	if (e->timed_out) {
		ending.code = 124;
		strcpy(ending.message, "timed out");
	} else if (started) {
		ending_of_status(&ending, e->wait_status, WIFSIGNALED(e->wait_status) && cgroup_oom_kills() > e->oom_kills);
	} else if (e->failure.error) {
		ending_of_exec(&ending, e->failure.error, e->failure.text);
	} else {
		ending.code = e->failure.code;
		strcpy(ending.message, e->failure.text);
	}
	uint8_t bytes[1024];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, e->reset ? STATUS_CANCELLED : STATUS_OK);
	tlv_put_number(&fields, TAG_EXIT_CODE, (uint64_t)ending.code);
	tlv_put_text(&fields, TAG_MESSAGE, ending.message);
	tlv_put_number(&fields, TAG_STARTED, started);
	connection_send_fields(FRAME_END, e->stream.id, &fields);
	stream_close(&e->stream);
	release(e);
}

static struct exec *of_stream(struct stream *stream)
{
	return (struct exec *)stream;
}

static void outflow_closed(struct outflow *flow)
{
	finish_when_done(of_stream(flow->stream));
}

static void ended(struct child *child, int status)
{
	struct exec *e = (struct exec *)((char *)child - offsetof(struct exec, child));
	e->ended = true;
	e->wait_status = status;
	timer_clear(&e->deadline);
	/* A child of its own that holds the pipes open does not hold the stream open. */
	e->out.draining = e->err.draining = true;
	if (e->abandoned || e->status.fd >= 0) {
		finish_when_done(e);
		return;
	}
	/* The last pump may close the stream and free it. */
	if (e->err.open) {
		bool last = !e->out.open;
		outflow_pump(&e->err);
		if (last)
			return;
	}
	if (e->out.open)
		outflow_pump(&e->out);
	else
		finish_when_done(e);
}

/* The child has become the program, or says why not. */
static void status_ready(struct watch *watch, uint32_t events)
{
	(void)events;
	struct exec *e = (struct exec *)((char *)watch - offsetof(struct exec, status));
	ssize_t n = read(watch->fd, (char *)&e->failure + e->failure_length, sizeof e->failure - e->failure_length);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0) {
		e->failure_length += (size_t)n;
		if (e->failure_length < sizeof e->failure)
			return;
	}
	watch_set(watch, 0);
	close(watch->fd);
	watch->fd = -1;
	e->failure.text[sizeof e->failure.text - 1] = 0;
	if (!e->abandoned) {
		uint8_t bytes[64];
		struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
		tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
		tlv_put_number(&fields, TAG_WINDOW, WINDOW_GUEST);
		connection_send_fields(FRAME_REPLY, e->stream.id, &fields);
		e->answered = true;
	}
	if (e->ended) {
		struct child *child = &e->child;
		ended(child, e->wait_status);
		return;
	}
	if (!e->abandoned) {
		if (e->err.open)
			outflow_pump(&e->err);
		outflow_pump(&e->out);
	}
}

static void data(struct stream *stream, const uint8_t *bytes, size_t count, bool eof)
{
	inflow_take(&of_stream(stream)->in, bytes, count, eof);
}

static void control(struct stream *stream, const struct request *c)
{
	struct exec *e = of_stream(stream);
	if (c->rows && c->cols && e->terminal >= 0) {
		struct winsize size = { .ws_row = (unsigned short)c->rows, .ws_col = (unsigned short)c->cols };
		ioctl(e->terminal, TIOCSWINSZ, &size);
	}
	/* The group of the session that the exec began: the program and what it runs in the foreground. */
	if (c->signal && !e->ended)
		kill(-e->child.pid, (int)c->signal);
}

static void pump(struct stream *stream)
{
	struct exec *e = of_stream(stream);
	if (!e->answered)
		return;
	if (e->err.open) {
		bool last = e->ended && !e->out.open;
		outflow_pump(&e->err);
		if (last)
			return;
	}
	if (e->out.open)
		outflow_pump(&e->out);
}

static void kill_all(struct timer *timer)
{
	struct exec *e = (struct exec *)((char *)timer - offsetof(struct exec, deadline));
	e->timed_out = true;
	cgroup_exec_kill(e->number);
}

static void abandon(struct stream *stream, bool hung_up)
{
	struct exec *e = of_stream(stream);
	if (!hung_up) {
		/* The daemon wants it gone: END follows when it is. Nothing of its output is wanted any more. */
		e->reset = true;
		outflow_stop(&e->out);
		outflow_stop(&e->err);
		inflow_stop(&e->in);
		cgroup_exec_kill(e->number);
		finish_when_done(e);
		return;
	}
	/* As when a terminal's line drops: SIGHUP, and what is still there after a while is killed. */
	e->abandoned = true;
	outflow_stop(&e->out);
	outflow_stop(&e->err);
	inflow_stop(&e->in);
	if (e->ended) {
		finish_when_done(e);
		return;
	}
	kill(-e->child.pid, SIGHUP);
	kill(-e->child.pid, SIGCONT);
	timer_set(&e->deadline, HANG_UP_GRACE_MS);
}

static const struct stream_kind kind = { data, control, pump, abandon };

/* Descriptors of the child in 0..2, of the agent in 3..5; -1 where there is none. */
static bool open_streams(struct exec *e, bool tty, const struct request *r, int fds[6])
{
	for (int i = 0; i < 6; i++)
		fds[i] = -1;
	if (tty) {
		int master = openat(agent.pts, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), unlocked = 0;
		if (master < 0)
			return false;
		fds[4] = master;
		ioctl(master, TIOCSPTLCK, &unlocked);
		fds[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
		struct winsize size = { .ws_row = r->rows ? (unsigned short)r->rows : 24, .ws_col = r->cols ? (unsigned short)r->cols : 80 };
		ioctl(master, TIOCSWINSZ, &size);
		fds[3] = fcntl(master, F_DUPFD_CLOEXEC, 0);
		e->terminal = fcntl(master, F_DUPFD_CLOEXEC, 0);
		return fds[0] >= 0 && fds[3] >= 0 && e->terminal >= 0;
	}
	int in[2], out[2], err[2];
	if (pipe2(in, O_CLOEXEC) < 0)
		return false;
	fds[0] = in[0];
	fds[3] = in[1];
	if (pipe2(out, O_CLOEXEC) < 0)
		return false;
	fds[1] = out[1];
	fds[4] = out[0];
	if (pipe2(err, O_CLOEXEC) < 0)
		return false;
	fds[2] = err[1];
	fds[5] = err[0];
	return true;
}

void exec_start(uint32_t id, struct request *r)
{
	if (agent.phase != PHASE_RUNNING) {
		stream_reply(id, STATUS_WRONG_PHASE, "The workload is not running");
		return;
	}
	if (freeze_holds()) {
		stream_reply(id, STATUS_BUSY, "The workload is frozen");
		return;
	}
	if (!r->args[0]) {
		stream_reply(id, STATUS_BAD_REQUEST, "There is no command");
		return;
	}
	struct exec *e = calloc(1, sizeof *e);
	int fds[6], group = -1;
	if (!e || !(e->command = strdup(r->args[0]))) {
		free(e);
		stream_reply(id, STATUS_FAILED, "Out of memory");
		return;
	}
	e->terminal = e->status.fd = -1;
	e->number = next_number++;
	e->deadline.fire = kill_all;
	bool ready = open_streams(e, r->tty, r, fds) && (group = cgroup_exec(e->number)) >= 0;
	struct spawn spawn = {
		.args = r->args,
		.env = agent.config.env,
		.env_over = r->env,
		.cwd = r->cwd ? r->cwd : agent.config.cwd,
		.user = r->user ? r->user : agent.config.user,
		.in = fds[0],
		.out = r->tty ? fds[0] : fds[1],
		.err = r->tty ? fds[0] : fds[2],
		.tty = r->tty,
		.cgroup = group,
		.gate = -1,
	};
	int status = -1;
	pid_t pid = ready ? spawn_start(&spawn, &status) : -1;
	int error = errno;
	for (int i = 0; i < 3; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (group >= 0)
		close(group);
	if (pid < 0) {
		for (int i = 3; i < 6; i++)
			if (fds[i] >= 0)
				close(fds[i]);
		release(e);
		stream_reply(id, STATUS_FAILED, strerror(error));
		return;
	}
	e->oom_kills = cgroup_oom_kills();
	e->child = (struct child){ .pid = pid, .ended = ended };
	child_expect(&e->child);
	stream_open(&e->stream, id, &kind);
	e->stream.credit[CHANNEL_STDOUT] = e->stream.credit[CHANNEL_STDERR] = r->window;
	inflow_start(&e->in, fds[3], &e->stream, r->tty);
	outflow_start(&e->out, fds[4], &e->stream, CHANNEL_STDOUT, outflow_closed);
	if (!r->tty)
		outflow_start(&e->err, fds[5], &e->stream, CHANNEL_STDERR, outflow_closed);
	if (r->timeout_ms)
		timer_set(&e->deadline, r->timeout_ms);
	e->status = (struct watch){ .fd = status, .ready = status_ready };
	watch_set(&e->status, EPOLLIN);
}
