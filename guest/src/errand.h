/*
 * Work on the guest's own files. A path there may lead to a FUSE server that has hung, so the agent never walks one itself: a
 * forked child does (it runs nothing else), sends its answer in whole messages, and is killed when the daemon has enough.
 */
#ifndef DORMOUSE_ERRAND_H
#define DORMOUSE_ERRAND_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "request.h"
#include "tlv.h"

void errand_start(uint32_t id, const struct request *request);

/* The child's side: a message becomes one frame. */
struct errand {
	/* Messages to the daemon, and the bytes that come from it. */
	int answers, bytes;
};

/* After the last of the bytes: were they all? False when the daemon gave up, or is gone. */
bool errand_was_sent_all(const struct errand *errand, uint64_t count);
void errand_send(const struct errand *errand, uint8_t type, uint8_t flags, const void *payload, size_t length);
void errand_send_fields(const struct errand *errand, uint8_t type, const struct tlv_writer *fields);
/* The closing frame for an errno. */
void errand_fail(const struct errand *errand, uint8_t type, int error, const char *path);

#endif
