/*
 * TCP connections that a guest took along into another place or time, where nobody knows them: their other ends are gone, or belong
 * to the guest that it was copied from. Left alone they hang for minutes; closed, the workload sees an error at once.
 */
#ifndef DORMOUSE_TCP_H
#define DORMOUSE_TCP_H
#include <stdbool.h>
#include <stdint.h>

/*
 * Closes those that lead out of the machine, in the agent's own network namespace. Listeners stay, and what leads from this machine
 * to itself; by an address other than loopback's only while the addresses stay. False with errno.
 */
bool tcp_close_inherited(bool addresses_change, uint64_t *closed);

/* Does a connection between these two addresses (4 or 16 bytes) lead out? */
bool tcp_leads_out(bool is_ipv6, const uint8_t *from, const uint8_t *to, bool addresses_change);

#endif
