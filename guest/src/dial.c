#include "dial.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "connection.h"
#include "flow.h"
#include "freeze.h"
#include "stream.h"

/* Who says nothing of it waits no longer: a backlog that is full answers no one. */
#define CONNECT_LIMIT_MS 10000

struct dial {
	struct stream stream;
	/* Until it is connected. */
	struct watch connecting;
	struct timer deadline;
	bool connected;
	struct outflow out;
	struct inflow in;
};

static struct dial *of_stream(struct stream *stream)
{
	return (struct dial *)stream;
}

static void release(struct dial *d)
{
	timer_clear(&d->deadline);
	if (d->connecting.fd >= 0) {
		watch_set(&d->connecting, 0);
		close(d->connecting.fd);
	}
	outflow_stop(&d->out);
	inflow_stop(&d->in);
	free(d);
}

/* It is not connected, and will not be. */
static void refuse(struct dial *d, uint64_t status, const char *why)
{
	stream_reply(d->stream.id, status, why);
	stream_close(&d->stream);
	release(d);
}

static void end(struct dial *d, uint64_t status)
{
	uint8_t bytes[64];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, status);
	connection_send_fields(FRAME_END, d->stream.id, &fields);
	stream_close(&d->stream);
	release(d);
}

/* Each direction ends by itself, as with any connection; with the second one it is over. */
static void end_when_done(struct dial *d)
{
	if (!d->out.open && !d->in.open)
		end(d, STATUS_OK);
}

static void out_closed(struct outflow *flow)
{
	end_when_done(of_stream(flow->stream));
}

static void in_closed(struct inflow *flow)
{
	end_when_done(of_stream(flow->stream));
}

static void connected(struct dial *d)
{
	int fd = d->connecting.fd, back = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (back < 0) {
		refuse(d, STATUS_FAILED, strerror(errno));
		return;
	}
	watch_set(&d->connecting, 0);
	d->connecting.fd = -1;
	timer_clear(&d->deadline);
	d->connected = true;
	uint8_t bytes[64];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
	tlv_put_number(&fields, TAG_WINDOW, WINDOW_GUEST);
	connection_send_fields(FRAME_REPLY, d->stream.id, &fields);
	inflow_start(&d->in, fd, &d->stream, false);
	d->in.socket = true;
	d->in.closed = in_closed;
	outflow_start(&d->out, back, &d->stream, CHANNEL_STDOUT, out_closed);
	outflow_pump(&d->out);
}

static void ready(struct watch *watch, uint32_t events)
{
	(void)events;
	struct dial *d = (struct dial *)((char *)watch - offsetof(struct dial, connecting));
	int error = 0;
	socklen_t size = sizeof error;
	getsockopt(watch->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (error)
		refuse(d, STATUS_FAILED, strerror(error));
	else
		connected(d);
}

static void give_up(struct timer *timer)
{
	refuse((struct dial *)((char *)timer - offsetof(struct dial, deadline)), STATUS_TIMED_OUT, "Nothing answers at this port");
}

static void data(struct stream *stream, const uint8_t *bytes, size_t count, bool eof)
{
	/* Before it is connected there is no window, and nothing to end. */
	if (of_stream(stream)->connected)
		inflow_take(&of_stream(stream)->in, bytes, count, eof);
}

static void pump(struct stream *stream)
{
	struct dial *d = of_stream(stream);
	if (d->out.open)
		outflow_pump(&d->out);
}

static void abandon(struct stream *stream, bool hung_up)
{
	struct dial *d = of_stream(stream);
	if (hung_up)
		release(d);
	else if (d->connected)
		end(d, STATUS_CANCELLED);
	else
		refuse(d, STATUS_CANCELLED, "It was given up");
}

static const struct stream_kind kind = { data, NULL, pump, abandon };

/* The address that was asked for, or the loopback's. */
static socklen_t target(const struct request *r, struct sockaddr_storage *to)
{
	in_port_t port = htons((uint16_t)r->port);
	memset(to, 0, sizeof *to);
	if (r->network.has6) {
		struct sockaddr_in6 *six = (struct sockaddr_in6 *)to;
		six->sin6_family = AF_INET6;
		six->sin6_port = port;
		memcpy(&six->sin6_addr, r->network.address6, sizeof six->sin6_addr);
		return sizeof *six;
	}
	struct sockaddr_in *four = (struct sockaddr_in *)to;
	four->sin_family = AF_INET;
	four->sin_port = port;
	if (r->network.has4)
		memcpy(&four->sin_addr, r->network.address4, sizeof four->sin_addr);
	else
		four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof *four;
}

void dial_start(uint32_t id, const struct request *r)
{
	if (agent.phase != PHASE_RUNNING) {
		stream_reply(id, STATUS_WRONG_PHASE, "The workload is not running");
		return;
	}
	/* The kernel would take the call for whoever cannot answer it now. */
	if (freeze_holds()) {
		stream_reply(id, STATUS_BUSY, "The workload is frozen");
		return;
	}
	struct sockaddr_storage to;
	socklen_t size = target(r, &to);
	struct dial *d = calloc(1, sizeof *d);
	int fd = d ? socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) : -1;
	if (fd < 0) {
		free(d);
		stream_reply(id, STATUS_FAILED, strerror(errno));
		return;
	}
	stream_open(&d->stream, id, &kind);
	d->stream.credit[CHANNEL_STDOUT] = r->window;
	d->connecting = (struct watch){ .fd = fd, .ready = ready };
	d->deadline.fire = give_up;
	if (connect(fd, (struct sockaddr *)&to, size) == 0) {
		connected(d);
		return;
	}
	if (errno != EINPROGRESS) {
		refuse(d, STATUS_FAILED, strerror(errno));
		return;
	}
	timer_set(&d->deadline, r->timeout_ms ? r->timeout_ms : CONNECT_LIMIT_MS);
	watch_set(&d->connecting, EPOLLOUT);
}
