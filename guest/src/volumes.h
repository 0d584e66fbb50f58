/* Volumes in the guest: mounted where they are wanted, at "go" or later, let go of when nothing uses them, grown with their disks. */
#ifndef DORMOUSE_VOLUMES_H
#define DORMOUSE_VOLUMES_H
#include "errand.h"
#include "request.h"

/* Inside the image's root. A file system that is smaller than its disk grows to it. NULL, or a sentence. */
const char *volumes_mount(const struct volume *volume);
/* What is mounted for writing is settled, whatever still holds files open on it. Once nothing runs any more. */
void volumes_seal(void);

/* Errands: paths may lead anywhere. Each is harmless when it is done already. */
void volumes_attach(const struct errand *errand, const struct request *request);
/* Answers BUSY, and who uses it, while something does; then it stays as it is. */
void volumes_detach(const struct errand *errand, const struct request *request);
void volumes_grow(const struct errand *errand, const struct request *request);

#endif
