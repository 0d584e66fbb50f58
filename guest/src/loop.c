#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"

static int poller;
static struct timer *timers;
static struct child *children;
static struct watch signals;
void (*on_signal)(int signal, pid_t from);

void watch_set(struct watch *w, uint32_t events)
{
	if (w->events == events)
		return;
	struct epoll_event event = { .events = events, .data.ptr = w };
	int how = events == 0 ? EPOLL_CTL_DEL : w->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
	epoll_ctl(poller, how, w->fd, &event);
	w->events = events;
}

void timer_clear(struct timer *timer)
{
	for (struct timer **at = &timers; *at; at = &(*at)->next)
		if (*at == timer) {
			*at = timer->next;
			return;
		}
}

void timer_set(struct timer *timer, uint64_t in_ms)
{
	timer_clear(timer);
	timer->at = now_ms() + in_ms;
	struct timer **at = &timers;
	while (*at && (*at)->at <= timer->at)
		at = &(*at)->next;
	timer->next = *at;
	*at = timer;
}

void child_expect(struct child *child)
{
	child->next = children;
	children = child;
}

void child_forget(struct child *child)
{
	for (struct child **at = &children; *at; at = &(*at)->next)
		if (*at == child) {
			*at = child->next;
			return;
		}
}

/* Everyone's children come here in the end: those that no one expects are only reaped. */
static void reap(void)
{
	pid_t pid;
	int status;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct child *child = children; child; child = child->next)
			if (child->pid == pid) {
				child_forget(child);
				child->ended(child, status);
				break;
			}
}

static void signals_ready(struct watch *w, uint32_t events)
{
	(void)events;
	struct signalfd_siginfo info;
	while (read(w->fd, &info, sizeof info) == sizeof info)
		if (info.ssi_signo != SIGCHLD && on_signal)
			on_signal((int)info.ssi_signo, (pid_t)info.ssi_pid);
	reap();
}

static void open_signals(void)
{
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	/* Faults must stay deadly: a blocked SIGSEGV would only hide which one it was. */
	signals = (struct watch){ .fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK), .ready = signals_ready };
	watch_set(&signals, EPOLLIN);
}

void loop_start(void)
{
	poller = epoll_create1(EPOLL_CLOEXEC);
	open_signals();
}

void loop_restart(void)
{
	watch_set(&signals, 0);
	close(signals.fd);
	open_signals();
}

void loop_run(void)
{
	for (;;) {
		int wait = -1;
		if (timers) {
			uint64_t now = now_ms();
			wait = timers->at <= now ? 0 : timers->at - now > 60000 ? 60000 : (int)(timers->at - now);
		}
		/* One at a time: what an event frees cannot then be named by the next. */
		struct epoll_event event;
		int n = epoll_wait(poller, &event, 1, wait);
		if (n == 1) {
			struct watch *w = event.data.ptr;
			w->ready(w, event.events);
		}
		while (timers && timers->at <= now_ms()) {
			struct timer *timer = timers;
			timers = timer->next;
			timer->fire(timer);
		}
	}
}
