#include "trust.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"

#define OWN_DIR "/etc/dormouse"
#define OWN "egress.pem"
/* A link to the image's bundle; to the authority alone where it has none. */
#define BUNDLE "ca-bundle.pem"
/* From here update-ca-certificates takes it, so that it outlives one. */
#define LOCAL_DIR "/usr/local/share/ca-certificates"
#define LOCAL "dormouse-egress.crt"

/* Those of Debian and Alpine, Fedora, SUSE, Alpine's OpenSSL, Nix. Some are links to others of them. */
static const char *const BUNDLES[] = {
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
	"/etc/ssl/certs/ca-bundle.crt",
};
/* The usual ones have 200 to 500 KB. */
#define BUNDLE_MAX (8 << 20)

static char problem[512];

static const char *explain(const char *path)
{
	snprintf(problem, sizeof problem, "The authority of its proxy could not be kept in %s: %s", path, strerror(errno));
	return problem;
}

/* On the root's own file system, whatever links the image has: never a device, a kernel's file, or what the agent has open. */
static int open_within(const char *path, uint64_t flags)
{
	struct open_how how = { .flags = flags | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV };
	return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

/* The directories above are made one by one, so that no link of the image's leads a new one elsewhere. */
static int open_dir(const char *path)
{
	char above[64], name[64];
	int dir = open_within(path, O_PATH | O_DIRECTORY);
	if (dir >= 0 || errno != ENOENT || strcmp(path, "/") == 0)
		return dir;
	const char *slash = strrchr(path, '/');
	snprintf(above, sizeof above, "%.*s", slash == path ? 1 : (int)(slash - path), path);
	snprintf(name, sizeof name, "%s", slash + 1);
	int parent = open_dir(above);
	bool done = parent >= 0 && mkdirat(parent, name, 0755) == 0;
	int error = errno;
	if (parent >= 0)
		close(parent);
	errno = error;
	return done ? open_within(path, O_PATH | O_DIRECTORY) : -1;
}

/* Whatever has that name is replaced, never written through. */
static bool put_new(int dir, const char *name, const char *text)
{
	char draft[64];
	snprintf(draft, sizeof draft, ".%s.new", name);
	if (unlinkat(dir, draft, 0) < 0 && errno != ENOENT)
		return false;
	int fd = openat(dir, draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd < 0)
		return false;
	bool done = write_all(fd, text, strlen(text));
	int error = errno;
	close(fd);
	if (done && renameat(dir, draft, dir, name) == 0)
		return true;
	if (done)
		error = errno;
	unlinkat(dir, draft, 0);
	errno = error;
	return false;
}

static const char *keep(const char *dir_path, const char *name, const char *text)
{
	int dir = open_dir(dir_path);
	const char *wrong = dir >= 0 && put_new(dir, name, text) ? NULL : explain(dir_path);
	int error = errno;
	if (dir >= 0)
		close(dir);
	errno = error;
	return wrong;
}

/* Does the file hold this text? Its last byte is told too. False with errno when it cannot be read. */
static bool look(int fd, size_t size, const char *text, bool *holds, char *last)
{
	char *bytes = malloc(size + 1);
	size_t got = 0;
	if (!bytes)
		return false;
	for (ssize_t n; got < size && (n = pread(fd, bytes + got, size - got, (off_t)got)) != 0; got += (size_t)n)
		if (n < 0) {
			free(bytes);
			return false;
		}
	*holds = memmem(bytes, got, text, strlen(text)) != NULL;
	*last = got > 0 ? bytes[got - 1] : '\n';
	free(bytes);
	return true;
}

enum outcome { ADDED, PASSED_OVER, FAILED };

static enum outcome pass_over(const char *path, const char *why)
{
	say("%s was left as it is: %s", path, why);
	return PASSED_OVER;
}

static enum outcome add_to(const char *path, const char *text)
{
	struct stat found;
	bool holds;
	char last;
	/* Looked at before it is opened: to open a device is to do something with it, and to open a pipe is to wait. */
	int there = open_within(path, O_PATH);
	if (there < 0 && (errno == ENOENT || errno == ENOTDIR))
		return PASSED_OVER;
	if (there < 0)
		return pass_over(path, strerror(errno));
	bool is_file = fstat(there, &found) == 0 && S_ISREG(found.st_mode);
	close(there);
	if (!is_file || found.st_size > BUNDLE_MAX)
		return pass_over(path, "it is no bundle of certificates");
	int fd = open_within(path, O_RDWR | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return errno == ENOSPC ? FAILED : pass_over(path, strerror(errno));
	enum outcome outcome = FAILED;
	if (!look(fd, (size_t)found.st_size, text, &holds, &last)) {
		outcome = pass_over(path, strerror(errno));
	} else if (holds) {
		outcome = ADDED;
	} else {
		off_t end = lseek(fd, found.st_size, SEEK_SET);
		if (end == found.st_size && (last == '\n' || write_all(fd, "\n", 1)) && write_all(fd, text, strlen(text))) {
			outcome = ADDED;
		} else {
			/* Half a certificate would spoil the next. */
			int error = errno;
			if (ftruncate(fd, found.st_size) < 0)
				say("%s could not be put back: %s", path, strerror(errno));
			errno = error;
		}
	}
	int error = errno;
	close(fd);
	errno = error;
	return outcome;
}

static const char *link_bundle(const char *target)
{
	int dir = open_dir(OWN_DIR);
	bool done = dir >= 0 && (unlinkat(dir, BUNDLE, 0) == 0 || errno == ENOENT) && symlinkat(target, dir, BUNDLE) == 0;
	const char *wrong = done ? NULL : explain(OWN_DIR);
	if (dir >= 0)
		close(dir);
	return wrong;
}

const char *trust_authority(const struct request *config)
{
	const char *wrong, *bundle = OWN;
	if ((wrong = keep(OWN_DIR, OWN, config->authority)))
		return wrong;
	/* A volume may lie there, or a link of the image's: then only the next update-ca-certificates forgets it. */
	if ((wrong = keep(LOCAL_DIR, LOCAL, config->authority))) {
		if (errno == ENOSPC)
			return wrong;
		say("%s", wrong);
	}
	for (size_t i = 0; i < sizeof BUNDLES / sizeof *BUNDLES; i++) {
		enum outcome outcome = add_to(BUNDLES[i], config->authority);
		if (outcome == FAILED)
			return explain(BUNDLES[i]);
		if (outcome == ADDED && strcmp(bundle, OWN) == 0)
			bundle = BUNDLES[i];
	}
	return link_bundle(bundle);
}
