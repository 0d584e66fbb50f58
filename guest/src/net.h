/* The network card and loopback, by netlink. */
#ifndef DORMOUSE_NET_H
#define DORMOUSE_NET_H
#include <stdbool.h>

#include "request.h"

bool net_loopback_up(void);
/* MAC, addresses, routes; what the card had before is taken off first. NULL, or a sentence. */
const char *net_configure(const struct network *network);

#endif
