#include "errand.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"
#include "connection.h"
#include "files.h"
#include "flow.h"
#include "io.h"
#include "memory.h"
#include "volumes.h"

/* type, flags, payload */
#define MESSAGE_HEAD 2

/* An errand that was given up clears away what it began, and is killed when it does not. */
#define CLEAR_AWAY_MS 1000

struct running {
	struct stream stream;
	struct child child;
	struct timer deadline;
	/* What the daemon has sent in all. */
	uint64_t total;
	struct watch answers;
	struct inflow in;
	bool open, abandoned, reset, ended;
	/* What closes the stream: REPLY where that is all, else END. */
	uint8_t closing;
};

static void release(struct running *e)
{
	timer_clear(&e->deadline);
	inflow_stop(&e->in);
	if (e->open) {
		watch_set(&e->answers, 0);
		close(e->answers.fd);
	}
	free(e);
}

/* The child is gone and has said all it had to say; without a closing frame from it, one is made here. */
static void close_stream(struct running *e, bool said)
{
	watch_set(&e->answers, 0);
	close(e->answers.fd);
	e->open = false;
	if (!e->abandoned) {
		if (!said) {
			uint8_t bytes[256];
			struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
			tlv_put_number(&fields, TAG_STATUS, e->reset ? STATUS_CANCELLED : STATUS_FAILED);
			tlv_put_text(&fields, TAG_MESSAGE, e->reset ? "Given up" : "The work on the guest's files broke off");
			connection_send_fields(e->closing, e->stream.id, &fields);
		}
		stream_close(&e->stream);
		inflow_stop(&e->in);
		e->abandoned = true;
	}
	if (e->ended)
		release(e);
}

/*
 * A child that ends without having read how much there was to read resets the socket (unix(7)): that is told once, ahead of what
 * the child had said, and is no news.
 */
static ssize_t receive(int fd, void *to, size_t size, int flags)
{
	ssize_t got;
	do
		got = recv(fd, to, size, flags | MSG_DONTWAIT);
	while (got < 0 && (errno == EINTR || errno == ECONNRESET));
	return got;
}

static void pump(struct stream *stream)
{
	static uint8_t message[MESSAGE_HEAD + FRAME_PAYLOAD_MAX];
	struct running *e = (struct running *)stream;
	uint64_t *credit = &e->stream.credit[CHANNEL_STDOUT];
	while (e->open) {
		ssize_t size = receive(e->answers.fd, NULL, 0, MSG_PEEK | MSG_TRUNC);
		if (size < 0 && errno == EAGAIN) {
			watch_set(&e->answers, EPOLLIN);
			return;
		}
		if (size <= MESSAGE_HEAD) {
			/* Ended, or a message that can only be empty: then type and flags are all there is. */
			if (size <= 0) {
				close_stream(e, false);
				return;
			}
		}
		size_t payload = (size_t)size - MESSAGE_HEAD;
		if (payload > *credit || !connection_takes_data()) {
			uint8_t type = 0;
			receive(e->answers.fd, &type, 1, MSG_PEEK);
			if (type == FRAME_DATA || type == FRAME_ENTRY) {
				/* Until credit comes, or the connection drains. */
				watch_set(&e->answers, 0);
				return;
			}
		}
		receive(e->answers.fd, message, sizeof message, 0);
		if (message[0] == FRAME_DATA || message[0] == FRAME_ENTRY)
			*credit -= payload;
		connection_send(message[0], message[1], e->stream.id, message + MESSAGE_HEAD, payload);
		if (message[0] == e->closing) {
			close_stream(e, true);
			return;
		}
	}
}

static void answers_ready(struct watch *watch, uint32_t events)
{
	(void)events;
	pump((struct stream *)((char *)watch - offsetof(struct running, answers)));
}

static void ended(struct child *child, int status)
{
	(void)status;
	struct running *e = (struct running *)((char *)child - offsetof(struct running, child));
	e->ended = true;
	/* Else what it said last is still on its way. */
	if (!e->open)
		release(e);
}

static void data(struct stream *stream, const uint8_t *bytes, size_t count, bool eof)
{
	struct running *e = (struct running *)stream;
	e->total += count;
	/* The end of the pipe alone would not tell a whole file from half of one. */
	if (eof)
		send(e->answers.fd, &e->total, sizeof e->total, MSG_NOSIGNAL | MSG_DONTWAIT);
	inflow_take(&e->in, bytes, count, eof);
}

static void kill_late(struct timer *timer)
{
	kill(((struct running *)((char *)timer - offsetof(struct running, deadline)))->child.pid, SIGKILL);
}

static void abandon(struct stream *stream, bool hung_up)
{
	struct running *e = (struct running *)stream;
	if (!e->ended) {
		e->deadline.fire = kill_late;
		timer_set(&e->deadline, CLEAR_AWAY_MS);
	}
	if (!hung_up) {
		e->reset = true;
		close_stream(e, false);
		return;
	}
	e->abandoned = true;
	inflow_stop(&e->in);
	if (e->open) {
		watch_set(&e->answers, 0);
		close(e->answers.fd);
		e->open = false;
	}
	if (e->ended)
		release(e);
}

static const struct stream_kind kind = { data, NULL, pump, abandon };

static bool is_about_disks(const struct request *r)
{
	return r->op == OP_MOUNT || r->op == OP_UNMOUNT || r->op == OP_GROW;
}

static void run(const struct errand *errand, const struct request *r)
{
	switch (r->op) {
	case OP_STAT: files_stat(errand, r); break;
	case OP_PUT: files_put(errand, r); break;
	case OP_GET: files_get(errand, r); break;
	case OP_MOUNT: volumes_attach(errand, r); break;
	case OP_UNMOUNT: volumes_detach(errand, r); break;
	case OP_GROW: volumes_grow(errand, r); break;
	case OP_OFFLINE: memory_offline(errand, r); break;
	}
}

void errand_start(uint32_t id, const struct request *r)
{
	int pair[2], bytes[2] = { -1, -1 };
	struct running *e = NULL;
	if (agent.phase != PHASE_RUNNING) {
		stream_reply(id, STATUS_WRONG_PHASE, "The workload is not running");
		return;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		goto failed;
	if ((r->op == OP_PUT && pipe2(bytes, O_CLOEXEC) < 0) || !(e = calloc(1, sizeof *e)))
		goto failed_open;
	pid_t pid = fork();
	if (pid < 0)
		goto failed_open;
	if (pid == 0) {
		/* Alone with its two descriptors: whoever waits for the other ends must see them close. */
		syscall(SYS_close_range, 0, 2, 0);
		dup2(pair[1], 0);
		dup2(bytes[0], 1);
		unsigned kept = bytes[0] >= 0 ? 2 : 1;
		if (is_about_disks(r)) {
			/* Where the workload's own /proc and /sys say nothing. */
			agent.proc = dup2(agent.proc, 1);
			agent.sys = dup2(agent.sys, 2);
			kept = 3;
		}
		syscall(SYS_close_range, kept, ~0u, 0);
		struct errand errand = { 0, 1 };
		run(&errand, r);
		_exit(0);
	}
	close(pair[1]);
	if (bytes[0] >= 0)
		close(bytes[0]);
	e->child = (struct child){ .pid = pid, .ended = ended };
	child_expect(&e->child);
	bool streams = r->op == OP_PUT || r->op == OP_GET;
	e->closing = streams ? FRAME_END : FRAME_REPLY;
	e->open = true;
	e->answers = (struct watch){ .fd = pair[0], .ready = answers_ready };
	stream_open(&e->stream, id, &kind);
	e->stream.credit[CHANNEL_STDOUT] = r->window;
	if (r->op == OP_PUT)
		inflow_start(&e->in, bytes[1], &e->stream, false);
	if (streams) {
		uint8_t room[64];
		struct tlv_writer fields = { room, 0, sizeof room, false };
		tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
		tlv_put_number(&fields, TAG_WINDOW, r->op == OP_PUT ? WINDOW_GUEST : 0);
		connection_send_fields(FRAME_REPLY, id, &fields);
	}
	watch_set(&e->answers, EPOLLIN);
	return;
failed_open:
	close(pair[0]);
	close(pair[1]);
	if (bytes[0] >= 0) {
		close(bytes[0]);
		close(bytes[1]);
	}
	free(e);
failed:
	stream_reply(id, STATUS_FAILED, strerror(errno));
}

bool errand_was_sent_all(const struct errand *errand, uint64_t count)
{
	uint64_t total;
	return recv(errand->answers, &total, sizeof total, 0) == sizeof total && total == count;
}

void errand_send(const struct errand *errand, uint8_t type, uint8_t flags, const void *payload, size_t length)
{
	uint8_t head[MESSAGE_HEAD] = { type, flags };
	struct iovec parts[2] = { { head, sizeof head }, { (void *)payload, length } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
	if (sendmsg(errand->answers, &message, MSG_NOSIGNAL) < 0)
		_exit(0);
}

void errand_send_fields(const struct errand *errand, uint8_t type, const struct tlv_writer *fields)
{
	errand_send(errand, type, 0, fields->bytes, fields->used);
}

static uint64_t status_of(int error)
{
	switch (error) {
	case 0: return STATUS_OK;
	case ENOENT: return STATUS_NOT_FOUND;
	case EACCES:
	case EPERM:
	case EROFS: return STATUS_DENIED;
	case EISDIR: return STATUS_IS_DIRECTORY;
	case ENOTDIR: return STATUS_NOT_DIRECTORY;
	case ENOSPC:
	case EDQUOT: return STATUS_NO_SPACE;
	case EBUSY: return STATUS_BUSY;
	default: return STATUS_FAILED;
	}
}

void errand_fail(const struct errand *errand, uint8_t type, int error, const char *path)
{
	uint8_t bytes[1024];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, status_of(error));
	tlv_put_number(&fields, TAG_ERRNO, (uint64_t)error);
	tlv_put_text(&fields, TAG_MESSAGE, strerror(error));
	if (path)
		tlv_put(&fields, TAG_PATH, path, strnlen(path, 512));
	errand_send_fields(errand, type, &fields);
}
