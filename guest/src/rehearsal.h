/* A whole life lived by a child, so that its code has run once before the one that counts. */
#ifndef DORMOUSE_REHEARSAL_H
#define DORMOUSE_REHEARSAL_H
#include <stdint.h>

/*
 * Answers, then is away until the child has ended; a handshake that comes meanwhile is the child's. Whoever shakes hands after its end
 * finds this machine parked as it was before, or powered off: one that was not left as it was is of no use.
 */
void rehearse(uint32_t id);
/* Answers once the disks that an instance will have are gone: whoever has some then, has them from the host that put them there. */
void vacate(uint32_t id);

#endif
