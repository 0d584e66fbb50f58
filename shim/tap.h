#pragma once

/* The TAP `name`, which is there, or a new one where it ends in %d. Exits when it cannot be opened. */
int open_tap(const char *name);
