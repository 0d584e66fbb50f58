#pragma once

/*
 * Files that count only when the work is done. Whatever ends the process before `keep_outputs`, an error or a signal to end, removes
 * what it has made; only SIGKILL leaves a part, and whoever sends that knows it.
 */

/* A new file; what is there already is left alone and is an error. */
int create_output(const char *path);
/* All that was created is now on disk and stays. */
void keep_outputs(void);
/* For a signal handler: ends the process at once, its outputs with it. */
_Noreturn void end_without_outputs(void);
