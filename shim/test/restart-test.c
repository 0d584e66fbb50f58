/* A helper that keeps dying is started ever more seldom, one that had lived long is back at once. */
#include <stdio.h>

#include "../restart.h"

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

int main(void) {
    long long pause = restart_pause_ms(0, 0);
    CHECK(pause == 10);
    for (int i = 0; i < 4; i++) pause = restart_pause_ms(pause, 9999);
    CHECK(pause == 2560);
    for (int i = 0; i < 100; i++) pause = restart_pause_ms(pause, 0);
    CHECK(pause == 10000);
    pause = restart_pause_ms(pause, 10000);
    CHECK(pause == 10);
    CHECK(restart_pause_ms(pause, 0) == 40);
    return failures != 0;
}
