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
	bool holds, waiting, best_effort;
} freeze;

static void stop_waiting(void)
{
	freeze.waiting = false;
	watch_set(&freeze.events, 0);
	timer_clear(&freeze.deadline);
	stream_close(&freeze.stream);
}

bool freeze_holds(void)
{
	return freeze.holds;
}

bool freeze_end(void)
{
	if (freeze.waiting) {
		stop_waiting();
		stream_reply(freeze.stream.id, STATUS_CANCELLED, "It was thawed before all stood still");
	}
	freeze.holds = false;
	return cgroup_freeze(false);
}

static void succeed(uint32_t id, bool partly)
{
	uint8_t bytes[64];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
	tlv_put_number(&fields, TAG_PARTLY, partly);
	connection_send_fields(FRAME_REPLY, id, &fields);
}

static void changed(struct watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	if (!cgroup_is_frozen())
		return;
	stop_waiting();
	succeed(freeze.stream.id, false);
}

static void too_late(struct timer *timer)
{
	(void)timer;
	stop_waiting();
	if (freeze.best_effort) {
		succeed(freeze.stream.id, true);
		return;
	}
	freeze_end();
	stream_reply(freeze.stream.id, STATUS_TIMED_OUT, "A process did not stop in time; all run on");
}

static void abandon(struct stream *stream, bool hung_up)
{
	stop_waiting();
	/*
	 * Who froze at any price may be capturing at this moment, or this is the copy: it must not run before it was told who it is.
	 * Otherwise no capture comes, and the workload runs on.
	 */
	if (!freeze.best_effort)
		freeze_end();
	if (!hung_up)
		stream_reply(stream->id, STATUS_CANCELLED, "Given up");
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
	freeze.holds = true;
	if (cgroup_is_frozen()) {
		succeed(id, false);
		return;
	}
	freeze.waiting = true;
	freeze.best_effort = r->best_effort;
	freeze.deadline.fire = too_late;
	freeze.events = (struct watch){ .fd = cgroup_events(), .ready = changed };
	stream_open(&freeze.stream, id, &kind);
	watch_set(&freeze.events, EPOLLPRI);
	timer_set(&freeze.deadline, r->timeout_ms ? r->timeout_ms : DEADLINE_MS);
}
