/* Frames on a byte stream: COBS between zero bytes, so that the next zero is always a fresh start. */
#ifndef DORMOUSE_FRAME_H
#define DORMOUSE_FRAME_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto.h"

struct frame {
	uint8_t type, flags;
	uint32_t stream;
	const uint8_t *payload;
	size_t length;
};

/* Writes a frame with its closing zero to `out`, which has room for FRAME_ENCODED_MAX + 1 bytes. Gives the bytes written. */
size_t frame_encode(uint8_t *out, const struct frame *frame);

/* Reads what stood between two zeros, in place. False when it is no whole frame: it is then to be dropped. */
bool frame_decode(uint8_t *raw, size_t size, struct frame *frame);

/* Cuts a byte stream at its zeros. */
struct splitter {
	size_t used;
	/* More came than any frame has: drop everything up to the next zero. */
	bool skipping;
	uint8_t raw[FRAME_ENCODED_MAX];
};

/* Feeds bytes; `take` is called for each whole frame, whose payload lives until it returns. */
void splitter_feed(struct splitter *splitter, const uint8_t *bytes, size_t count,
		   void (*take)(void *context, const struct frame *frame), void *context);

#endif
