#include "connection.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "frame.h"
#include "io.h"
#include "loop.h"
#include "ports.h"
#include "request.h"
#include "stream.h"
#include "vsock.h"

/* Bulk data stops at the first mark, reading requests at the second; the rest is for answers that are owed. */
#define DATA_MARK (128 << 10)
#define READ_MARK (512 << 10)
#define OUT_SIZE (3 << 20)

static struct watch port = { .fd = -1 }, listener = { .fd = -1 };
static struct splitter splitter;
static bool connected;
static uint8_t epoch[16];
static uint8_t out[OUT_SIZE];
static size_t out_start, out_end;

static size_t queued(void)
{
	return out_end - out_start;
}

bool connection_takes_data(void)
{
	return connected && queued() < DATA_MARK;
}

static void write_out(void)
{
	while (out_start < out_end) {
		ssize_t n = write(port.fd, out + out_start, queued());
		if (n <= 0)
			break;
		out_start += (size_t)n;
	}
	if (out_start == out_end)
		out_start = out_end = 0;
}

/*
 * The kernel hears of the host's side opening and closing by another queue than that of the bytes, and may be behind: the bytes of a
 * new daemon can be here before the news that the old one left. So a hang-up only counts when it lasts.
 */
#define HANG_UP_MS 1000

/* Ends the streams of a daemon that is gone. What was queued for it is of no use to the next. */
static void disconnect(void)
{
	connected = false;
	out_start = out_end = 0;
	streams_hang_up();
}

static void check_hang_up(struct timer *timer)
{
	(void)timer;
	struct pollfd state = { .fd = port.fd };
	if (!connected || (poll(&state, 1, 0) > 0 && state.revents & POLLHUP))
		disconnect();
}

static struct timer hang_up = { .fire = check_hang_up };

static bool reserve(size_t size)
{
	if (OUT_SIZE - out_end >= size)
		return true;
	memmove(out, out + out_start, queued());
	out_end -= out_start;
	out_start = 0;
	return OUT_SIZE - out_end >= size;
}

void connection_send(uint8_t type, uint8_t flags, uint32_t stream, const void *payload, size_t length)
{
	if (!connected)
		return;
	if (!reserve(FRAME_ENCODED_MAX + 1)) {
		/* Far beyond what all streams may be owed: this daemon does not read. It has to shake hands again. */
		say("the daemon does not read its answers: connection dropped");
		connected = false;
		out_start = out_end = 0;
		/* Not here: whoever sends may be in the middle of walking the streams. */
		timer_set(&hang_up, 0);
		return;
	}
	struct frame frame = { type, flags, stream, payload, length };
	out_end += frame_encode(out + out_end, &frame);
	write_out();
}

void connection_send_fields(uint8_t type, uint32_t stream, const struct tlv_writer *fields)
{
	if (!fields->full)
		connection_send(type, 0, stream, fields->bytes, fields->used);
}

static void welcome(const struct request *hello)
{
	timer_clear(&hang_up);
	disconnect();
	connected = true;
	memcpy(epoch, hello->epoch, sizeof epoch);
	/* Whatever half frame went out before ends here. */
	out[out_end++] = 0;
	bool spoken = hello->version_min <= PROTO_VERSION && hello->version_max >= PROTO_VERSION;
	uint8_t bytes[1024];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_VERSION, spoken ? PROTO_VERSION : 0);
	tlv_put(&fields, TAG_EPOCH, epoch, sizeof epoch);
	agent_describe(&fields);
	connection_send_fields(FRAME_WELCOME, 0, &fields);
	if (!spoken)
		connected = false;
}

static void take(void *context, const struct frame *frame)
{
	(void)context;
	if (frame->type == FRAME_HELLO) {
		struct request hello;
		if (!message_decode(&hello, frame->payload, frame->length) && request_has(&hello, TAG_EPOCH) &&
		    request_has(&hello, TAG_VERSION_MIN) && request_has(&hello, TAG_VERSION_MAX))
			welcome(&hello);
		request_free(&hello);
	} else if (connected) {
		streams_take(frame);
	}
}

static void let_go(void)
{
	watch_set(&port, 0);
	close(port.fd);
	port.fd = -1;
	timer_clear(&hang_up);
	disconnect();
	splitter.used = 0;
	splitter.skipping = false;
}

static void ready(struct watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	uint8_t chunk[32768];
	/* The port is watched edge-triggered, since without a daemon it hangs up for ever: so read until there is no more. */
	for (;;) {
		write_out();
		streams_pump();
		if (queued() > READ_MARK)
			return;
		ssize_t n = read(port.fd, chunk, sizeof chunk);
		if (n < 0 && (listener.fd < 0 || errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0 && listener.fd >= 0) {
			let_go();
			return;
		}
		if (n == 0) {
			/* The host's side is closed, it seems. */
			if (connected)
				timer_set(&hang_up, HANG_UP_MS);
			return;
		}
		splitter_feed(&splitter, chunk, (size_t)n, take, NULL);
	}
}

void connection_start(int fd)
{
	connected = false;
	out_start = out_end = 0;
	port = (struct watch){ .fd = fd, .ready = ready };
	watch_set(&port, EPOLLIN | EPOLLOUT | EPOLLET);
}

static void welcome_next(struct watch *w, uint32_t events)
{
	(void)events;
	for (int fd; (fd = vsock_accept(w->fd)) >= 0;) {
		if (port.fd >= 0)
			let_go();
		ports_renew();
		connection_start(fd);
	}
}

void connection_listen(int fd)
{
	listener = (struct watch){ .fd = fd, .ready = welcome_next };
	watch_set(&listener, EPOLLIN);
}

void connection_flush(uint64_t deadline_ms)
{
	uint64_t end = now_ms() + deadline_ms;
	for (;;) {
		write_out();
		uint64_t now = now_ms();
		if (queued() == 0 || now >= end)
			return;
		struct pollfd waiting = { .fd = port.fd, .events = POLLOUT };
		/* A port without a reader hangs up at once and never takes another byte. */
		if (poll(&waiting, 1, (int)(end - now)) <= 0 || waiting.revents & POLLHUP)
			return;
	}
}
