#pragma once

/* The TAP `name`, which is there, or a new one where it ends in %d. Exits when it cannot be opened. */
int open_tap(const char *name);

/* Nothing comes through the TAP any more, and is lost, until it is opened again. Repeat is harmless. */
int shut_tap(int tap);
int open_tap_again(int tap);
