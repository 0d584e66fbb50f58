/* The image's program: started, watched, stopped. */
#ifndef DORMOUSE_WORKLOAD_H
#define DORMOUSE_WORKLOAD_H
#include <stdbool.h>
#include <stdint.h>

#include "words.h"

/*
 * Starts what `agent.config` says, once the gate opens (see spawn.h); `started` is told once, with NULL when the program runs. With systemd this returns in a
 * child that is the agent from then on, and process 1 is the image's init.
 */
void workload_start(int gate, void (*started)(const struct ending *failure));
/* The image's stop signal, and when `grace_ms` have passed the end. A repeat can only make it sooner. */
void workload_stop(uint64_t grace_ms);
/* It has ended, or must be taken for ended: tells journal and daemon, settles the disks, powers off. */
void workload_over(const struct ending *ending) __attribute__((noreturn));

#endif
