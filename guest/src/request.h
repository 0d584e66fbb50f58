/*
 * What the daemon asks, decoded and bounded. The decoder is pure: it looks at bytes only, and is what the fuzzer feeds.
 */
#ifndef DORMOUSE_REQUEST_H
#define DORMOUSE_REQUEST_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto.h"

#define VOLUMES_MAX 24
#define DNS_MAX 8
#define WORDS_MAX 16384
#define AUTHORITY_MAX 32768

struct volume {
	char *serial, *path, *fs;
	bool read_only;
	/* 0: all that there is. */
	uint64_t room;
};

struct network {
	uint8_t mac[6];
	uint8_t address4[4], gateway4[4], address6[16], gateway6[16];
	uint64_t prefix4, prefix6, mtu;
	bool has4, has_gateway4, has6, has_gateway6;
};

struct request {
	uint64_t op;
	/* exec, go */
	char **args, **env;
	char *cwd, *user;
	bool tty;
	uint64_t rows, cols, timeout_ms, window, signal;
	uint64_t workload_kind;
	/* files */
	char *path, *link_target;
	bool follow, has_mode, has_owner, has_mtime;
	uint64_t file_kind, mode, uid, gid, mtime, size;
	/* memory */
	uint64_t address;
	/* dial */
	uint64_t port;
	/* freeze, wake */
	bool best_effort, close_connections, announce;
	/* go, wake */
	char *hostname, *machine_id, *authority;
	char **hosts, **dns;
	uint64_t clock_ns, grace_ms;
	const uint8_t *entropy;
	size_t entropy_length;
	uint8_t config_id[32];
	bool has_network, overlay, modules;
	struct network network;
	struct volume volumes[VOLUMES_MAX];
	size_t volume_count;
	/* hello */
	uint8_t epoch[16];
	uint64_t version_min, version_max;
	/* What it all stands in. */
	char *arena;
	size_t arena_used, arena_size;
	/* Which fields came. */
	uint8_t present[16];
};

/* Gives NULL, or a sentence that says what is wrong. Call request_free in both cases. The bytes must outlive `request`. */
const char *request_decode(struct request *request, const uint8_t *bytes, size_t length);
/* The same for a HELLO and a CONTROL, which name no operation. */
const char *message_decode(struct request *request, const uint8_t *bytes, size_t length);
bool request_has(const struct request *request, unsigned tag);
void request_free(struct request *request);

#endif
