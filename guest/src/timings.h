/* What took how long between "go" and the workload, told in the answer to "go". */
#ifndef DORMOUSE_TIMINGS_H
#define DORMOUSE_TIMINGS_H
#include "tlv.h"

void timings_start(void);
/* What was done since the last call, or the start. */
void timings_took(const char *what);
void timings_put(struct tlv_writer *fields);

#endif
