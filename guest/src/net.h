/* The network card and loopback, by netlink. */
#ifndef DORMOUSE_NET_H
#define DORMOUSE_NET_H
#include <stdbool.h>

#include "request.h"

bool net_loopback_up(void);
/* MAC, addresses, routes; what the card had before is taken off first. NULL, or a sentence. */
const char *net_configure(const struct network *network);
/* Takes the card off the network until it is configured anew. */
bool net_silence(void);
/* Its MAC as it is; false when there is no card. */
bool net_read_mac(uint8_t mac[6]);
/* The card as it was before it was configured at all, with this MAC. */
bool net_forget(const uint8_t mac[6]);
/* Tells the neighbours whose card now has these addresses, by ARP and neighbour advertisement. Without a card there is nothing to tell. */
bool net_announce(void);

#endif
