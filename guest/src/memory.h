/* Memory that the machine gives and takes while it runs. */
#ifndef DORMOUSE_MEMORY_H
#define DORMOUSE_MEMORY_H
#include "errand.h"
#include "request.h"

/*
 * Takes a stretch of memory out of use, so that the machine can have it back. All of it within the request's time, or none. In an
 * errand's child: the kernel tries for as long as it is not interrupted.
 */
void memory_offline(const struct errand *errand, const struct request *request);

#endif
