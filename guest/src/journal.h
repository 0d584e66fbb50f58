/* Facts that must outlive the daemon: one JSON line each, kept by the shim. */
#ifndef DORMOUSE_JOURNAL_H
#define DORMOUSE_JOURNAL_H
#include "words.h"

void journal_start(int port);
void journal_started(void);
void journal_exited(const struct ending *ending);

#endif
