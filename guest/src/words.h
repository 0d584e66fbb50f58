/* How an end is told in words. */
#ifndef DORMOUSE_WORDS_H
#define DORMOUSE_WORDS_H
#include <stdbool.h>
#include <stddef.h>

struct ending {
	int code;
	char message[320];
};

const char *signal_name(int signal, char *room, size_t size);
/* Of a wait status. A signal ends with 128 + its number, as a shell has it. */
void ending_of_status(struct ending *ending, int status, bool out_of_memory);
/* Of an execve that failed: 127 when there is no such command, else 126. */
void ending_of_exec(struct ending *ending, int error, const char *command);
/* The text between the quotes of a JSON string: cut to fit, everything that is not plain ASCII escaped or replaced. */
void json_escape(char *out, size_t size, const char *text);

#endif
