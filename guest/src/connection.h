/*
 * The agent's port: bytes in, frames out, and the handshake between. A daemon may vanish in the middle of a frame and the
 * next one come by the same port; each handshake ends whatever the one before had open.
 */
#ifndef DORMOUSE_CONNECTION_H
#define DORMOUSE_CONNECTION_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tlv.h"

void connection_start(int port);
/* The same over streams, one at a time: one that comes ends the one before. */
void connection_listen(int listener);

/* Queues a frame. Without a daemon it is dropped. */
void connection_send(uint8_t type, uint8_t flags, uint32_t stream, const void *payload, size_t length);
/* The same for fields; a message that did not fit its buffer is a bug and dropped. */
void connection_send_fields(uint8_t type, uint32_t stream, const struct tlv_writer *fields);
/* May bulk data be queued? What is queued already goes out first, so this also bounds how long an answer waits. */
bool connection_takes_data(void);
/* Tries to write what is queued until the deadline. For the end of the machine only: it does nothing else meanwhile. */
void connection_flush(uint64_t deadline_ms);

#endif
