#include "words.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

static const char *const NAMES[] = {
	"", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
	"STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
};

const char *signal_name(int signal, char *room, size_t size)
{
	if (signal > 0 && signal < (int)(sizeof NAMES / sizeof *NAMES))
		snprintf(room, size, "SIG%s", NAMES[signal]);
	else
		/* The C library of the image counts real-time signals from 34. */
		snprintf(room, size, "SIGRTMIN%+d", signal - 34);
	return room;
}

void ending_of_status(struct ending *e, int status, bool out_of_memory)
{
	char name[24];
	if (WIFSIGNALED(status)) {
		int signal = WTERMSIG(status);
		e->code = 128 + signal;
		snprintf(e->message, sizeof e->message, "killed by signal %d (%s)%s", signal, signal_name(signal, name, sizeof name),
			 out_of_memory ? " - OOM" : "");
		return;
	}
	e->code = WEXITSTATUS(status);
	if (e->code == 0)
		strcpy(e->message, "exited");
	else if (e->code > 128 && e->code <= 128 + 64)
		snprintf(e->message, sizeof e->message, "exited with code %d (as after %s)%s", e->code,
			 signal_name(e->code - 128, name, sizeof name), out_of_memory ? " - OOM" : "");
	else
		snprintf(e->message, sizeof e->message, "exited with code %d%s", e->code, out_of_memory ? " - OOM" : "");
}

void ending_of_exec(struct ending *e, int error, const char *command)
{
	e->code = error == ENOENT || error == ENOTDIR ? 127 : 126;
	const char *why = e->code == 127 ? "command not found" : error == EACCES || error == EPERM ? "permission denied" :
			  error == ENOEXEC ? "exec format error" : strerror(error);
	snprintf(e->message, sizeof e->message, "%s: %.200s", why, command);
}

void json_escape(char *out, size_t size, const char *text)
{
	size_t used = 0;
	for (; *text && size - used > 7; text++) {
		unsigned char c = (unsigned char)*text;
		if (c == '"' || c == '\\') {
			out[used++] = '\\';
			out[used++] = (char)c;
		} else if (c < 0x20 || c == 0x7f) {
			used += (size_t)snprintf(out + used, size - used, "\\u%04x", c);
		} else {
			out[used++] = c < 0x80 ? (char)c : '?';
		}
	}
	out[used] = 0;
}
