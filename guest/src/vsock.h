/*
 * A way to the host for VMMs that have no named serial ports: streams of a vsock. The agent listens; log and journal are opened from
 * here, and are gone with the VMM: a guest that is woken opens them anew.
 */
#ifndef DORMOUSE_VSOCK_H
#define DORMOUSE_VSOCK_H
#include <stdbool.h>

/* Below 1024: in a guest only root can take them. */
enum { VSOCK_AGENT_PORT = 1000, VSOCK_LOG_PORT = 1001, VSOCK_JOURNAL_PORT = 1002 };

/* Has the machine such a device? Whether its driver is loaded is no matter. */
bool vsock_is_there(void);
int vsock_listen(unsigned port);
/* The next of the host's connections, or -1 when there is none. */
int vsock_accept(int listener);
/* Does not wait for the host. -1 when there is no way at all. */
int vsock_connect(unsigned port);

#endif
