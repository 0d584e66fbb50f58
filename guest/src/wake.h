/* A guest that slept, or was copied, becomes right again before its workload runs. */
#ifndef DORMOUSE_WAKE_H
#define DORMOUSE_WAKE_H
#include <stdint.h>

#include "request.h"

void wake(uint32_t id, const struct request *request);

#endif
