/* Many requests share one connection. A stream is one of them, from REQUEST to its closing frame. */
#ifndef DORMOUSE_STREAM_H
#define DORMOUSE_STREAM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"
#include "loop.h"
#include "request.h"
#include "tlv.h"

struct stream;

struct stream_kind {
	/* Bytes from the daemon, within the window. NULL: this kind takes none. */
	void (*data)(struct stream *stream, const uint8_t *bytes, size_t count, bool eof);
	void (*control)(struct stream *stream, const struct request *control);
	/* There may be room to send: credit came, or the connection drained. */
	void (*pump)(struct stream *stream);
	/* The daemon gave the stream up (answer with a closing frame), or is gone (then no frame goes anywhere). */
	void (*abandon)(struct stream *stream, bool hung_up);
};

struct stream {
	uint32_t id;
	const struct stream_kind *kind;
	/* Bytes that the daemon still takes, for each channel. */
	uint64_t credit[4];
	/* Bytes that the daemon may still send. */
	uint64_t window;
	struct stream *next;
};

/* Registers a stream that a handler has made; it lives until stream_close. */
void stream_open(struct stream *stream, uint32_t id, const struct stream_kind *kind);
/* Takes it off the table; the memory is the owner's. */
void stream_close(struct stream *stream);

void stream_reply(uint32_t id, uint64_t status, const char *message);
void stream_credit(struct stream *stream, uint64_t bytes);

void streams_take(const struct frame *frame);
void streams_pump(void);
void streams_hang_up(void);

#endif
