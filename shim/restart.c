#include "restart.h"

enum { SHORTEST_MS = 10, LONGEST_MS = 10 * 1000 };

long long restart_pause_ms(long long last_ms, long long lived_ms) {
    // Who outlived the longest pause was sound: what ended it is no part of an earlier row of deaths.
    if (last_ms == 0 || lived_ms >= LONGEST_MS) return SHORTEST_MS;
    return last_ms * 4 < LONGEST_MS ? last_ms * 4 : LONGEST_MS;
}
