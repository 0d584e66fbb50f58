#include "power.h"

#include <sys/reboot.h>
#include <unistd.h>

void power_off(void)
{
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}
