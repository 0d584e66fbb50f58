/* Facts that must outlive the daemon: one JSON line each, kept by the shim. */
#ifndef DORMOUSE_JOURNAL_H
#define DORMOUSE_JOURNAL_H
#include "words.h"

void journal_start(int port);
/* The same over a stream that may end, and is then opened again. Ends the one before. */
void journal_stream(int (*open)(void));
void journal_started(void);
void journal_exited(const struct ending *ending);

#endif
