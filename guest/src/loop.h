/* One thread, one epoll. Whoever waits for a descriptor, a moment or a child registers it here. */
#ifndef DORMOUSE_LOOP_H
#define DORMOUSE_LOOP_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/types.h>

struct watch {
	int fd;
	void (*ready)(struct watch *watch, uint32_t events);
	/* As set; 0 is not watched at all, so that a hang-up cannot spin. */
	uint32_t events;
};

struct timer {
	uint64_t at;
	void (*fire)(struct timer *timer);
	struct timer *next;
};

struct child {
	pid_t pid;
	void (*ended)(struct child *child, int status);
	struct child *next;
};

void watch_set(struct watch *watch, uint32_t events);
/* Sets it anew when it was set. */
void timer_set(struct timer *timer, uint64_t in_ms);
void timer_clear(struct timer *timer);
void child_expect(struct child *child);
void child_forget(struct child *child);

/* A signal to the agent itself; SIGCHLD is kept here. */
extern void (*on_signal)(int signal, pid_t from);

void loop_start(void);
/* In a forked child that goes on as the agent: signals are told to whoever registered, so register again. */
void loop_restart(void);
void loop_run(void) __attribute__((noreturn));

#endif
