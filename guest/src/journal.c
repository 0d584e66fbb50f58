#include "journal.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "io.h"

/* The shim always drains; a host without one does not hold the guest up for longer than this. */
#define WAIT_MS 1000

static int port = -1;
static int (*reopen)(void);

/* Not there yet, and nothing has gone wrong so far. */
static bool is_connecting(void)
{
	struct pollfd state = { .fd = port, .events = POLLOUT };
	return poll(&state, 1, 0) == 0;
}

static void put(const char *event, const char *rest)
{
	char line[1024], boot[33];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	for (int i = 0; i < 16; i++)
		sprintf(boot + 2 * i, "%02x", agent.boot_nonce[i]);
	/* The leading newline ends a line that was cut short by an earlier death. */
	int n = snprintf(line, sizeof line, "\n{\"event\":\"%s\",\"atMs\":%llu,\"boot\":\"%s\"%s}\n", event,
			 (unsigned long long)now.tv_sec * 1000 + (unsigned long long)now.tv_nsec / 1000000, boot, rest);
	if (write(port, line, (size_t)n) >= 0)
		return;
	if (reopen && errno != EAGAIN && !is_connecting())
		journal_stream(reopen);
	struct pollfd waiting = { .fd = port, .events = POLLOUT };
	if (poll(&waiting, 1, WAIT_MS) > 0)
		(void)!write(port, line, (size_t)n);
}

void journal_start(int fd)
{
	port = fd;
}

void journal_stream(int (*open)(void))
{
	if (port >= 0)
		close(port);
	reopen = open;
	port = open();
}

void journal_started(void)
{
	put("started", "");
}

void journal_exited(const struct ending *ending)
{
	char rest[512], message[400];
	json_escape(message, sizeof message, ending->message);
	snprintf(rest, sizeof rest, ",\"code\":%d,\"message\":\"%s\"", ending->code, message);
	put("exited", rest);
}
