/*
 * Process 1 of a dormouse guest. It brings the machine up to the point where a daemon can talk to it and parks there: a golden
 * boot is taken of exactly this state, with drivers bound to slots that were empty all along. All else begins with "go".
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "cgroup.h"
#include "io.h"
#include "loop.h"
#include "modules.h"
#include "net.h"
#include "ports.h"
#include "power.h"
#include "root.h"
#include "world.h"

static void open_standard_streams(void)
{
	int null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		if (null != fd)
			dup2(null, fd);
	if (null > 2)
		close(null);
}

int main(void)
{
	if (getpid() != 1) {
		static const char hint[] = "dormouse-guest runs as process 1 of a virtual machine\n";
		(void)!write(2, hint, strlen(hint));
		return 2;
	}
	bool ready = root_prepare();
	open_standard_streams();
	write_at(agent.proc, "self/oom_score_adj", "-1000");
	ready &= cgroup_prepare() & net_loopback_up();
	ready &= modules_load(root_initrd(), "ports");
	world_draw(agent.boot_nonce, sizeof agent.boot_nonce);
	loop_start();
	ready = ready && ports_open();
	/*
	 * Disks and cards meet their drivers now, empty as their slots are: that is slow, and the same for all. Where a
	 * slot cannot become another's they meet at "go", and are what they are from the first.
	 */
	if (!ready || (!modules_wait() && !modules_load(root_initrd(), "later"))) {
		say("the guest could not be brought up");
		power_off();
	}
	ports_serve();
	loop_run();
}
