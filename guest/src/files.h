/* Looking at files, putting them in and getting them out. Runs in an errand's child: it may block, and it may be killed. */
#ifndef DORMOUSE_FILES_H
#define DORMOUSE_FILES_H
#include "errand.h"
#include "request.h"

void files_stat(const struct errand *errand, const struct request *request);
void files_put(const struct errand *errand, const struct request *request);
void files_get(const struct errand *errand, const struct request *request);

#endif
