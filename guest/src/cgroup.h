/*
 * Cgroups. The agent stays at the top; the workload has a tree of its own that can be frozen and killed as a whole:
 *
 *   /                 the agent, kernel threads
 *   /workload         root of the workload's cgroup namespace
 *   /workload/main    the image's program and what it started (with systemd: systemd's own tree instead)
 *   /workload/exec/N  one for each exec
 */
#ifndef DORMOUSE_CGROUP_H
#define DORMOUSE_CGROUP_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Before the park; /sys must be mounted. */
bool cgroup_prepare(void);
/* The workload's groups made anew, as if nothing had ever run in them; false when something still does. */
bool cgroup_renew(void);
/* The namespace in which /workload is the root of all that is seen. */
int cgroup_namespace(void);
/* As fork, with the child born into the cgroup that the descriptor names. */
pid_t cgroup_fork(int cgroup);
/* A descriptor of /workload, /workload/main, or an exec's own group, to clone a child into. -1 with errno. */
int cgroup_workload(void);
int cgroup_main(void);
int cgroup_exec(uint32_t number);
void cgroup_exec_kill(uint32_t number);
/* Removes it when nothing is left in it; else it goes when a later one is removed. */
void cgroup_exec_remove(uint32_t number);
/* Moves the caller; for PID 1 that becomes an init. */
bool cgroup_enter_workload(void);

bool cgroup_freeze(bool freeze);
bool cgroup_is_frozen(void);
/* A descriptor that gets EPOLLPRI when the workload's cgroup.events change. */
int cgroup_events(void);
bool cgroup_is_populated(void);
void cgroup_kill(void);
/* How many of the workload's processes the kernel has killed for want of memory. */
uint64_t cgroup_oom_kills(void);

#endif
