#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "connection.h"
#include "dial.h"
#include "errand.h"
#include "exec.h"
#include "freeze.h"
#include "io.h"
#include "modules.h"
#include "net.h"
#include "power.h"
#include "rehearsal.h"
#include "root.h"
#include "stream.h"
#include "timings.h"
#include "trust.h"
#include "wake.h"
#include "workload.h"
#include "world.h"

struct agent agent;

/* Who waits for "go" to be done. */
static void go_abandoned(struct stream *stream, bool hung_up);
static const struct stream_kind go_kind = { NULL, NULL, NULL, go_abandoned };
static struct stream go_stream;
static bool go_awaited;

void agent_describe(struct tlv_writer *fields)
{
	tlv_put(fields, TAG_BOOT_NONCE, agent.boot_nonce, sizeof agent.boot_nonce);
	tlv_put_number(fields, TAG_PHASE, (uint64_t)agent.phase);
	if (freeze_holds())
		tlv_put_number(fields, TAG_FROZEN, 1);
	if (agent.phase == PHASE_EXITED) {
		tlv_put_number(fields, TAG_EXIT_CODE, (uint64_t)agent.ending.code);
		tlv_put_text(fields, TAG_MESSAGE, agent.ending.message);
	}
}

/* It cannot be given up, only be left unanswered. */
static void go_abandoned(struct stream *stream, bool hung_up)
{
	(void)stream;
	if (hung_up)
		go_awaited = false;
}

static void reply_to_go(uint64_t status, const char *message)
{
	uint8_t bytes[4096];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	if (status == STATUS_OK) {
		/* For a daemon that came after the one that said "go". */
		tlv_put_number(&fields, TAG_EVENT, EVENT_STARTED);
		connection_send_fields(FRAME_EVENT, 0, &fields);
		fields.used = 0;
	}
	if (!go_awaited)
		return;
	go_awaited = false;
	stream_close(&go_stream);
	tlv_put_number(&fields, TAG_STATUS, status);
	if (message)
		tlv_put_text(&fields, TAG_MESSAGE, message);
	tlv_put(&fields, TAG_BOOT_NONCE, agent.boot_nonce, sizeof agent.boot_nonce);
	if (status == STATUS_NOT_STARTED)
		tlv_put_number(&fields, TAG_EXIT_CODE, (uint64_t)agent.ending.code);
	timings_put(&fields);
	connection_send_fields(FRAME_REPLY, go_stream.id, &fields);
}

static void workload_started(const struct ending *failed)
{
	timings_took("exec");
	if (failed)
		agent.ending = *failed;
	reply_to_go(failed ? STATUS_NOT_STARTED : STATUS_OK, failed ? failed->message : NULL);
}

/* The machine cannot become what it was meant to be: says so and ends, with the code that Docker has for that. */
static void go_failed(const char *why)
{
	struct ending ending = { .code = 125 };
	strncpy(ending.message, why, sizeof ending.message - 1);
	agent.ending = ending;
	reply_to_go(STATUS_NOT_STARTED, why);
	workload_over(&ending);
}

static const char *start_network(const struct request *c)
{
	return net_configure(&c->network);
}

/* Does a part of the work in a process of its own, on another CPU if there is one; its failure is told at the gate. */
static void aside(int gate, const char *(*part)(const struct request *), const struct request *c)
{
	pid_t pid = fork();
	if (pid > 0)
		return;
	const char *wrong = part(c);
	if (wrong)
		write_all(gate, wrong, strlen(wrong));
	if (pid == 0)
		_exit(0);
}

/* Who writes at the gate holds up the workload until it is done. */
static const char *set_up(const struct request *c, int gate)
{
	const char *wrong;
	uint64_t since = now_us();
	if (modules_wait() && !modules_load(root_initrd(), "later"))
		return "The drivers of its disks and its network could not be loaded";
	if (!world_add_entropy(c->entropy, c->entropy_length) || !world_set_clock(c->clock_ns + (now_us() - since) * 1000) ||
	    !world_draw(agent.boot_nonce, sizeof agent.boot_nonce))
		return "The clock or the generator of random numbers could not be set";
	timings_took("world");
	if (c->has_network)
		aside(gate, start_network, c);
	if ((wrong = root_enter(c)) || (wrong = root_mount_volumes(c)))
		return wrong;
	if (c->authority)
		aside(gate, trust_authority, c);
	if (c->modules)
		aside(gate, root_mount_modules, c);
	if (!world_set_names(c))
		return "The host's name could not be set";
	world_show_files(c);
	timings_took("names");
	return NULL;
}

static void go(uint32_t id, struct request *r)
{
	if (agent.phase != PHASE_PARKED) {
		bool same = memcmp(agent.config.config_id, r->config_id, sizeof r->config_id) == 0;
		if (!same || agent.phase != PHASE_RUNNING) {
			stream_reply(id, STATUS_WRONG_PHASE, same ? "The guest is not running" : "The guest runs another configuration");
			return;
		}
		uint8_t bytes[128];
		struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
		tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
		tlv_put_number(&fields, TAG_ALREADY, 1);
		tlv_put(&fields, TAG_BOOT_NONCE, agent.boot_nonce, sizeof agent.boot_nonce);
		connection_send_fields(FRAME_REPLY, id, &fields);
		return;
	}
	if (!r->args[0]) {
		stream_reply(id, STATUS_BAD_REQUEST, "There is no command");
		return;
	}
	agent.phase = PHASE_STARTING;
	/* Kept for good: execs want its environment. */
	agent.config = *r;
	r->arena = NULL;
	stream_open(&go_stream, id, &go_kind);
	go_awaited = true;
	timings_start();
	int gate[2];
	if (pipe2(gate, O_CLOEXEC) < 0)
		go_failed("No pipe could be made");
	const char *wrong = set_up(&agent.config, gate[1]);
	agent.config.entropy = NULL;
	if (wrong)
		go_failed(wrong);
	close(gate[1]);
	workload_start(gate[0], workload_started);
	close(gate[0]);
}

static void shut_down(uint32_t id, const struct request *r)
{
	stream_reply(id, STATUS_OK, NULL);
	if (agent.phase == PHASE_PARKED) {
		connection_flush(1000);
		power_off();
	}
	workload_stop(r->grace_ms);
}

static void ping(uint32_t id)
{
	uint8_t bytes[1024];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
	agent_describe(&fields);
	connection_send_fields(FRAME_REPLY, id, &fields);
}

static void thaw(uint32_t id)
{
	bool done = freeze_end();
	stream_reply(id, done ? STATUS_OK : STATUS_FAILED, done ? NULL : strerror(errno));
}

void agent_take(uint32_t id, struct request *r)
{
	switch (r->op) {
	case OP_PING: ping(id); break;
	case OP_GO: go(id, r); break;
	case OP_EXEC: exec_start(id, r); break;
	case OP_DIAL: dial_start(id, r); break;
	case OP_STAT:
	case OP_OFFLINE:
	case OP_PUT:
	case OP_GET:
	case OP_MOUNT:
	case OP_UNMOUNT:
	case OP_GROW: errand_start(id, r); break;
	case OP_FREEZE: freeze_start(id, r); break;
	case OP_THAW: thaw(id); break;
	case OP_WAKE: wake(id, r); break;
	case OP_REHEARSE: rehearse(id); break;
	case OP_VACATE: vacate(id); break;
	case OP_SHUTDOWN: shut_down(id, r); break;
	default: stream_reply(id, STATUS_UNSUPPORTED, "This guest does not know that request");
	}
}
