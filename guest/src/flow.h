/* One direction of a stream's bytes: a descriptor that is read as credit allows, or one that is written as it takes. */
#ifndef DORMOUSE_FLOW_H
#define DORMOUSE_FLOW_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"
#include "proto.h"
#include "stream.h"

/* Out of the guest. */
struct outflow {
	struct watch watch;
	struct stream *stream;
	uint8_t channel;
	bool open;
	/* Whoever wrote is gone: what is there already is still sent, and the first "no more now" is the end. */
	bool draining;
	void (*closed)(struct outflow *flow);
};

void outflow_start(struct outflow *flow, int fd, struct stream *stream, uint8_t channel, void (*closed)(struct outflow *));
/* Sends what credit and connection allow, then waits for what is missing. May call `closed`. */
void outflow_pump(struct outflow *flow);
/* Closes the descriptor and tells no one. */
void outflow_stop(struct outflow *flow);

/* Into the guest: never more waits here than the window that was granted. */
struct inflow {
	struct watch watch;
	struct stream *stream;
	bool open, eof;
	/* At the end a terminal gets its end-of-file character instead of being closed. */
	bool tty;
	/* At the end a socket stops sending, and goes on with what comes. */
	bool socket;
	/* Taken from the daemon and not yet granted again. */
	size_t owed;
	size_t start, used;
	/* Nothing more is written, for whatever reason; not told when it is stopped from outside. May be NULL. */
	void (*closed)(struct inflow *flow);
	uint8_t bytes[WINDOW_GUEST];
};

void inflow_start(struct inflow *flow, int fd, struct stream *stream, bool tty);
void inflow_take(struct inflow *flow, const uint8_t *bytes, size_t count, bool eof);
void inflow_stop(struct inflow *flow);

#endif
