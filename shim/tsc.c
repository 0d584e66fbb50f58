/* How fast the time stamp counter runs, against the monotonic clock: the frequency a guest under TCG has to be told. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#include "commands.h"

struct sample {
    int64_t ns;
    uint64_t ticks;
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_RAW, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Of many pairs the one whose two clock readings lie closest together: a preemption between them would shift the ticks. */
static struct sample take(void) {
    struct sample best = {0, 0};
    int64_t narrowest = INT64_MAX;
    for (int i = 0; i < 200; i++) {
        int64_t before = now_ns();
        uint64_t ticks = __rdtsc();
        int64_t after = now_ns();
        if (after - before < narrowest) {
            narrowest = after - before;
            best = (struct sample){before + (after - before) / 2, ticks};
        }
    }
    return best;
}

int command_tsc(void) {
    struct sample first = take();
    struct timespec pause = {0, 25 * 1000 * 1000};
    nanosleep(&pause, NULL);
    struct sample second = take();
    double khz = (double)(second.ticks - first.ticks) * 1e6 / (double)(second.ns - first.ns);
    printf("%.0f\n", khz);
    return 0;
}
