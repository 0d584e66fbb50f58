#ifndef DORMOUSE_POWER_H
#define DORMOUSE_POWER_H
/* Ends the machine on every board: by ACPI, else by a reset, which the VMM is told to take for an end (-no-reboot). */
void power_off(void) __attribute__((noreturn));
#endif
