/*
 * Disks. Their drivers are bound before the park, to slots that are empty then; each is told its disk's size as soon as the machine
 * wakes (packages/daemon/src/hypervisors/qemu/parked-machine.ts), so that nothing has to be probed behind "go".
 */
#ifndef DORMOUSE_DEVICES_H
#define DORMOUSE_DEVICES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Finds /dev/vdX of the disk with this serial. False with errno. */
bool devices_find_disk(const char *serial, char *path, size_t size);
/* The same of a disk that may still be on its way: waits for a while where there is none. */
bool devices_await_disk(const char *serial, char *path, size_t size);
/* Waits until the slot of this disk is empty. False with errno: it is not, or there is none. */
bool devices_await_vacant(const char *serial);
/* A slot is writable when its driver is bound; only the host knows whether its disk is. Now the guest's kernel does too. */
void devices_allow_writing(const char *path, bool allow);
/* Waits until the disk is at least so large. False with errno. */
bool devices_await_size(const char *path, uint64_t bytes, unsigned limit_ms);

#endif
