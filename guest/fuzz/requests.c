/* Whatever fields a request has: it is refused, or all that the handlers rely on is there. */
#include <stdlib.h>
#include <string.h>

#include "request.h"

static void need(bool holds)
{
	if (!holds)
		abort();
}

static void look(char **words)
{
	for (; *words; words++)
		need(strlen(*words) < REQUEST_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct request r;
	if (!request_decode(&r, bytes, size)) {
		look(r.args);
		look(r.env);
		look(r.hosts);
		look(r.dns);
		for (char **word = r.env; *word; word++)
			need(strchr(*word, '=') > *word);
		for (size_t i = 0; i < r.volume_count; i++)
			need(r.volumes[i].serial[0] && r.volumes[i].path[0] == '/' && strcmp(r.volumes[i].fs, "ext4") == 0);
		switch (r.op) {
		case OP_GO:
			need(r.hostname && r.machine_id && strlen(r.machine_id) == 32 && r.cwd && r.cwd[0] == '/');
			need(r.entropy && r.entropy_length <= 512 && r.signal >= 1 && r.signal <= 64);
			break;
		case OP_WAKE:
			need(r.entropy && r.entropy_length >= 16 && r.entropy_length <= 512 && r.clock_ns >= 1);
			need(!r.machine_id || strlen(r.machine_id) == 32);
			break;
		case OP_DIAL: need(r.port >= 1 && r.port <= 65535 && r.window >= 1 && r.window <= WINDOW_MAX); break;
		case OP_PUT: need((r.file_kind == KIND_SYMLINK) == (r.link_target != NULL)); /* fall through */
		case OP_STAT:
		case OP_GET: need(r.path && r.path[0] == '/' && strlen(r.path) < 4096); break;
		}
	}
	request_free(&r);
	if (!message_decode(&r, bytes, size))
		look(r.args);
	request_free(&r);
	return 0;
}
