#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned checked, failed;

void check_that(bool holds, const char *what, const char *file, int line, const char *name)
{
	checked++;
	if (holds)
		return;
	failed++;
	fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what, name ? " in: " : "", name ? name : "");
}

bool fixture_open(struct fixture *f, const char *name)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", FIXTURES, name);
	f->file = fopen(path, "r");
	CHECK_IN(f->file != NULL, path);
	return f->file != NULL;
}

bool fixture_next(struct fixture *f, size_t columns)
{
	while (fgets(f->line, sizeof f->line, f->file)) {
		if (f->line[0] == '#')
			continue;
		f->line[strcspn(f->line, "\n")] = 0;
		char *at = f->line;
		for (size_t i = 0; i < columns; i++) {
			f->columns[i] = at;
			at += strcspn(at, "\t");
			CHECK_IN(i == columns - 1 || *at == '\t', f->columns[0]);
			if (*at)
				*at++ = 0;
		}
		return true;
	}
	fclose(f->file);
	return false;
}

size_t fixture_bytes(const char *text, uint8_t *bytes, size_t size)
{
	size_t used = 0;
	if (strcmp(text, "-") == 0)
		return 0;
	while (*text) {
		size_t piece = used;
		for (; *text && *text != '*' && *text != '+'; text += 2) {
			unsigned byte = 0;
			sscanf(text, "%2x", &byte);
			if (used < size)
				bytes[used++] = (uint8_t)byte;
		}
		if (*text == '*') {
			unsigned long times = strtoul(text + 1, (char **)&text, 10);
			for (; times > 1 && used < size; times--, used++)
				bytes[used] = bytes[piece];
		}
		text += *text == '+';
	}
	return used;
}

int main(void)
{
	test_frames();
	test_requests();
	test_tcp();
	test_users();
	test_words();
	printf("guest: %u checks, %u failed\n", checked, failed);
	return failed > 0;
}
