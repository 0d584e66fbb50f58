/* The ways to the host: virtio-serial ports, by the names that the host gave them, or streams of a vsock. */
#ifndef DORMOUSE_PORTS_H
#define DORMOUSE_PORTS_H
#include <stdbool.h>

/* Waits until they are there. Once open they stay open: closing one loses what the host has sent meanwhile. */
bool ports_open(void);
/* Registers those who speak on them with the loop. */
void ports_serve(void);
/* A daemon has come. Streams of log and journal may be those of a VMM that is gone: opened anew while nothing could come between. */
void ports_renew(void);

#endif
