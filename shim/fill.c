/*
 * dormouse-fill FILE: puts the tree of a tar stream into the empty ext4 in FILE. Nothing is laid out in the host's own tree, and the host's
 * kernel mounts nothing: the file system is written as data (libext2fs). The stream is the daemon's own writing (images/tar-writer.ts):
 * ustar and PAX headers, each path once, targets of hard links before the links. What is in it is a stranger's.
 *
 * Ends with 0 when all is in and flushed, 3 when it does not fit, 4 when an entry cannot be, 5 when the host's disk is full, 1 for all else;
 * standard error says why.
 */
#include <ctype.h>
#include <et/com_err.h>
#include <ext2fs/ext2fs.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#define BLOCK 512
#define LONGEST_PATH 4096
#define LARGEST_PAX (32u << 20)
#define LARGEST_MAP (16u << 20)
#define XATTRS_MAX 256
#define CHUNK (256 * 1024)
#define MEMORY_MAX (2ull << 30)
#define LOST "lost+found"

enum { OTHER = 1, FULL = 3, WRONG = 4, HOST_FULL = 5 };

struct xattr {
    const char *name;
    const void *value;
    size_t length;
};

/* One entry, as its headers say. Texts stand in `pax`, or are short. */
struct entry {
    char path[LONGEST_PATH], link[LONGEST_PATH];
    char type;
    uint32_t mode, uid, gid, major, minor;
    int64_t mtime;
    uint64_t size, real_size;
    bool is_sparse;
    struct xattr xattrs[XATTRS_MAX];
    size_t xattr_count;
    char *pax;
};

static ext2_filsys fs;

static _Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
static _Noreturn void fail(int code, const char *format, ...)
{
    va_list words;
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    /* What is half made is thrown away: nothing is flushed. */
    _exit(code);
}

/* A name for a person: no byte that a terminal would obey. */
static const char *shown(const char *name)
{
    static char text[120];
    size_t i;
    for (i = 0; i < sizeof text - 1 && name[i]; i++)
        text[i] = isprint((unsigned char)name[i]) ? name[i] : '?';
    text[i] = 0;
    return text;
}

static void check(errcode_t error, const char *what, const char *path)
{
    if (error == 0)
        return;
    if (error == ENOSPC || error == EDQUOT || error == EXT2_ET_SHORT_WRITE)
        fail(HOST_FULL, "the disk of the host is full");
    if (error == EXT2_ET_BLOCK_ALLOC_FAIL || error == EXT2_ET_INODE_ALLOC_FAIL || error == EXT2_ET_TOOSMALL)
        fail(FULL, "it does not fit, from %s on", shown(path));
    fail(OTHER, "%s %s: %s", what, shown(path), error_message(error));
}

static void read_all(void *to, size_t count)
{
    if (fread(to, 1, count, stdin) != count)
        fail(OTHER, "the stream is cut short");
}

static void skip(uint64_t count)
{
    static char nowhere[4096];
    for (size_t part; count > 0; count -= part) {
        part = count < sizeof nowhere ? (size_t)count : sizeof nowhere;
        read_all(nowhere, part);
    }
}

static uint64_t padding_of(uint64_t size)
{
    return (BLOCK - size % BLOCK) % BLOCK;
}

static uint64_t octal(const char *digits, size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count && digits[i] >= '0' && digits[i] <= '7'; i++)
        value = value << 3 | (uint64_t)(digits[i] - '0');
    return value;
}

static void take_text(char *to, const char *from, size_t length)
{
    if (length >= LONGEST_PATH || memchr(from, 0, length))
        fail(WRONG, "a name is too long");
    memcpy(to, from, length);
    to[length] = 0;
}

static int64_t number(const char *text)
{
    return strtoll(text, NULL, 10);
}

/* `value` has a NUL behind it, put there by the caller. */
static void take_record(struct entry *e, const char *key, char *value, size_t length)
{
    if (strcmp(key, "path") == 0 || strcmp(key, "GNU.sparse.name") == 0)
        take_text(e->path, value, length);
    else if (strcmp(key, "linkpath") == 0)
        take_text(e->link, value, length);
    else if (strcmp(key, "size") == 0)
        e->size = (uint64_t)number(value);
    else if (strcmp(key, "uid") == 0)
        e->uid = (uint32_t)number(value);
    else if (strcmp(key, "gid") == 0)
        e->gid = (uint32_t)number(value);
    else if (strcmp(key, "mtime") == 0)
        e->mtime = number(value);
    else if (strcmp(key, "GNU.sparse.realsize") == 0) {
        e->real_size = (uint64_t)number(value);
        e->is_sparse = true;
    } else if (strncmp(key, "SCHILY.xattr.", 13) == 0) {
        if (e->xattr_count == XATTRS_MAX)
            fail(WRONG, "%s has more than %d extended attributes", shown(e->path), XATTRS_MAX);
        e->xattrs[e->xattr_count++] = (struct xattr){ key + 13, value, length };
    }
}

/* `LENGTH KEY=VALUE\n`, one after the other; values may hold anything. */
static void read_pax(struct entry *e, uint64_t size)
{
    if (size > LARGEST_PAX || e->pax)
        fail(WRONG, "an extended header is too large");
    char *at = e->pax = malloc((size_t)size + 1), *end = at + size;
    if (!at)
        fail(OTHER, "out of memory");
    read_all(at, (size_t)size);
    *end = 0;
    skip(padding_of(size));
    while (at < end) {
        char *key;
        unsigned long length = strtoul(at, &key, 10);
        if (*key++ != ' ' || length > (size_t)(end - at) || length <= (size_t)(key - at))
            fail(OTHER, "an extended header is damaged");
        char *next = at + length, *value = memchr(key, '=', (size_t)(next - key));
        if (!value || next[-1] != '\n')
            fail(OTHER, "an extended header is damaged");
        *value++ = 0;
        next[-1] = 0;
        take_record(e, key, value, (size_t)(next - 1 - value));
        at = next;
    }
}

/* False at the end of the archive. */
static bool read_entry(struct entry *e)
{
    char header[BLOCK];
    memset(e, 0, sizeof *e);
    read_all(header, sizeof header);
    bool has_pax = header[156] == 'x';
    if (header[0] == 0)
        return false;
    if (has_pax) {
        uint64_t size = octal(header + 124, 11);
        read_pax(e, size);
        read_all(header, sizeof header);
    }
    struct entry given = *e;
    e->type = header[156];
    e->mode = (uint32_t)octal(header + 100, 7);
    e->major = (uint32_t)octal(header + 329, 7);
    e->minor = (uint32_t)octal(header + 337, 7);
    if (!given.uid)
        e->uid = (uint32_t)octal(header + 108, 7);
    if (!given.gid)
        e->gid = (uint32_t)octal(header + 116, 7);
    if (!given.size)
        e->size = octal(header + 124, 11);
    if (!given.mtime)
        e->mtime = (int64_t)octal(header + 136, 11);
    if (!given.path[0])
        take_text(e->path, header, strnlen(header, 100));
    if (!given.link[0])
        take_text(e->link, header + 157, strnlen(header + 157, 100));
    return true;
}

/*
 * What has been made, by directory and name. The library looks through a directory from its beginning for every name, which takes hours
 * where there are a hundred thousand.
 */
struct made {
    ext2_ino_t dir, ino;
    bool is_directory;
    /* In `names`; 0 where nothing is. */
    size_t name;
};

static struct made *table;
static char *names;
static size_t names_size = 1, names_used = 1;
static size_t table_size, table_used;
static uint64_t seed;

static struct made *slot_of(const struct made *in, size_t size, ext2_ino_t dir, const char *name)
{
    uint64_t hash = seed ^ dir;
    for (const char *c = name; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 0x100000001b3ull;
    hash ^= hash >> 32;
    size_t at = (size_t)hash & (size - 1);
    while (in[at].name && (in[at].dir != dir || strcmp(names + in[at].name, name) != 0))
        at = (at + 1) & (size - 1);
    return (struct made *)&in[at];
}

static struct made *find(ext2_ino_t dir, const char *name)
{
    struct made *found = table_size ? slot_of(table, table_size, dir, name) : NULL;
    return found && found->name ? found : NULL;
}

static void grow_table(void)
{
    size_t size = table_size ? 2 * table_size : 1024;
    struct made *grown = calloc(size, sizeof *grown);
    if (!grown)
        fail(OTHER, "out of memory");
    for (size_t i = 0; i < table_size; i++)
        if (table[i].name)
            *slot_of(grown, size, table[i].dir, names + table[i].name) = table[i];
    free(table);
    table = grown;
    table_size = size;
}

static void remember(ext2_ino_t dir, const char *name, ext2_ino_t ino, bool is_directory)
{
    if (2 * table_used >= table_size)
        grow_table();
    size_t length = strlen(name) + 1;
    if (length > names_size - names_used) {
        names_size += names_size + 65536;
        names = realloc(names, names_size);
        if (!names)
            fail(OTHER, "out of memory");
    }
    memcpy(names + names_used, name, length);
    *slot_of(table, table_size, dir, name) = (struct made){ dir, ino, is_directory, names_used };
    names_used += length;
    table_used++;
}

/* Behind the last name of a directory, whose last block alone is looked at. False when that is full. */
static bool append_name(ext2_ino_t dir, const char *name, ext2_ino_t ino, int kind, const char *path)
{
    static char block[65536];
    struct ext2_inode inode;
    blk64_t at;
    size_t length = strlen(name), needed = EXT2_DIR_REC_LEN(length);
    check(ext2fs_read_inode(fs, dir, &inode), "reading", path);
    check(ext2fs_bmap2(fs, dir, &inode, NULL, 0, EXT2_I_SIZE(&inode) / fs->blocksize - 1, NULL, &at), "reading", path);
    check(ext2fs_read_dir_block4(fs, at, block, 0, dir), "reading", path);
    unsigned end = fs->blocksize - (ext2fs_has_feature_metadata_csum(fs->super) ? sizeof(struct ext2_dir_entry_tail) : 0), size = 0;
    struct ext2_dir_entry *last = NULL;
    for (unsigned offset = 0; offset + 8 <= end; offset += size) {
        last = (struct ext2_dir_entry *)(block + offset);
        check(ext2fs_get_rec_len(fs, last, &size), "reading", path);
        if (size < 8 || size > end - offset)
            fail(OTHER, "a directory is damaged");
    }
    unsigned taken = last->inode ? EXT2_DIR_REC_LEN(ext2fs_dirent_name_len(last)) : 0;
    if (size - taken < needed)
        return false;
    if (taken > 0) {
        check(ext2fs_set_rec_len(fs, taken, last), "writing", path);
        last = (struct ext2_dir_entry *)((char *)last + taken);
        check(ext2fs_set_rec_len(fs, size - taken, last), "writing", path);
    }
    last->inode = ino;
    ext2fs_dirent_set_name_len(last, (int)length);
    ext2fs_dirent_set_file_type(last, kind);
    memcpy(last->name, name, length);
    check(ext2fs_write_dir_block4(fs, at, block, 0, dir), "writing", path);
    return true;
}

static void add_name(ext2_ino_t dir, const char *name, ext2_ino_t ino, int kind, const char *path)
{
    if (!append_name(dir, name, ino, kind, path)) {
        check(ext2fs_expand_dir(fs, dir), "making room for", path);
        if (!append_name(dir, name, ino, kind, path))
            fail(OTHER, "there is no room for %s", shown(path));
    }
    remember(dir, name, ino, kind == EXT2_FT_DIR);
}

/* The 16 bits that count its links have room for no more. */
#define DIRECTORIES_MAX 64990

static ext2_ino_t make_directory(ext2_ino_t dir, const char *name, const char *path)
{
    ext2_ino_t ino;
    struct ext2_inode parent;
    check(ext2fs_read_inode(fs, dir, &parent), "reading", path);
    if (parent.i_links_count > DIRECTORIES_MAX)
        fail(WRONG, "there are more than %d directories beside %s", DIRECTORIES_MAX, shown(path));
    check(ext2fs_new_inode(fs, dir, LINUX_S_IFDIR | 0755, NULL, &ino), "making", path);
    check(ext2fs_mkdir(fs, dir, ino, NULL), "making", path);
    add_name(dir, name, ino, EXT2_FT_DIR, path);
    return ino;
}

/* The daemon has taken such names out, or refused them. */
static bool leads_astray(const char *path)
{
    for (const char *part = path; part; part = strchr(part, '/')) {
        part += *part == '/';
        size_t length = strcspn(part, "/");
        if ((length == 0 && *path) || length > 255 || (length == 1 && part[0] == '.') || (length == 2 && memcmp(part, "..", 2) == 0))
            return true;
    }
    return false;
}

/* Takes `path` apart in place; gives the directory, makes those that are missing, and the last name: empty for the root. */
static ext2_ino_t parent_of(char *path, const char **name)
{
    /* Of the entry before, which mostly is in the same. */
    static char last_path[LONGEST_PATH];
    static ext2_ino_t last;
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/')
        path[--length] = 0;
    if (strcmp(path, ".") == 0)
        path[0] = 0;
    if (leads_astray(path))
        fail(WRONG, "%s is no name", shown(path));
    char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    if (!slash)
        return EXT2_ROOT_INO;
    *slash = 0;
    ext2_ino_t dir = EXT2_ROOT_INO;
    if (last && strcmp(path, last_path) == 0) {
        dir = last;
    } else {
        char walked[LONGEST_PATH], *rest = NULL;
        strcpy(walked, path);
        for (char *part = strtok_r(walked, "/", &rest); part; part = strtok_r(NULL, "/", &rest)) {
            const struct made *next = find(dir, part);
            if (next && !next->is_directory)
                fail(WRONG, "a part of %s is no directory", shown(path));
            dir = next ? next->ino : make_directory(dir, part, path);
        }
        strcpy(last_path, path);
        last = dir;
    }
    *slash = '/';
    return dir;
}

static uint32_t epoch_of(int64_t time)
{
    return (uint32_t)((uint64_t)(time - (int32_t)time) >> 32) & 3;
}

/* Owner, mode and time, once all else is written; the links of a directory stay as they are. */
static void dress(ext2_ino_t ino, const struct entry *e)
{
    struct ext2_inode_large inode;
    check(ext2fs_read_inode_full(fs, ino, (struct ext2_inode *)&inode, sizeof inode), "reading", e->path);
    inode.i_mode = (uint16_t)((inode.i_mode & LINUX_S_IFMT) | (e->mode & 07777));
    inode.i_uid = (uint16_t)e->uid;
    inode.i_gid = (uint16_t)e->gid;
    ext2fs_set_i_uid_high(inode, (uint16_t)(e->uid >> 16));
    ext2fs_set_i_gid_high(inode, (uint16_t)(e->gid >> 16));
    inode.i_mtime = inode.i_ctime = inode.i_atime = (uint32_t)e->mtime;
    if (inode.i_extra_isize >= 16)
        inode.i_mtime_extra = inode.i_ctime_extra = inode.i_atime_extra = epoch_of(e->mtime);
    check(ext2fs_write_inode_full(fs, ino, (struct ext2_inode *)&inode, sizeof inode), "writing", e->path);
    if (e->xattr_count == 0)
        return;
    struct ext2_xattr_handle *handle;
    check(ext2fs_xattrs_open(fs, ino, &handle), "reading attributes of", e->path);
    for (size_t i = 0; i < e->xattr_count; i++) {
        errcode_t error = ext2fs_xattr_set(handle, e->xattrs[i].name, e->xattrs[i].value, e->xattrs[i].length);
        if (error == EXT2_ET_EA_NO_SPACE)
            fail(WRONG, "the extended attributes of %s are too large", shown(e->path));
        check(error, "writing attributes of", e->path);
    }
    check(ext2fs_xattrs_close(&handle), "writing attributes of", e->path);
}

static ext2_ino_t new_inode(ext2_ino_t dir, const struct entry *e, uint16_t kind, struct ext2_inode *inode)
{
    ext2_ino_t ino;
    check(ext2fs_new_inode(fs, dir, kind | 0600, NULL, &ino), "making", e->path);
    ext2fs_inode_alloc_stats2(fs, ino, +1, 0);
    memset(inode, 0, sizeof *inode);
    inode->i_mode = kind | 0600;
    inode->i_links_count = 1;
    return ino;
}

static bool is_zero(const char *bytes, size_t count)
{
    return count > 0 && bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0;
}

static void write_at(ext2_file_t file, uint64_t offset, const char *bytes, size_t count, const char *path)
{
    check(ext2fs_file_llseek(file, offset, EXT2_SEEK_SET, NULL), "writing", path);
    for (unsigned wrote; count > 0; bytes += wrote, count -= wrote)
        check(ext2fs_file_write(file, bytes, (unsigned)count, &wrote), "writing", path);
}

/* The next `length` bytes of the stream, from `offset` on. Whole blocks of zeros are left out: they are holes. */
static void copy(ext2_file_t file, uint64_t offset, uint64_t length, const char *path)
{
    static char bytes[CHUNK];
    for (size_t part; length > 0; length -= part, offset += part) {
        part = length < CHUNK ? (size_t)length : CHUNK;
        read_all(bytes, part);
        size_t begun = 0;
        for (size_t at = 0; at < part; at += fs->blocksize) {
            size_t size = part - at < fs->blocksize ? part - at : fs->blocksize;
            if (!is_zero(bytes + at, size))
                continue;
            if (at > begun)
                write_at(file, offset + begun, bytes + begun, at - begun, path);
            begun = at + size;
        }
        if (part > begun)
            write_at(file, offset + begun, bytes + begun, part - begun, path);
    }
}

/* GNU's sparse format 1.0: a map as text, filled up to a block, before the stored parts. */
static void copy_sparse(ext2_file_t file, const struct entry *e)
{
    uint64_t taken = 0, count = 0;
    size_t used = 0, room = 4096;
    char *map = malloc(room), line[32];
    size_t digits = 0;
    uint64_t numbers = 0, wanted = 1, *regions = NULL;
    while (map && numbers < wanted) {
        if (e->size - taken < BLOCK || taken >= LARGEST_MAP)
            fail(OTHER, "the map of %s is damaged", shown(e->path));
        read_all(map, BLOCK);
        taken += BLOCK;
        for (size_t i = 0; i < BLOCK && numbers < wanted; i++) {
            if (map[i] != '\n') {
                if (digits == sizeof line - 1 || !isdigit((unsigned char)map[i]))
                    fail(OTHER, "the map of %s is damaged", shown(e->path));
                line[digits++] = map[i];
                continue;
            }
            line[digits] = 0;
            digits = 0;
            uint64_t value = strtoull(line, NULL, 10);
            if (numbers++ == 0) {
                count = value;
                if (count > LARGEST_MAP / 4)
                    fail(WRONG, "%s has too many parts", shown(e->path));
                wanted = 1 + 2 * count;
                regions = calloc(2 * count + 1, sizeof *regions);
                if (!regions)
                    fail(OTHER, "out of memory");
            } else {
                regions[used++] = value;
            }
        }
    }
    free(map);
    uint64_t left = e->size - taken;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t offset = regions[2 * i], length = regions[2 * i + 1];
        if (length > left || offset > e->real_size || length > e->real_size - offset)
            fail(OTHER, "the map of %s is damaged", shown(e->path));
        copy(file, offset, length, e->path);
        left -= length;
    }
    free(regions);
    skip(left);
}

static void make_file(ext2_ino_t dir, const char *name, const struct entry *e)
{
    struct ext2_inode inode;
    ext2_extent_handle_t extents;
    ext2_file_t file;
    ext2_ino_t ino = new_inode(dir, e, LINUX_S_IFREG, &inode);
    errcode_t error = ext2fs_inode_size_set(fs, &inode, e->is_sparse ? e->real_size : e->size);
    if (error)
        fail(FULL, "%s is larger than a file can be", shown(e->path));
    check(ext2fs_extent_open2(fs, ino, &inode, &extents), "making", e->path);
    ext2fs_extent_free(extents);
    check(ext2fs_write_new_inode(fs, ino, &inode), "making", e->path);
    check(ext2fs_file_open(fs, ino, EXT2_FILE_WRITE, &file), "opening", e->path);
    if (e->is_sparse)
        copy_sparse(file, e);
    else
        copy(file, 0, e->size, e->path);
    check(ext2fs_file_close(file), "writing", e->path);
    skip(padding_of(e->size));
    add_name(dir, name, ino, EXT2_FT_REG_FILE, e->path);
    dress(ino, e);
}

static void make_special(ext2_ino_t dir, const char *name, const struct entry *e)
{
    static const struct {
        char type;
        uint16_t mode;
        int kind;
    } kinds[] = { { '3', LINUX_S_IFCHR, EXT2_FT_CHRDEV }, { '4', LINUX_S_IFBLK, EXT2_FT_BLKDEV }, { '6', LINUX_S_IFIFO, EXT2_FT_FIFO } };
    size_t i = e->type == '3' ? 0 : e->type == '4' ? 1 : 2;
    struct ext2_inode inode;
    ext2_ino_t ino = new_inode(dir, e, kinds[i].mode, &inode);
    if (e->type == '6')
        ;
    else if (e->major < 256 && e->minor < 256)
        inode.i_block[0] = e->major << 8 | e->minor;
    else
        inode.i_block[1] = (e->minor & 0xff) | e->major << 8 | (e->minor & ~0xffu) << 12;
    check(ext2fs_write_new_inode(fs, ino, &inode), "making", e->path);
    add_name(dir, name, ino, kinds[i].kind, e->path);
    dress(ino, e);
}

static void make_symlink(ext2_ino_t dir, const char *name, const struct entry *e)
{
    ext2_ino_t ino;
    if (strlen(e->link) >= fs->blocksize)
        fail(WRONG, "the link %s leads to a name that is too long", shown(e->path));
    check(ext2fs_new_inode(fs, dir, LINUX_S_IFLNK | 0777, NULL, &ino), "making", e->path);
    check(ext2fs_symlink(fs, dir, ino, NULL, e->link), "making", e->path);
    add_name(dir, name, ino, EXT2_FT_SYMLINK, e->path);
    dress(ino, e);
}

static int kind_of(uint16_t mode)
{
    switch (mode & LINUX_S_IFMT) {
    case LINUX_S_IFREG: return EXT2_FT_REG_FILE;
    case LINUX_S_IFLNK: return EXT2_FT_SYMLINK;
    case LINUX_S_IFCHR: return EXT2_FT_CHRDEV;
    case LINUX_S_IFBLK: return EXT2_FT_BLKDEV;
    case LINUX_S_IFIFO: return EXT2_FT_FIFO;
    default: return EXT2_FT_UNKNOWN;
    }
}

static void make_link(ext2_ino_t dir, const char *name, struct entry *e)
{
    struct ext2_inode inode;
    const char *last;
    ext2_ino_t from = parent_of(e->link, &last);
    const struct made *found = *last ? find(from, last) : NULL;
    if (!found)
        fail(WRONG, "the hard link %s leads nowhere", shown(e->path));
    ext2_ino_t target = found->ino;
    check(ext2fs_read_inode(fs, target, &inode), "reading", e->link);
    if (LINUX_S_ISDIR(inode.i_mode) || inode.i_links_count >= 65000)
        fail(WRONG, "the hard link %s cannot be", shown(e->path));
    inode.i_links_count++;
    check(ext2fs_write_inode(fs, target, &inode), "writing", e->link);
    add_name(dir, name, target, kind_of(inode.i_mode), e->path);
}

static void put(struct entry *e)
{
    const char *name;
    ext2_ino_t dir = parent_of(e->path, &name);
    const struct made *there = *name ? find(dir, name) : NULL;
    bool is_taken = there && (e->type != '5' || !there->is_directory);
    if (is_taken || (!*name && e->type != '5'))
        fail(WRONG, "%s is there already", shown(e->path));
    if (e->type == '5') {
        dress(!*name ? EXT2_ROOT_INO : there ? there->ino : make_directory(dir, name, e->path), e);
        return;
    }
    switch (e->type) {
    case '0': make_file(dir, name, e); break;
    case '1': make_link(dir, name, e); break;
    case '2': make_symlink(dir, name, e); break;
    case '3':
    case '4':
    case '6': make_special(dir, name, e); break;
    default: fail(OTHER, "%s is of a kind that is not known", shown(e->path));
    }
}

/* It works on a stranger's data with a large library: what it does not need it may not have. */
static void confine(void)
{
    struct rlimit memory = { MEMORY_MAX, MEMORY_MAX }, files = { 16, 16 }, none = { 0, 0 };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setrlimit(RLIMIT_AS, &memory);
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_NPROC, &none);
    setrlimit(RLIMIT_CORE, &none);
}

int main(int argc, char **argv)
{
    static struct entry entry;
    if (argc != 2)
        fail(OTHER, "usage: dormouse-fill FILE < TAR");
    confine();
    initialize_ext2_error_table();
    check(ext2fs_open(argv[1], EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &fs), "opening", argv[1]);
    check(ext2fs_read_bitmaps(fs), "reading", argv[1]);
    /* Names are chosen by strangers: without a seed they could choose them to collide. */
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
        fail(OTHER, "there are no random numbers");
    ext2_ino_t lost;
    check(ext2fs_lookup(fs, EXT2_ROOT_INO, LOST, strlen(LOST), NULL, &lost), "reading", argv[1]);
    remember(EXT2_ROOT_INO, LOST, lost, true);
    while (read_entry(&entry)) {
        put(&entry);
        free(entry.pax);
    }
    check(ext2fs_close_free(&fs), "closing", argv[1]);
    return 0;
}
