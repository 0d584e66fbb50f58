#pragma once
/*
 * A directory of the VMM's own below the run directory, for VMMs that bind sockets by themselves. It is theirs to do with as they like:
 * nobody may follow a name in it that they could have made into a link.
 */
#include "plan.h"

/* May be there already, with what was laid into it. */
void make_own_dir(struct plan *plan, const char *name);
/* Listens there under NAME; the VMM connects, and what comes goes into the log. One stream at a time: another is refused meanwhile. */
void serve_log(struct plan *plan, const char *name, int log);
/* Only once the VMM is dead. */
void remove_own_dir(const char *name);
