#pragma once
#include <stddef.h>
#include <sys/types.h>

#include "answer.h"
#include "drain.h"
#include "job.h"

/* A line has room for a path. */
enum { MAX_CLIENTS = 8, LINE_SIZE = 4096 + 64 };

/* A connection of the daemon's. What it asks is one line, what it hears is one line. */
struct client {
    int fd; /* -1: free */
    char line[LINE_SIZE];
    size_t length;
};

/* What requests are about. */
struct controlled {
    struct vmm vmm;
    struct log_file *logs;
    size_t log_count;
    int *waits;
    struct answers *answers; /* NULL: the VMM opens everything by itself */
    void (*cut_streams)(void *context);
    /* NULL, or why not. */
    const char *(*give_proxy)(void *context, const char *words);
    void *context;
};

/*
 * Reads what is there and answers every whole line:
 *   status      →  running PID
 *   signal NAME →  ok | error WHY       NAME without SIG: KILL, TERM, STOP, CONT
 *   log NAME FILE →  ok | error WHY     the log of that name goes on in FILE
 *   claim       →  ok                   the VM is an instance's: it no longer ends with our connections
 *   egress MODE SOCKET → ok | error WHY   a VM that waits: its network helper begins anew, with the proxy behind SOCKET as the way out
 *   cut         →  ok                   streams that the guest has opened into logs end here: their other end is gone, and others may come
 *   shut, open  →  ok | error WHY       nothing comes through its TAP any more, and is lost; or it comes again (--answer-tun)
 *   answer NAME=KIND →  ok | error WHY  what a VMM finds that opens that name (--answers), from now on
 *   extend NAME BYTES →  ok | error WHY what is there becomes so large
 *   refuse NAME →  ok                   nothing, from now on
 *   locked NAME →  yes | no | error WHY someone has a lock on what is there
 *   the jobs of job.h   →  as said there; the connection is the job's from then on
 * Anything else is `error`. When the VMM ends, every client gets the line of the exit record, then end of file.
 * Returns -1 when the client is to be let go.
 */
int serve_client(struct client *client, const struct controlled *what);
