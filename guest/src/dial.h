/* Connections to what listens in this guest, each a stream of its own. */
#ifndef DORMOUSE_DIAL_H
#define DORMOUSE_DIAL_H
#include <stdint.h>

#include "request.h"

void dial_start(uint32_t id, const struct request *request);

#endif
