/*
 * What the workload writes, on its way to the host. The workload never waits for a reader there: when the port takes no more,
 * the oldest lines are dropped and a line says how much.
 */
#ifndef DORMOUSE_LOG_H
#define DORMOUSE_LOG_H

void log_start(int port);
/* The same over a stream that may end, and is then opened again; what was being sent meanwhile may be lost. Ends the one before. */
void log_stream(int (*open)(void));
/* Reads from here until it ends. */
void log_follow(int fd);
/* Takes in what is there, and gives the host until the deadline to take it. */
void log_flush(unsigned deadline_ms);

#endif
