#pragma once

/* Writes how the VMM ended into `exit` in the run directory, so that a daemon that was away learns of it. Whole or not at all. */
int record_exit(int wait_status, char *line, unsigned long line_size);
