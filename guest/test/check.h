/* A test is a function; what does not hold is printed with its place, and the run ends with a code. */
#ifndef DORMOUSE_CHECK_H
#define DORMOUSE_CHECK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHECK(what) check_that((what), #what, __FILE__, __LINE__, NULL)
#define CHECK_IN(what, name) check_that((what), #what, __FILE__, __LINE__, (name))

void check_that(bool holds, const char *what, const char *file, int line, const char *name);

/* A fixture's lines, its columns divided. False at the end. */
struct fixture {
	void *file;
	char *columns[8];
	char line[400000];
};
bool fixture_open(struct fixture *fixture, const char *name);
bool fixture_next(struct fixture *fixture, size_t columns);
/* `7a*300+00` as bytes; gives how many. */
size_t fixture_bytes(const char *text, uint8_t *bytes, size_t size);

void test_frames(void);
void test_requests(void);
void test_tcp(void);
void test_users(void);
void test_words(void);

#endif
