/* The workload's standing still. What begins it is a request; what ends it is a word as well, never a hang-up or a clock. */
#ifndef DORMOUSE_FREEZE_H
#define DORMOUSE_FREEZE_H
#include <stdbool.h>
#include <stdint.h>

#include "request.h"

/*
 * Stops every process of the workload within the request's deadline. What did not stop in time lets all run on; at "best effort" all
 * else stays stopped, and that one stops as soon as it is back from where it hangs. Repeat is harmless.
 */
void freeze_start(uint32_t id, const struct request *request);
/* The workload was told to stand still, and not yet to go on. */
bool freeze_holds(void);
/* All run on. Repeat is harmless, also when nothing was frozen. False with errno. */
bool freeze_end(void);

#endif
