#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"

#define DEPTH_MAX 128

static uint64_t kind_of(mode_t mode)
{
	return S_ISREG(mode) ? KIND_FILE : S_ISDIR(mode) ? KIND_DIRECTORY : S_ISLNK(mode) ? KIND_SYMLINK : KIND_OTHER;
}

static void put_facts(struct tlv_writer *fields, const struct stat *s, const char *target)
{
	tlv_put_number(fields, TAG_FILE_KIND, kind_of(s->st_mode));
	tlv_put_number(fields, TAG_MODE, s->st_mode & 07777);
	tlv_put_number(fields, TAG_UID, s->st_uid);
	tlv_put_number(fields, TAG_GID, s->st_gid);
	tlv_put_number(fields, TAG_SIZE, (uint64_t)s->st_size);
	/* Before 1970 is 1970: the field has no sign. */
	tlv_put_number(fields, TAG_MTIME, s->st_mtime < 0 ? 0 : (uint64_t)s->st_mtime);
	if (target)
		tlv_put_text(fields, TAG_LINK_TARGET, target);
}

void files_stat(const struct errand *errand, const struct request *r)
{
	uint8_t bytes[8192];
	char target[4096];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	struct stat s;
	if (fstatat(AT_FDCWD, r->path, &s, r->follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno != ENOENT && errno != ENOTDIR) {
			errand_fail(errand, FRAME_REPLY, errno, NULL);
			return;
		}
		tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
		tlv_put_number(&fields, TAG_EXISTS, 0);
	} else {
		ssize_t n = S_ISLNK(s.st_mode) ? readlink(r->path, target, sizeof target - 1) : -1;
		if (n >= 0)
			target[n] = 0;
		tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
		tlv_put_number(&fields, TAG_EXISTS, 1);
		put_facts(&fields, &s, n >= 0 ? target : NULL);
	}
	errand_send_fields(errand, FRAME_REPLY, &fields);
}

/* Opens the directory a path's last name is in; parents that are missing are made. The name is what follows the last slash. */
static int open_parent(const char *path, const char **name)
{
	char parent[4096];
	const char *slash = strrchr(path, '/');
	if (!make_parents(path, 0755))
		return -1;
	snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
	*name = slash + 1;
	return open(*parent ? parent : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static bool set_facts(int dir, const char *name, const struct request *r, mode_t mode)
{
	if (r->has_owner && fchownat(dir, name, (uid_t)r->uid, (gid_t)r->gid, AT_SYMLINK_NOFOLLOW) < 0)
		return false;
	/* After the owner, whose change would drop setuid. A link has no mode. */
	if (r->file_kind != KIND_SYMLINK && fchmodat(dir, name, mode, 0) < 0)
		return false;
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = (time_t)r->mtime } };
	return !r->has_mtime || utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Gives the bytes written, or -1 with errno. */
static int64_t receive(int from, int file)
{
	static char chunk[65536];
	int64_t total = 0;
	for (;;) {
		ssize_t n = read(from, chunk, sizeof chunk);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -1 : total;
		if (!write_all(file, chunk, (size_t)n))
			return -1;
		total += n;
	}
}

static bool set_file_facts(int fd, const struct request *r)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = (time_t)r->mtime } };
	return (!r->has_owner || fchown(fd, (uid_t)r->uid, (gid_t)r->gid) == 0) &&
	       /* After the owner, whose change would drop setuid. */
	       fchmod(fd, r->has_mode ? (mode_t)r->mode : 0644) == 0 && (!r->has_mtime || futimens(fd, times) == 0);
}

/* A file appears whole under its name or not at all: it is written beside it first. */
static int64_t put_file(int dir, const char *name, const struct errand *errand, const struct request *r)
{
	char draft[64];
	snprintf(draft, sizeof draft, ".dormouse-%d.partial", getpid());
	int fd = openat(dir, draft, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	errno = EINTR;
	int64_t written = receive(errand->bytes, fd);
	bool done = written >= 0 && errand_was_sent_all(errand, (uint64_t)written) && set_file_facts(fd, r) &&
		    renameat(dir, draft, dir, name) == 0;
	int error = errno;
	close(fd);
	if (!done)
		unlinkat(dir, draft, 0);
	errno = error;
	return done ? written : -1;
}

void files_put(const struct errand *errand, const struct request *r)
{
	const char *name;
	char path[4096];
	int64_t written = 0;
	/* "/etc/" names the directory as "/etc" does. */
	snprintf(path, sizeof path, "%s", r->path);
	for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
		path[n - 1] = 0;
	int dir = open_parent(path, &name);
	if (dir < 0) {
		errand_fail(errand, FRAME_END, errno, NULL);
		return;
	}
	struct stat there;
	bool exists = fstatat(dir, *name ? name : ".", &there, AT_SYMLINK_NOFOLLOW) == 0, done = true;
	/* A link to a directory is that directory: /bin of an image may be usr/bin. */
	if (exists && r->file_kind == KIND_DIRECTORY && S_ISLNK(there.st_mode))
		exists = fstatat(dir, name, &there, 0) == 0;
	if (exists && S_ISDIR(there.st_mode) && r->file_kind != KIND_DIRECTORY)
		errno = EISDIR, done = false;
	else if (exists && !S_ISDIR(there.st_mode) && r->file_kind == KIND_DIRECTORY)
		errno = ENOTDIR, done = false;
	else if (r->file_kind == KIND_FILE)
		done = (written = put_file(dir, name, errand, r)) >= 0;
	else if (r->file_kind == KIND_SYMLINK)
		done = (!exists || unlinkat(dir, name, 0) == 0) && symlinkat(r->link_target, dir, name) == 0 && set_facts(dir, name, r, 0);
	else if (!exists)
		done = mkdirat(dir, name, 0755) == 0 && set_facts(dir, name, r, r->has_mode ? (mode_t)r->mode : 0755);
	else if (r->has_mode || r->has_owner || r->has_mtime)
		done = set_facts(dir, *name ? name : ".", r, r->has_mode ? (mode_t)r->mode : there.st_mode & 07777);
	if (!done) {
		errand_fail(errand, FRAME_END, errno, NULL);
		return;
	}
	uint8_t bytes[64];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
	tlv_put_number(&fields, TAG_BYTES, (uint64_t)written);
	errand_send_fields(errand, FRAME_END, &fields);
}

/* The directories that a walk stands in, to see a loop of followed links. */
struct above {
	dev_t device;
	ino_t inode;
};

struct walk {
	const struct errand *errand;
	bool follow;
	/* As the daemon is told: begins with the last name of what was asked for. */
	char path[4096];
	struct above above[DEPTH_MAX];
};

static bool walk(struct walk *w, int dir, const char *name, size_t path_length, int depth);

static void send_entry(struct walk *w, const struct stat *s, const char *target)
{
	uint8_t bytes[16384];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_text(&fields, TAG_PATH, w->path);
	put_facts(&fields, s, target);
	errand_send_fields(w->errand, FRAME_ENTRY, &fields);
}

static bool send_bytes(struct walk *w, int fd)
{
	static char chunk[FRAME_PAYLOAD_MAX];
	for (;;) {
		ssize_t n = read(fd, chunk, sizeof chunk);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		errand_send(w->errand, FRAME_DATA, n == 0 ? CHANNEL_STDOUT | FLAG_EOF : CHANNEL_STDOUT, chunk, (size_t)n);
		if (n == 0)
			return true;
	}
}

static bool walk_directory(struct walk *w, int fd, const struct stat *s, size_t length, int depth)
{
	for (int i = 0; i < depth; i++)
		if (w->above[i].device == s->st_dev && w->above[i].inode == s->st_ino) {
			errno = ELOOP;
			return false;
		}
	if (depth == DEPTH_MAX) {
		errno = ENAMETOOLONG;
		return false;
	}
	w->above[depth] = (struct above){ s->st_dev, s->st_ino };
	DIR *list = fdopendir(fd);
	if (!list)
		return false;
	bool good = true;
	for (;;) {
		errno = 0;
		struct dirent *entry = readdir(list);
		if (!entry) {
			good = errno == 0;
			break;
		}
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		size_t n = strlen(entry->d_name);
		if (length + 1 + n >= sizeof w->path) {
			errno = ENAMETOOLONG;
			good = false;
			break;
		}
		w->path[length] = '/';
		memcpy(w->path + length + 1, entry->d_name, n + 1);
		if (!(good = walk(w, fd, entry->d_name, length + 1 + n, depth + 1)))
			break;
		w->path[length] = 0;
	}
	int error = errno;
	closedir(list);
	errno = error;
	return good;
}

static bool walk(struct walk *w, int dir, const char *name, size_t length, int depth)
{
	struct stat s;
	if (fstatat(dir, name, &s, w->follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0) {
		/* Gone since its directory was read, or a link to nothing: the link itself is then what there is. */
		if (errno != ENOENT || depth == 0)
			return false;
		if (!w->follow || fstatat(dir, name, &s, AT_SYMLINK_NOFOLLOW) < 0)
			return true;
	}
	if (S_ISLNK(s.st_mode)) {
		char target[4096];
		ssize_t n = readlinkat(dir, name, target, sizeof target - 1);
		if (n < 0)
			return false;
		target[n] = 0;
		send_entry(w, &s, target);
		return true;
	}
	/* Devices, sockets and FIFOs are no content. */
	if (!S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode))
		return true;
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (w->follow ? 0 : O_NOFOLLOW));
	if (fd < 0)
		return false;
	/* What was opened is what is told, should it have been changed in between. */
	bool good = fstat(fd, &s) == 0;
	if (good && (S_ISREG(s.st_mode) || S_ISDIR(s.st_mode)))
		send_entry(w, &s, NULL);
	if (good && S_ISDIR(s.st_mode))
		/* Closes it. */
		return walk_directory(w, fd, &s, length, depth);
	if (good && S_ISREG(s.st_mode))
		good = send_bytes(w, fd);
	int error = errno;
	close(fd);
	errno = error;
	return good;
}

void files_get(const struct errand *errand, const struct request *r)
{
	static struct walk w;
	char path[4096];
	snprintf(path, sizeof path, "%s", r->path);
	for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
		path[n - 1] = 0;
	const char *name = strrchr(path, '/') + 1;
	w.errand = errand;
	w.follow = r->follow;
	snprintf(w.path, sizeof w.path, "%s", *name ? name : ".");
	if (!walk(&w, AT_FDCWD, path, strlen(w.path), 0)) {
		errand_fail(errand, FRAME_END, errno, w.path);
		return;
	}
	uint8_t bytes[32];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, STATUS_OK);
	errand_send_fields(errand, FRAME_END, &fields);
}
