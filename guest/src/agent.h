/* The one agent: its phase, what it knows of the workload, and who answers which request. */
#ifndef DORMOUSE_AGENT_H
#define DORMOUSE_AGENT_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "request.h"
#include "tlv.h"
#include "words.h"

struct agent {
	int phase;
	/*
	 * Random, only ever in RAM: the same after a restore, another after a boot. Drawn anew at "go", as golden boots share theirs, and
	 * at a wake as another machine.
	 */
	uint8_t boot_nonce[16];
	/* It is the child that rehearses, and all that it becomes ends with it. */
	bool rehearsing;
	/* What "go" said. */
	struct request config;
	struct ending ending;
	/* Directories that the workload cannot take away: held by descriptor, not by name. */
	int proc, sys, dev, pts, private;
};

extern struct agent agent;

void agent_describe(struct tlv_writer *fields);
void agent_take(uint32_t id, struct request *request);

#endif
