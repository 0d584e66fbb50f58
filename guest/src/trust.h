/* The authority by which a proxy on the host speaks for others: the image's programs are to trust it. */
#ifndef DORMOUSE_TRUST_H
#define DORMOUSE_TRUST_H

#include "request.h"

/*
 * Inside the new root, before anything of the image runs. Repeat is harmless: a start after a stop finds it there. NULL, or a sentence when
 * the authority could not be kept; a bundle that is none is passed over, and said so in the kernel's log.
 */
const char *trust_authority(const struct request *config);

#endif
