#ifndef DORMOUSE_FREEZE_H
#define DORMOUSE_FREEZE_H
#include <stdint.h>

#include "request.h"

/* Stops every process of the workload, within the request's deadline or not at all. Repeat is harmless. */
void freeze_start(uint32_t id, const struct request *request);

#endif
