/* What a guest that slept, or was copied while it slept, must be told anew: chance, time, and who it is. */
#ifndef DORMOUSE_WORLD_H
#define DORMOUSE_WORLD_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "request.h"

bool world_add_entropy(const uint8_t *bytes, size_t length);
bool world_draw(void *bytes, size_t length);
bool world_set_clock(uint64_t nanoseconds);
/* Hostname, and the files that tell it: in place, so that whoever has them mounted sees the new ones. What is absent stays as it was. */
bool world_set_names(const struct request *request);
/* Is this the machine-id that it has? */
bool world_is_machine(const char *machine_id);
/* Puts those files where the image's programs look for them, as Docker does. After world_set_names, inside the new root. */
void world_show_files(const struct request *config);

#endif
