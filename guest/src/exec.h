/* Programs that the daemon starts beside the workload, each with a stream of its own. */
#ifndef DORMOUSE_EXEC_H
#define DORMOUSE_EXEC_H
#include <stdint.h>

#include "request.h"

void exec_start(uint32_t id, struct request *request);

#endif
