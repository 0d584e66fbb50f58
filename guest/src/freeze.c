#include "freeze.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "cgroup.h"
#include "connection.h"
#include "io.h"
#include "stream.h"

#define DEADLINE_MS 2000

/* One at a time: a second request finds it busy. */
static struct freeze {
	struct stream stream;
	struct watch events;
	struct timer deadline;
	bool waiting;
} freeze;

static void settle(uint64_t status, const char *message, bool told)
{
	freeze.waiting = false;
	watch_set(&freeze.events, 0);
	timer_clear(&freeze.deadline);
	if (status != STATUS_OK)
		cgroup_freeze(false);
	if (told)
		return;
	stream_reply(freeze.stream.id, status, message);
	stream_close(&freeze.stream);
}

static void changed(struct watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	if (cgroup_is_frozen())
		settle(STATUS_OK, NULL, false);
}

static void too_late(struct timer *timer)
{
	(void)timer;
	settle(STATUS_TIMED_OUT, "A process did not stop in time; all run on", false);
}

static void abandon(struct stream *stream, bool hung_up)
{
	(void)stream;
	/* A daemon that is gone may have frozen for a capture that will not come: the workload runs on. */
	settle(STATUS_CANCELLED, "Given up", hung_up);
}

static const struct stream_kind kind = { NULL, NULL, NULL, abandon };

void freeze_start(uint32_t id, const struct request *r)
{
	if (agent.phase != PHASE_RUNNING) {
		stream_reply(id, STATUS_WRONG_PHASE, "The workload is not running");
		return;
	}
	if (freeze.waiting) {
		stream_reply(id, STATUS_BUSY, "It is being frozen already");
		return;
	}
	cgroup_is_frozen();
	if (!cgroup_freeze(true)) {
		stream_reply(id, STATUS_FAILED, strerror(errno));
		return;
	}
	if (cgroup_is_frozen()) {
		stream_reply(id, STATUS_OK, NULL);
		return;
	}
	freeze.waiting = true;
	freeze.deadline.fire = too_late;
	freeze.events = (struct watch){ .fd = cgroup_events(), .ready = changed };
	stream_open(&freeze.stream, id, &kind);
	watch_set(&freeze.events, EPOLLPRI);
	timer_set(&freeze.deadline, r->timeout_ms ? r->timeout_ms : DEADLINE_MS);
}
