#include "flow.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection.h"

/* Credit goes back in steps of this, and whenever nothing waits. */
#define CREDIT_STEP 16384

static void outflow_ready(struct watch *watch, uint32_t events)
{
	(void)events;
	/* The watch is the first member. */
	outflow_pump((struct outflow *)watch);
}

void outflow_start(struct outflow *f, int fd, struct stream *stream, uint8_t channel, void (*closed)(struct outflow *))
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	*f = (struct outflow){ .watch = { .fd = fd, .ready = outflow_ready }, .stream = stream, .channel = channel, .open = true, .closed = closed };
}

void outflow_stop(struct outflow *f)
{
	if (!f->open)
		return;
	f->open = false;
	watch_set(&f->watch, 0);
	close(f->watch.fd);
}

void outflow_pump(struct outflow *f)
{
	static uint8_t chunk[FRAME_PAYLOAD_MAX];
	uint64_t *credit = &f->stream->credit[f->channel];
	/* A few frames in a row, then the others have their turn. */
	for (int turn = 0; f->open && *credit > 0 && connection_takes_data() && (turn < 4 || f->draining); turn++) {
		ssize_t n = read(f->watch.fd, chunk, *credit < sizeof chunk ? (size_t)*credit : sizeof chunk);
		if (n > 0) {
			*credit -= (uint64_t)n;
			connection_send(FRAME_DATA, f->channel, f->stream->id, chunk, (size_t)n);
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && !f->draining)
			break;
		/* The end of a pipe, or of a terminal that the last process has closed (EIO). */
		outflow_stop(f);
		connection_send(FRAME_DATA, f->channel | FLAG_EOF, f->stream->id, NULL, 0);
		f->closed(f);
		return;
	}
	if (f->open)
		watch_set(&f->watch, *credit > 0 && connection_takes_data() ? EPOLLIN : 0);
}

static void inflow_ready(struct watch *watch, uint32_t events);

void inflow_start(struct inflow *f, int fd, struct stream *stream, bool tty)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	f->watch = (struct watch){ .fd = fd, .ready = inflow_ready };
	f->stream = stream;
	f->open = true;
	f->tty = tty;
	stream->window = WINDOW_GUEST;
}

void inflow_stop(struct inflow *f)
{
	if (!f->open)
		return;
	f->open = false;
	f->used = 0;
	watch_set(&f->watch, 0);
	close(f->watch.fd);
}

static void repay(struct inflow *f, size_t bytes)
{
	f->owed += bytes;
	if (f->owed > 0 && (f->owed >= CREDIT_STEP || f->used == 0) && !f->eof) {
		stream_credit(f->stream, f->owed);
		f->owed = 0;
	}
}

static void push(struct inflow *f)
{
	while (f->open && f->used > 0) {
		size_t run = sizeof f->bytes - f->start;
		ssize_t n = write(f->watch.fd, f->bytes + f->start, f->used < run ? f->used : run);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			watch_set(&f->watch, EPOLLOUT);
			return;
		}
		size_t done = n > 0 ? (size_t)n : f->used;
		/* The program has closed its end: the rest is taken and dropped, or the daemon would wait for ever. */
		if (n < 0)
			inflow_stop(f);
		f->start = (f->start + done) % sizeof f->bytes;
		f->used = n < 0 ? 0 : f->used - done;
		repay(f, done);
	}
	if (f->open) {
		watch_set(&f->watch, 0);
		if (f->eof && f->tty) {
			static const char end_of_file = 4;
			(void)!write(f->watch.fd, &end_of_file, 1);
		}
		if (f->eof && f->socket)
			shutdown(f->watch.fd, SHUT_WR);
		if (f->eof)
			inflow_stop(f);
	}
	/* It may be freed by this. */
	if (!f->open && f->closed)
		f->closed(f);
}

static void inflow_ready(struct watch *watch, uint32_t events)
{
	(void)events;
	push((struct inflow *)watch);
}

void inflow_take(struct inflow *f, const uint8_t *bytes, size_t count, bool eof)
{
	if (f->eof)
		return;
	f->eof = eof;
	if (!f->open) {
		repay(f, count);
		return;
	}
	/* It fits: the stream's window is never more than what is free here. */
	for (size_t i = 0; i < count;) {
		size_t at = (f->start + f->used) % sizeof f->bytes, run = sizeof f->bytes - at;
		size_t take = count - i < run ? count - i : run;
		memcpy(f->bytes + at, bytes + i, take);
		f->used += take;
		i += take;
	}
	push(f);
}
