#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "io.h"
#include "mount-calls.h"

bool world_add_entropy(const uint8_t *bytes, size_t length)
{
	union {
		struct rand_pool_info info;
		uint8_t room[sizeof(struct rand_pool_info) + 512];
	} pool;
	if (length > 512)
		return false;
	pool.info.entropy_count = (int)length * 8;
	pool.info.buf_size = (int)length;
	memcpy(pool.info.buf, bytes, length);
	int fd = openat(agent.dev, "urandom", O_RDWR | O_CLOEXEC);
	/* Added alone it would only be used at the generator's next turn, and until then copies of one boot draw the same. */
	bool done = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool.info) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0;
	if (fd >= 0)
		close(fd);
	return done;
}

bool world_draw(void *bytes, size_t length)
{
	return getrandom(bytes, length, 0) == (ssize_t)length;
}

bool world_set_clock(uint64_t ns)
{
	struct timespec now = { .tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000) };
	return clock_settime(CLOCK_REALTIME, &now) == 0;
}

struct page {
	char text[65536];
	size_t used;
};

static void line(struct page *page, const char *a, const char *b, const char *c)
{
	size_t room = sizeof page->text - page->used;
	int n = snprintf(page->text + page->used, room, "%s%s%s\n", a, b, c);
	if (n > 0 && (size_t)n < room)
		page->used += (size_t)n;
}

static bool keep(const char *name, struct page *page)
{
	bool done = put_at(agent.private, name, page->text, page->used, 0644);
	page->used = 0;
	return done;
}

/* What it was told last. */
static char hostname[64], machine_id[33], address[16] = "127.0.1.1";
static struct page more_hosts;
/* What the lines before those need, the hostname at its longest. */
#define HOSTS_HEAD 256

static bool set_hosts(const struct request *r)
{
	static struct page page;
	const struct network *n = &r->network;
	if (r->has_network && n->has4)
		snprintf(address, sizeof address, "%d.%d.%d.%d", n->address4[0], n->address4[1], n->address4[2], n->address4[3]);
	else if (r->has_network)
		strcpy(address, "127.0.1.1");
	if (r->hosts[0])
		more_hosts.used = 0;
	for (char **extra = r->hosts; *extra; extra++)
		if (more_hosts.used + strlen(*extra) + HOSTS_HEAD < sizeof more_hosts.text)
			line(&more_hosts, *extra, "", "");
	line(&page, "127.0.0.1\tlocalhost", "", "");
	line(&page, "::1\tlocalhost ip6-localhost ip6-loopback", "", "");
	line(&page, address, "\t", hostname);
	memcpy(page.text + page.used, more_hosts.text, more_hosts.used);
	page.used += more_hosts.used;
	return keep("hosts", &page);
}

bool world_is_machine(const char *id)
{
	return strcmp(machine_id, id) == 0;
}

bool world_set_names(const struct request *r)
{
	static struct page page;
	bool done = true;
	if (r->hostname) {
		snprintf(hostname, sizeof hostname, "%s", r->hostname);
		/* A descriptor of /proc, since sethostname would do too but not tell who waits on the file. */
		done = write_at(agent.proc, "sys/kernel/hostname", hostname);
		line(&page, hostname, "", "");
		done &= keep("hostname", &page);
	}
	if (r->hostname || r->has_network || r->hosts[0])
		done &= set_hosts(r);
	if (r->machine_id) {
		snprintf(machine_id, sizeof machine_id, "%s", r->machine_id);
		line(&page, machine_id, "", "");
		done &= keep("machine-id", &page);
	}
	if (r->dns[0]) {
		for (char **server = r->dns; *server; server++)
			line(&page, "nameserver ", *server, "");
		done &= keep("resolv.conf", &page);
	}
	return done;
}

/* Where a link leads to is where programs look, there or not: systemd's images point resolv.conf into /run. */
static int make_target(const char *path)
{
	char link[4096], target[4200];
	ssize_t n = readlink(path, link, sizeof link - 1);
	link[n > 0 ? n : 0] = 0;
	if (n <= 0)
		snprintf(target, sizeof target, "%s", path);
	else
		snprintf(target, sizeof target, "%s%s", link[0] == '/' ? "" : "/etc/", link);
	return make_parents(target, 0755) ? open(target, O_RDONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644) : -1;
}

static void show(const char *name, bool make)
{
	char path[64];
	snprintf(path, sizeof path, "/etc/%s", name);
	int target = open(path, O_PATH | O_CLOEXEC);
	if (target < 0 && make)
		target = make_target(path);
	if (target < 0 && !make)
		return;
	int bind = mount_handle(agent.private, name, true);
	if (target < 0 || bind < 0 || !mount_attach_to(bind, target))
		say("%s: %s", path, strerror(errno));
	close(bind);
	close(target);
}

void world_show_files(const struct request *config)
{
	mkdir("/etc", 0755);
	show("hosts", true);
	show("hostname", true);
	/* Programs that want one are an init's affair, which makes do with a file. */
	show("machine-id", config->workload_kind == WORKLOAD_SYSTEMD);
	if (config->dns[0])
		show("resolv.conf", true);
}
