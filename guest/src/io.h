/* Small things around file descriptors. */
#ifndef DORMOUSE_IO_H
#define DORMOUSE_IO_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

uint64_t now_ms(void);
uint64_t now_us(void);

/* To the kernel's log, and so to the console: the only place left when the agent's port is not. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes a short text into a file of a kernel file system. False with errno. */
bool write_at(int dir, const char *path, const char *text);
/* Reads a short file with a NUL at its end; -1 with errno. */
ssize_t read_at(int dir, const char *path, char *text, size_t size);
/* Makes a file with this text, or fills the one that is there in place. */
bool put_at(int dir, const char *path, const char *text, size_t length, mode_t mode);
bool write_all(int fd, const void *bytes, size_t count);
/* Makes every missing directory of an absolute path; those that are there stay as they are. */
bool make_path(const char *path, mode_t mode);
/* Makes the directories above the last name of a path. */
bool make_parents(const char *path, mode_t mode);

#endif
