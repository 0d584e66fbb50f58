#include "timings.h"

#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "proto.h"

#define STEPS_MAX 24

static struct {
	const char *what;
	uint64_t micros;
} steps[STEPS_MAX];
static size_t count;
static uint64_t since;

void timings_start(void)
{
	count = 0;
	since = now_us();
}

void timings_took(const char *what)
{
	uint64_t now = now_us();
	if (count < STEPS_MAX) {
		steps[count].what = what;
		steps[count++].micros = now - since;
	}
	since = now;
}

void timings_put(struct tlv_writer *fields)
{
	for (size_t i = 0; i < count; i++) {
		tlv_put_text(fields, TAG_NAME, steps[i].what);
		tlv_put_number(fields, TAG_MICROS, steps[i].micros);
	}
}
