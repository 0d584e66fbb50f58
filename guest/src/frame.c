#include "frame.h"

#include <string.h>

struct cobs {
	uint8_t *code, *out;
	uint8_t run;
};

static void cobs_put(struct cobs *c, const uint8_t *from, size_t count)
{
	while (count > 0) {
		size_t room = 254 - c->run, take = count < room ? count : room;
		const uint8_t *zero = memchr(from, 0, take);
		if (zero)
			take = (size_t)(zero - from);
		memcpy(c->out, from, take);
		c->out += take;
		c->run += (uint8_t)take;
		from += take;
		count -= take;
		if (zero) {
			from++;
			count--;
		}
		if (zero || c->run == 254) {
			*c->code = (uint8_t)(c->run + 1);
			c->code = c->out++;
			c->run = 0;
		}
	}
}

size_t frame_encode(uint8_t *out, const struct frame *frame)
{
	uint8_t header[FRAME_HEADER] = {
		frame->type, frame->flags, (uint8_t)frame->length, (uint8_t)(frame->length >> 8),
		(uint8_t)frame->stream, (uint8_t)(frame->stream >> 8), (uint8_t)(frame->stream >> 16),
		(uint8_t)(frame->stream >> 24),
	};
	struct cobs c = { .code = out, .out = out + 1 };
	cobs_put(&c, header, sizeof header);
	cobs_put(&c, frame->payload, frame->length);
	*c.code = (uint8_t)(c.run + 1);
	*c.out++ = 0;
	return (size_t)(c.out - out);
}

static bool cobs_decode(uint8_t *raw, size_t size, size_t *decoded)
{
	size_t in = 0, out = 0;
	while (in < size) {
		size_t run = (size_t)raw[in++] - 1;
		bool zero = run < 254;
		if (run > size - in)
			return false;
		memmove(raw + out, raw + in, run);
		in += run;
		out += run;
		if (zero && in < size)
			raw[out++] = 0;
	}
	*decoded = out;
	return true;
}

bool frame_decode(uint8_t *raw, size_t size, struct frame *frame)
{
	size_t length;
	if (!cobs_decode(raw, size, &length) || length < FRAME_HEADER)
		return false;
	frame->type = raw[0];
	frame->flags = raw[1];
	frame->length = (size_t)(raw[2] | raw[3] << 8);
	frame->stream = raw[4] | (uint32_t)raw[5] << 8 | (uint32_t)raw[6] << 16 | (uint32_t)raw[7] << 24;
	frame->payload = raw + FRAME_HEADER;
	return frame->length == length - FRAME_HEADER && frame->length <= FRAME_PAYLOAD_MAX;
}

void splitter_feed(struct splitter *s, const uint8_t *bytes, size_t count,
		   void (*take)(void *context, const struct frame *frame), void *context)
{
	while (count > 0) {
		const uint8_t *zero = memchr(bytes, 0, count);
		size_t run = zero ? (size_t)(zero - bytes) : count;
		if (run > sizeof s->raw - s->used)
			s->skipping = true;
		if (!s->skipping) {
			memcpy(s->raw + s->used, bytes, run);
			s->used += run;
		}
		bytes += run;
		count -= run;
		if (!zero)
			return;
		bytes++;
		count--;
		struct frame frame;
		size_t used = s->used;
		bool whole = !s->skipping && used > 0;
		s->used = 0;
		s->skipping = false;
		if (whole && frame_decode(s->raw, used, &frame))
			take(context, &frame);
	}
}
