#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "request.h"

static struct fixture fixture;
static char text[8192];

static void add(const char *format, ...)
{
	va_list rest;
	va_start(rest, format);
	vsnprintf(text + strlen(text), sizeof text - strlen(text), format, rest);
	va_end(rest);
}

static void add_list(const char *name, char **words)
{
	if (!words[0])
		return;
	add(" %s=[", name);
	for (size_t i = 0; words[i]; i++)
		add("%s%s", i ? "|" : "", words[i]);
	add("]");
}

static void add_hex(const char *name, const uint8_t *bytes, size_t length)
{
	add(" %s=", name);
	for (size_t i = 0; i < length; i++)
		add("%02x", bytes[i]);
}

static void add_number(const char *name, uint64_t value, bool there)
{
	if (there)
		add(" %s=%llu", name, (unsigned long long)value);
}

static const char *describe(const struct request *r)
{
	const struct network *n = &r->network;
	snprintf(text, sizeof text, "op=%d", (int)r->op);
	add_list("args", r->args);
	add_list("env", r->env);
	if (r->cwd)
		add(" cwd=%s", r->cwd);
	if (r->user)
		add(" user=%s", r->user);
	if (r->tty)
		add(" tty=%dx%d", (int)r->rows, (int)r->cols);
	add_number("timeout", r->timeout_ms, r->timeout_ms);
	if (r->path)
		add(" path=%s", r->path);
	if (r->follow)
		add(" follow");
	add_number("address", r->address, r->address);
	add_number("port", r->port, r->port);
	add_number("file", r->file_kind, r->file_kind);
	if (r->has_mode)
		add(" mode=%o", (unsigned)r->mode);
	if (r->has_owner)
		add(" owner=%u:%u", (unsigned)r->uid, (unsigned)r->gid);
	add_number("mtime", r->mtime, r->has_mtime);
	add_number("signal", r->signal, r->signal);
	add_number("kind", r->workload_kind, r->workload_kind);
	add_number("clock", r->clock_ns, r->clock_ns);
	add_number("entropy", r->entropy_length, r->entropy);
	add_number("window", r->window, r->window);
	if (r->hostname)
		add(" hostname=%s", r->hostname);
	if (r->machine_id)
		add(" machine=%s", r->machine_id);
	add_list("hosts", r->hosts);
	add_list("dns", r->dns);
	if (r->op == OP_DIAL && n->has4)
		add_hex("to", n->address4, 4);
	if (r->has_network) {
		add_hex("mac", n->mac, 6);
		add_hex("ip4", n->address4, 4);
		add("/%d", (int)n->prefix4);
		add_hex("gw4", n->gateway4, 4);
		add_hex("ip6", n->address6, 16);
		add("/%d", (int)n->prefix6);
		add_hex("gw6", n->gateway6, 16);
		add(" mtu=%d", (int)n->mtu);
	}
	add_number("grace", r->grace_ms, request_has(r, TAG_GRACE_MS));
	add("%s%s%s", r->best_effort ? " best-effort" : "", r->close_connections ? " close" : "", r->announce ? " announce" : "");
	add("%s%s", r->overlay ? " overlay" : "", r->modules ? " modules" : "");
	for (size_t i = 0; i < r->volume_count; i++) {
		add(" volume=%s:%s:%s:%s", r->volumes[i].serial, r->volumes[i].path, r->volumes[i].fs, r->volumes[i].read_only ? "ro" : "rw");
		add_number("room", r->volumes[i].room, r->volumes[i].room);
	}
	if (r->authority)
		add(" authority=%zu", strlen(r->authority));
	add_number("size", r->size, r->size);
	if (request_has(r, TAG_CONFIG_ID))
		add_hex("id", r->config_id, 4);
	return text;
}

static void requests_are_read_as_the_daemon_writes_them(void)
{
	static uint8_t bytes[REQUEST_MAX];
	for (bool more = fixture_open(&fixture, "requests.txt"); more && fixture_next(&fixture, 3);) {
		struct request request;
		size_t length = fixture_bytes(fixture.columns[1], bytes, sizeof bytes);
		const char *wrong = request_decode(&request, bytes, length);
		CHECK_IN(!wrong, wrong ? wrong : "");
		if (!wrong)
			CHECK_IN(strcmp(describe(&request), fixture.columns[2]) == 0, text);
		request_free(&request);
		/* Cut anywhere it is either whole without its last fields, or refused; never read beyond. */
		for (size_t cut = 0; cut < length; cut++) {
			request_decode(&request, bytes, cut);
			request_free(&request);
		}
	}
}

static void nonsense_is_refused_in_words(void)
{
	static uint8_t bytes[REQUEST_MAX];
	for (bool more = fixture_open(&fixture, "refused-requests.txt"); more && fixture_next(&fixture, 3);) {
		struct request request;
		size_t length = fixture_bytes(fixture.columns[1], bytes, sizeof bytes);
		const char *wrong = request_decode(&request, bytes, length);
		CHECK_IN(wrong && strcmp(wrong, fixture.columns[2]) == 0, fixture.columns[0]);
		request_free(&request);
	}
}

void test_requests(void)
{
	requests_are_read_as_the_daemon_writes_them();
	nonsense_is_refused_in_words();
}
