#include "request.h"

#include <stdlib.h>
#include <string.h>

#include "tlv.h"

static void mark(struct request *r, unsigned tag)
{
	if (tag < sizeof r->present * 8)
		r->present[tag / 8] |= (uint8_t)(1 << tag % 8);
}

bool request_has(const struct request *r, unsigned tag)
{
	return tag < sizeof r->present * 8 && (r->present[tag / 8] & 1 << tag % 8);
}

static void *take(struct request *r, size_t size, size_t align)
{
	size_t start = (r->arena_used + align - 1) / align * align;
	if (start > r->arena_size || size > r->arena_size - start)
		return NULL;
	r->arena_used = start + size;
	return r->arena + start;
}

/* A copy with a NUL at its end, of min..max bytes without NULs in it. */
static char *text(struct request *r, const struct tlv_field *f, size_t min, size_t max)
{
	if (f->length < min || f->length > max || (f->length > 0 && memchr(f->value, 0, f->length)))
		return NULL;
	char *copy = take(r, f->length + 1, 1);
	if (!copy)
		return NULL;
	if (f->length > 0)
		memcpy(copy, f->value, f->length);
	copy[f->length] = 0;
	return copy;
}

/* All fields of one tag, as a list that ends in NULL. */
static char **list(struct request *r, const uint8_t *bytes, size_t length, uint16_t tag, size_t max_count, size_t max_length)
{
	struct tlv_reader reader = { bytes, length, false };
	struct tlv_field f;
	size_t count = 0;
	while (tlv_next(&reader, &f))
		count += f.tag == tag;
	if (count > max_count)
		return NULL;
	char **words = take(r, (count + 1) * sizeof *words, sizeof *words);
	if (!words)
		return NULL;
	reader = (struct tlv_reader){ bytes, length, false };
	count = 0;
	while (tlv_next(&reader, &f))
		if (f.tag == tag && !(words[count++] = text(r, &f, 0, max_length)))
			return NULL;
	words[count] = NULL;
	return words;
}

static bool is_hostname(const char *name)
{
	size_t n = strlen(name);
	if (n < 1 || n > 63 || name[0] == '-' || name[n - 1] == '-')
		return false;
	for (; *name; name++)
		if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || (*name >= '0' && *name <= '9') ||
		      *name == '-' || *name == '.'))
			return false;
	return true;
}

static bool is_hex(const char *digits)
{
	return strspn(digits, "0123456789abcdef") == strlen(digits);
}

/* Lines go into files that others parse: one line each. */
static bool is_line(const char *line)
{
	return !strpbrk(line, "\n\r");
}

/* Goes into files that others parse: text of PEM and nothing else, and whole lines. */
static bool is_pem(const char *text)
{
	static const char first[] = "-----BEGIN CERTIFICATE-----\n", last[] = "\n-----END CERTIFICATE-----\n";
	size_t n = strlen(text);
	return n > sizeof first + sizeof last && strncmp(text, first, sizeof first - 1) == 0 && strcmp(text + n - (sizeof last - 1), last) == 0 &&
	       strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= -\n") == n;
}

static bool flag(const struct tlv_field *f, bool *value)
{
	uint64_t number;
	if (!tlv_number(f, 0, 1, &number))
		return false;
	*value = number;
	return true;
}

static bool volume(struct request *r, const struct tlv_field *nested)
{
	if (r->volume_count == VOLUMES_MAX)
		return false;
	struct volume *v = &r->volumes[r->volume_count++];
	struct tlv_reader reader = { nested->value, nested->length, false };
	struct tlv_field f;
	while (tlv_next(&reader, &f)) {
		bool good = true;
		switch (f.tag) {
		case TAG_SERIAL: good = (v->serial = text(r, &f, 1, 20)); break;
		case TAG_PATH: good = (v->path = text(r, &f, 2, 4095)) && v->path[0] == '/'; break;
		case TAG_READ_ONLY: good = flag(&f, &v->read_only); break;
		case TAG_SIZE: good = tlv_number(&f, 0, INT64_MAX, &v->room); break;
		case TAG_FS: good = (v->fs = text(r, &f, 1, 15)) && strcmp(v->fs, "ext4") == 0; break;
		default: good = !(f.tag & TAG_CRITICAL);
		}
		if (!good)
			return false;
	}
	return !reader.broken && v->serial && v->path && v->fs;
}

static bool field(struct request *r, const struct tlv_field *f)
{
	struct network *n = &r->network;
	switch (f->tag) {
	case TAG_OP: return tlv_number(f, 1, 255, &r->op);
	case TAG_VERSION_MIN: return tlv_number(f, 1, 65535, &r->version_min);
	case TAG_VERSION_MAX: return tlv_number(f, 1, 65535, &r->version_max);
	case TAG_EPOCH: return tlv_bytes(f, r->epoch, sizeof r->epoch);
	case TAG_WINDOW: return tlv_number(f, 1, WINDOW_MAX, &r->window);
	case TAG_SIGNAL: return tlv_number(f, 1, 64, &r->signal);
	case TAG_ROWS: return tlv_number(f, 1, 65535, &r->rows);
	case TAG_COLS: return tlv_number(f, 1, 65535, &r->cols);
	case TAG_CWD: return (r->cwd = text(r, f, 1, 4095)) && r->cwd[0] == '/';
	case TAG_USER: return (r->user = text(r, f, 0, 511));
	case TAG_TTY: return flag(f, &r->tty);
	case TAG_TIMEOUT_MS: return tlv_number(f, 1, UINT32_MAX, &r->timeout_ms);
	case TAG_GRACE_MS: return tlv_number(f, 0, 86400000, &r->grace_ms);
	case TAG_PATH: return (r->path = text(r, f, 1, 4095)) && r->path[0] == '/';
	case TAG_FOLLOW: return flag(f, &r->follow);
	case TAG_FILE_KIND: return tlv_number(f, KIND_FILE, KIND_OTHER, &r->file_kind);
	case TAG_MODE: r->has_mode = true; return tlv_number(f, 0, 07777, &r->mode);
	case TAG_UID: r->has_owner = true; return tlv_number(f, 0, UINT32_MAX - 1, &r->uid);
	case TAG_GID: r->has_owner = true; return tlv_number(f, 0, UINT32_MAX - 1, &r->gid);
	case TAG_MTIME: r->has_mtime = true; return tlv_number(f, 0, INT64_MAX, &r->mtime);
	case TAG_SIZE: return tlv_number(f, 0, INT64_MAX, &r->size);
	case TAG_ADDRESS: return tlv_number(f, 0, INT64_MAX, &r->address);
	case TAG_PORT: return tlv_number(f, 1, 65535, &r->port);
	case TAG_LINK_TARGET: return (r->link_target = text(r, f, 1, 4095));
	case TAG_CONFIG_ID: return tlv_bytes(f, r->config_id, sizeof r->config_id);
	case TAG_CLOCK_NS: return tlv_number(f, 1, INT64_MAX, &r->clock_ns);
	case TAG_ENTROPY:
		r->entropy = f->value;
		r->entropy_length = f->length;
		return f->length >= 16 && f->length <= 512;
	case TAG_HOSTNAME: return (r->hostname = text(r, f, 1, 63)) && is_hostname(r->hostname);
	case TAG_MACHINE_ID: return (r->machine_id = text(r, f, 32, 32)) && is_hex(r->machine_id);
	case TAG_AUTHORITY: return (r->authority = text(r, f, 1, AUTHORITY_MAX)) && is_pem(r->authority);
	case TAG_BEST_EFFORT: return flag(f, &r->best_effort);
	case TAG_CLOSE_CONNECTIONS: return flag(f, &r->close_connections);
	case TAG_ANNOUNCE: return flag(f, &r->announce);
	case TAG_OVERLAY: return flag(f, &r->overlay);
	case TAG_MODULES: return flag(f, &r->modules);
	case TAG_VOLUME: return volume(r, f);
	case TAG_MAC: r->has_network = true; return tlv_bytes(f, n->mac, 6) && !(n->mac[0] & 1);
	case TAG_ADDRESS4: n->has4 = true; return tlv_bytes(f, n->address4, 4);
	case TAG_PREFIX4: return tlv_number(f, 0, 32, &n->prefix4);
	case TAG_GATEWAY4: n->has_gateway4 = true; return tlv_bytes(f, n->gateway4, 4);
	case TAG_ADDRESS6: n->has6 = true; return tlv_bytes(f, n->address6, 16);
	case TAG_PREFIX6: return tlv_number(f, 0, 128, &n->prefix6);
	case TAG_GATEWAY6: n->has_gateway6 = true; return tlv_bytes(f, n->gateway6, 16);
	case TAG_MTU: return tlv_number(f, 576, 65535, &n->mtu);
	case TAG_WORKLOAD_KIND: return tlv_number(f, WORKLOAD_EXEC, WORKLOAD_SYSTEMD, &r->workload_kind);
	case TAG_STOP_SIGNAL: return tlv_number(f, 1, 64, &r->signal);
	/* Lists, read below in one go. */
	case TAG_ARG:
	case TAG_ENV:
	case TAG_HOSTS_LINE:
	case TAG_DNS: return true;
	default: return !(f->tag & TAG_CRITICAL);
	}
}

const char *message_decode(struct request *r, const uint8_t *bytes, size_t length)
{
	memset(r, 0, sizeof *r);
	if (length > REQUEST_MAX)
		return "The request is too long";
	/* A field costs at least 6 bytes and needs at most its text, a NUL and a pointer. */
	r->arena_size = 3 * length + 256;
	r->arena = malloc(r->arena_size);
	if (!r->arena)
		return "Out of memory";
	struct tlv_reader reader = { bytes, length, false };
	struct tlv_field f;
	while (tlv_next(&reader, &f)) {
		if (!field(r, &f))
			return "A field has a value that is out of bounds";
		mark(r, f.tag);
	}
	if (reader.broken)
		return "The request is cut short";
	r->args = list(r, bytes, length, TAG_ARG, WORDS_MAX, 131071);
	r->env = list(r, bytes, length, TAG_ENV, WORDS_MAX, 131071);
	r->hosts = list(r, bytes, length, TAG_HOSTS_LINE, 256, 1024);
	r->dns = list(r, bytes, length, TAG_DNS, DNS_MAX, 64);
	if (!r->args || !r->env || !r->hosts || !r->dns)
		return "A list has too many words, or a word with a NUL";
	for (char **word = r->env; *word; word++)
		if (!strchr(*word + (**word != 0), '=') || **word == '=')
			return "A word of the environment is not NAME=value";
	for (char **line = r->hosts; *line; line++)
		if (!is_line(*line))
			return "A line for /etc/hosts is more than one line";
	for (char **address = r->dns; *address; address++)
		if (!is_line(*address))
			return "A name server is not an address";
	return NULL;
}

static const char *missing(const struct request *r, const uint8_t *tags, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (!request_has(r, tags[i]))
			return "A field that this request needs is missing";
	return NULL;
}

#define NEEDS(...) missing(r, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

const char *request_decode(struct request *r, const uint8_t *bytes, size_t length)
{
	const char *wrong = message_decode(r, bytes, length);
	if (wrong)
		return wrong;
	switch (r->op) {
	case OP_GO:
		return NEEDS(TAG_CONFIG_ID, TAG_CLOCK_NS, TAG_ENTROPY, TAG_HOSTNAME, TAG_MACHINE_ID, TAG_WORKLOAD_KIND, TAG_ARG,
			     TAG_CWD, TAG_STOP_SIGNAL);
	case OP_EXEC: return NEEDS(TAG_ARG, TAG_WINDOW);
	case OP_STAT: return NEEDS(TAG_PATH);
	case OP_PUT:
		wrong = NEEDS(TAG_PATH, TAG_FILE_KIND);
		if (!wrong && (r->file_kind == KIND_OTHER || (r->file_kind == KIND_SYMLINK) != (r->link_target != NULL)))
			wrong = "A link needs a target, and nothing else has one";
		return wrong;
	case OP_GET: return NEEDS(TAG_PATH, TAG_WINDOW);
	case OP_OFFLINE: return NEEDS(TAG_ADDRESS, TAG_SIZE, TAG_TIMEOUT_MS);
	case OP_DIAL: return NEEDS(TAG_PORT, TAG_WINDOW);
	case OP_WAKE: return NEEDS(TAG_CONFIG_ID, TAG_CLOCK_NS, TAG_ENTROPY);
	case OP_MOUNT:
	case OP_UNMOUNT: return NEEDS(TAG_VOLUME);
	case OP_GROW: return NEEDS(TAG_VOLUME, TAG_SIZE);
	/* Unknown operations are answered as such by whoever dispatches. */
	default: return NULL;
	}
}

void request_free(struct request *r)
{
	free(r->arena);
	r->arena = NULL;
}
