/*
 * Virtio devices and when they meet their drivers. A golden boot is taken before any disk or card was looked at, with the drivers
 * already in place; after "go" each device that is wanted is brought to its driver, and the empty slots are left alone.
 */
#ifndef DORMOUSE_DEVICES_H
#define DORMOUSE_DEVICES_H
#include <stdbool.h>
#include <stddef.h>

/* While held, a driver that is loaded takes no device by itself. */
bool devices_hold(bool hold);
/* Finds /dev/vdX of the disk with this serial; probes disks one by one until it has been seen. False with errno. */
bool devices_find_disk(const char *serial, char *path, size_t size);
bool devices_probe_network(void);

#endif
