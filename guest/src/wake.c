#include "wake.h"

#include <stdbool.h>
#include <string.h>

#include "agent.h"
#include "connection.h"
#include "freeze.h"
#include "io.h"
#include "journal.h"
#include "net.h"
#include "stream.h"
#include "tcp.h"
#include "timings.h"
#include "world.h"

/* The wake that was done last. The same once more is from a daemon that has not heard the answer. */
static uint8_t last[sizeof((struct request *)NULL)->config_id];

static bool take_names(const struct request *r)
{
	bool is_another = r->machine_id && !world_is_machine(r->machine_id);
	bool done = world_set_names(r) && (!is_another || world_draw(agent.boot_nonce, sizeof agent.boot_nonce));
	timings_took("names");
	return done;
}

static const char *take_network(const struct request *r, uint64_t *closed)
{
	/*
	 * Down before its connections are closed: each then sends a reset, under the old address, which would end that of the guest
	 * that this one was copied from.
	 */
	if (r->has_network && !net_silence())
		return "There is no network card to take an address";
	if (r->close_connections && !tcp_close_inherited(r->has_network, closed))
		return "The connections that lead out could not be closed";
	timings_took("connections");
	const char *wrong = r->has_network ? net_configure(&r->network) : NULL;
	if (!wrong && r->announce && !net_announce())
		wrong = "The network card could not announce its addresses";
	timings_took("network");
	return wrong;
}

static void answer(uint32_t id, bool already, uint64_t closed)
{
	uint8_t bytes[2048];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
	agent_describe(&fields);
	tlv_put_number(&fields, TAG_ALREADY, already);
	tlv_put_number(&fields, TAG_CLOSED, closed);
	timings_put(&fields);
	connection_send_fields(FRAME_REPLY, id, &fields);
}

/* The order is the promise: what the workload could see is right before it looks, and what fails leaves it standing still. */
void wake(uint32_t id, const struct request *r)
{
	uint64_t since = now_us(), closed = 0;
	if (agent.phase != PHASE_RUNNING && agent.phase != PHASE_EXITED)
		return stream_reply(id, STATUS_WRONG_PHASE, "The workload has never run: there is nothing to wake");
	timings_start();
	/* First of all: whatever is drawn from here on is no one else's. */
	if (!world_add_entropy(r->entropy, r->entropy_length))
		return stream_reply(id, STATUS_FAILED, "The generator of random numbers could not be seeded");
	timings_took("entropy");
	bool already = memcmp(last, r->config_id, sizeof last) == 0;
	const char *wrong = NULL;
	if (!already && !take_names(r))
		wrong = "The guest's names could not be set";
	if (!already && !wrong)
		wrong = take_network(r, &closed);
	/* Late, so that it is as right as it can be; and what all of this took is added. */
	if (!wrong && !world_set_clock(r->clock_ns + (now_us() - since) * 1000))
		wrong = "The clock could not be set";
	if (!wrong && !freeze_end())
		wrong = "The workload could not be thawed";
	if (wrong)
		return stream_reply(id, STATUS_FAILED, wrong);
	timings_took("thaw");
	memcpy(last, r->config_id, sizeof last);
	answer(id, already, closed);
	/* For the journal of the machine that this is now, which may begin here. */
	if (!already && agent.phase == PHASE_RUNNING)
		journal_started();
}
