#include "stream.h"

#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "connection.h"

static struct stream *streams;
static size_t count;
static uint32_t last_id;

/* A request that comes in several frames. One at a time, as its frames follow each other. */
static uint8_t gathered[REQUEST_MAX];
static size_t gathered_length;
static uint32_t gathering;
/* It was refused already: the rest of its frames is passed over. */
static bool refused;

void stream_open(struct stream *s, uint32_t id, const struct stream_kind *kind)
{
	s->id = id;
	s->kind = kind;
	s->next = streams;
	streams = s;
	count++;
}

void stream_close(struct stream *s)
{
	for (struct stream **at = &streams; *at; at = &(*at)->next)
		if (*at == s) {
			*at = s->next;
			count--;
			return;
		}
}

void stream_reply(uint32_t id, uint64_t status, const char *message)
{
	uint8_t bytes[1024];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, status);
	if (message)
		tlv_put(&fields, TAG_MESSAGE, message, strnlen(message, 512));
	connection_send_fields(FRAME_REPLY, id, &fields);
}

void stream_credit(struct stream *s, uint64_t bytes)
{
	uint8_t number[4];
	for (int i = 0; i < 4; i++)
		number[i] = (uint8_t)(bytes >> 8 * i);
	s->window += bytes;
	connection_send(FRAME_CREDIT, 0, s->id, number, sizeof number);
}

static void request_whole(uint32_t id, const uint8_t *bytes, size_t length)
{
	struct request request;
	const char *wrong = request_decode(&request, bytes, length);
	if (wrong)
		stream_reply(id, STATUS_BAD_REQUEST, wrong);
	else if (count >= STREAMS_MAX)
		stream_reply(id, STATUS_BUSY, "Too many streams are open");
	else
		agent_take(id, &request);
	request_free(&request);
}

static void request_part(const struct frame *f)
{
	if (f->stream != gathering) {
		/* Ids only grow, so that a late frame of an old stream never meets a new one. */
		if (f->stream <= last_id) {
			stream_reply(f->stream, STATUS_BAD_REQUEST, "A stream's id must be greater than those before it");
			return;
		}
		last_id = gathering = f->stream;
		gathered_length = 0;
		refused = false;
	}
	bool more = f->flags & FLAG_MORE;
	if (!refused && f->length > REQUEST_MAX - gathered_length) {
		refused = true;
		stream_reply(f->stream, STATUS_BAD_REQUEST, "The request is too long");
	}
	if (refused) {
		if (!more)
			gathering = 0;
		return;
	}
	if (gathered_length == 0 && !more) {
		gathering = 0;
		request_whole(f->stream, f->payload, f->length);
		return;
	}
	memcpy(gathered + gathered_length, f->payload, f->length);
	gathered_length += f->length;
	if (!more) {
		gathering = 0;
		request_whole(f->stream, gathered, gathered_length);
	}
}

static void data(struct stream *s, const struct frame *f)
{
	if (!s->kind->data || (f->flags & FLAG_CHANNEL) != CHANNEL_STDIN)
		return;
	if (f->length > s->window) {
		/* The daemon broke the rule; the stream is not worth more than an end. */
		s->kind->abandon(s, false);
		return;
	}
	s->window -= f->length;
	s->kind->data(s, f->payload, f->length, f->flags & FLAG_EOF);
}

static void credit(struct stream *s, const struct frame *f)
{
	if (f->length != 4)
		return;
	uint64_t *credit = &s->credit[f->flags & FLAG_CHANNEL];
	*credit += f->payload[0] | (uint64_t)f->payload[1] << 8 | (uint64_t)f->payload[2] << 16 | (uint64_t)f->payload[3] << 24;
	if (*credit > (1ull << 40))
		*credit = 1ull << 40;
	if (s->kind->pump)
		s->kind->pump(s);
}

void streams_take(const struct frame *f)
{
	if (f->type == FRAME_REQUEST) {
		request_part(f);
		return;
	}
	struct stream *s = streams;
	while (s && s->id != f->stream)
		s = s->next;
	/* Of a stream that has just ended: the daemon had not heard of it yet. */
	if (!s)
		return;
	struct request control;
	switch (f->type) {
	case FRAME_DATA: data(s, f); break;
	case FRAME_CREDIT: credit(s, f); break;
	case FRAME_RESET: s->kind->abandon(s, false); break;
	case FRAME_CONTROL:
		if (s->kind->control && !message_decode(&control, f->payload, f->length))
			s->kind->control(s, &control);
		else if (!s->kind->control)
			break;
		request_free(&control);
		break;
	}
}

void streams_pump(void)
{
	for (struct stream *s = streams, *next; s; s = next) {
		next = s->next;
		if (s->kind->pump)
			s->kind->pump(s);
	}
}

void streams_hang_up(void)
{
	while (streams) {
		struct stream *s = streams;
		stream_close(s);
		s->kind->abandon(s, true);
	}
	last_id = 0;
	gathering = 0;
}
