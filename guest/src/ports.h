/* The virtio-serial ports, by the names that the host gave them. */
#ifndef DORMOUSE_PORTS_H
#define DORMOUSE_PORTS_H
#include <stdbool.h>

struct ports {
	int agent, log, journal;
};

/* Waits until they are there. Once open they stay open: closing one loses what the host has sent meanwhile. */
bool ports_open(struct ports *ports);

#endif
