/* Kernel modules out of the initrd, without modprobe: their order was worked out when the initrd was made. */
#ifndef DORMOUSE_MODULES_H
#define DORMOUSE_MODULES_H
#include <stdbool.h>

/* Loads what lies in /modules/<set> in the order of the names; then the files go, as an initrd's files are RAM. */
bool modules_load(int root, const char *set);

/* Drivers of disks and cards are loaded at "go" only: the kernel's command line says so, of machines whose devices become others until then. */
bool modules_wait(void);

#endif
