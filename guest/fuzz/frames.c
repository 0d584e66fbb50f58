/* Whatever bytes the port gives: nothing is read or written out of bounds, and what is taken for a frame goes back to the same bytes. */
#include <stdlib.h>
#include <string.h>

#include "frame.h"

static void take(void *context, const struct frame *frame)
{
	static uint8_t wire[FRAME_ENCODED_MAX + 1];
	(void)context;
	struct frame again;
	size_t length = frame_encode(wire, frame);
	if (wire[length - 1] != 0 || memchr(wire, 0, length - 1) || !frame_decode(wire, length - 1, &again))
		abort();
	if (again.type != frame->type || again.flags != frame->flags || again.stream != frame->stream || again.length != frame->length ||
	    memcmp(again.payload, frame->payload, frame->length) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct splitter splitter;
	if (size < 1)
		return 0;
	memset(&splitter, 0, sizeof splitter);
	/* The first byte says in what pieces the rest comes. */
	size_t piece = (size_t)bytes[0] * 16 + 1;
	for (size_t at = 1; at < size; at += piece)
		splitter_feed(&splitter, bytes + at, piece < size - at ? piece : size - at, take, NULL);
	return 0;
}
