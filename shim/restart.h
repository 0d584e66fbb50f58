#pragma once

/* How long a helper that ended is left alone, after `last_ms` the time before (0: it ended for the first time) and a life of `lived_ms`. */
long long restart_pause_ms(long long last_ms, long long lived_ms);
