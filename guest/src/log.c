#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "loop.h"

#define RING (256 << 10)

static struct watch port = { .fd = -1 }, source = { .fd = -1 };
static uint8_t ring[RING];
static size_t start, used;
static uint64_t dropped;
/* Of a stream; NULL: the port stays open for ever. */
static int (*reopen)(void);
/* The next byte begins a line: only there may a line of ours stand. */
static bool at_line_start = true;

static bool send_bytes(const void *bytes, size_t count, size_t *sent)
{
	ssize_t n = write(port.fd, bytes, count);
	*sent = n > 0 ? (size_t)n : 0;
	return n > 0;
}

static void drain(void)
{
	size_t sent;
	if (dropped > 0) {
		char line[96];
		int n = snprintf(line, sizeof line, "%s[dormouse: %llu bytes of output were dropped here]\n", at_line_start ? "" : "\n",
				 (unsigned long long)dropped);
		/* A port takes a short write whole or not at all. */
		if (!send_bytes(line, (size_t)n, &sent))
			return;
		dropped = 0;
	}
	while (used > 0) {
		size_t run = RING - start;
		if (!send_bytes(ring + start, used < run ? used : run, &sent))
			return;
		at_line_start = ring[(start + sent - 1) % RING] == '\n';
		start = (start + sent) % RING;
		used -= sent;
	}
}

/* Makes room by whole lines, as far as there are any. */
static void drop(size_t wanted)
{
	size_t gone = 0;
	while (gone < used && (gone < wanted || ring[(start + gone - 1) % RING] != '\n'))
		gone++;
	if (gone == used)
		gone = wanted;
	start = (start + gone) % RING;
	used -= gone;
	dropped += gone;
}

/* False when there is no more for now, or ever. */
static bool take(void)
{
	static uint8_t chunk[32768];
	ssize_t n = read(source.fd, chunk, sizeof chunk);
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) {
		watch_set(&source, 0);
		close(source.fd);
		source.fd = -1;
		return false;
	}
	if ((size_t)n > RING - used)
		drop((size_t)n - (RING - used));
	for (ssize_t i = 0; i < n;) {
		size_t at = (start + used) % RING, run = RING - at;
		size_t part = (size_t)(n - i) < run ? (size_t)(n - i) : run;
		memcpy(ring + at, chunk + i, part);
		used += part;
		i += (ssize_t)part;
	}
	drain();
	return true;
}

#define REOPEN_MS 200

static void open_again(struct timer *timer)
{
	(void)timer;
	log_stream(reopen);
}

static struct timer again = { .fire = open_again };

static void source_ready(struct watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	take();
}

static void port_ready(struct watch *w, uint32_t events)
{
	(void)w;
	if (reopen && events & (EPOLLERR | EPOLLHUP))
		timer_set(&again, REOPEN_MS);
	else
		drain();
}

void log_start(int fd)
{
	port = (struct watch){ .fd = fd, .ready = port_ready };
	/* Edge-triggered: a port without a reader hangs up for ever. */
	watch_set(&port, EPOLLOUT | EPOLLET);
}

void log_stream(int (*open)(void))
{
	timer_clear(&again);
	if (port.fd >= 0) {
		watch_set(&port, 0);
		close(port.fd);
	}
	reopen = open;
	log_start(open());
	if (port.fd < 0)
		timer_set(&again, REOPEN_MS);
}

void log_follow(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	source = (struct watch){ .fd = fd, .ready = source_ready };
	watch_set(&source, EPOLLIN);
}

void log_flush(unsigned deadline_ms)
{
	/* Whoever still writes is not waited for: so much and no more. */
	for (int turns = 0; turns < 64 && source.fd >= 0 && take(); turns++)
		;
	for (uint64_t end = now_ms() + deadline_ms; used > 0 || dropped > 0;) {
		drain();
		uint64_t now = now_ms();
		struct pollfd waiting = { .fd = port.fd, .events = POLLOUT };
		if ((used == 0 && dropped == 0) || now >= end || poll(&waiting, 1, (int)(end - now)) <= 0 || waiting.revents & POLLHUP)
			return;
	}
}
