#include "pack.h"

#include <limits.h>
#include <lz4.h>
#include <lz4hc.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "fail.h"

struct packer {
    enum packing packing;
    int level;
    ZSTD_CCtx *zstd;
};

/* As lz4's own command has it: below 3 there is but the quick way. */
enum { LZ4_THOROUGH = 3, LZ4_MOST = 9, ZSTD_MOST = 19 };

struct packer *new_packer(const char *word, int level) {
    struct packer *packer = calloc(1, sizeof *packer);
    if (packer == NULL) fail("no memory to compress in");
    packer->level = level;
    if (strcmp(word, "zstd") == 0 && level >= 1 && level <= ZSTD_MOST) packer->packing = PACK_ZSTD;
    else if (strcmp(word, "lz4") == 0 && level >= 0 && level <= LZ4_MOST) packer->packing = PACK_LZ4;
    else fail("there is no compression %s of level %d", word, level);
    if (packer->packing == PACK_ZSTD && (packer->zstd = ZSTD_createCCtx()) == NULL) fail("no memory to compress in");
    return packer;
}

enum packing packing_of(const struct packer *packer) { return packer->packing; }

size_t pack(struct packer *packer, const char *piece, size_t bytes, char *to) {
    // One byte less than there is: what does not fit is not worth it.
    if (packer->packing == PACK_ZSTD) {
        size_t packed = ZSTD_compressCCtx(packer->zstd, to, bytes - 1, piece, bytes, packer->level);
        return ZSTD_isError(packed) ? 0 : packed;
    }
    int packed = packer->level < LZ4_THOROUGH ? LZ4_compress_default(piece, to, (int)bytes, (int)bytes - 1)
                                              : LZ4_compress_HC(piece, to, (int)bytes, (int)bytes - 1, packer->level);
    return packed > 0 ? (size_t)packed : 0;
}

void free_packer(struct packer *packer) {
    ZSTD_freeCCtx(packer->zstd);
    free(packer);
}

struct unpacker {
    enum packing packing;
    ZSTD_DCtx *zstd;
};

struct unpacker *new_unpacker(enum packing packing) {
    struct unpacker *unpacker = calloc(1, sizeof *unpacker);
    if (unpacker == NULL) return NULL;
    unpacker->packing = packing;
    if (packing != PACK_ZSTD || (unpacker->zstd = ZSTD_createDCtx()) != NULL) return unpacker;
    free(unpacker);
    return NULL;
}

int unpack(struct unpacker *unpacker, const char *packed, size_t packed_bytes, char *piece, size_t bytes) {
    if (packed_bytes > INT_MAX || bytes > INT_MAX) return -1;
    if (unpacker->packing == PACK_LZ4) return LZ4_decompress_safe(packed, piece, (int)packed_bytes, (int)bytes) == (int)bytes ? 0 : -1;
    // In one go and into a place of its size: what a frame says of its own size or window is not believed, and no memory is taken for it.
    if (unpacker->packing == PACK_ZSTD) return ZSTD_decompressDCtx(unpacker->zstd, piece, bytes, packed, packed_bytes) == bytes ? 0 : -1;
    return -1;
}

void free_unpacker(struct unpacker *unpacker) {
    if (unpacker == NULL) return;
    ZSTD_freeDCtx(unpacker->zstd);
    free(unpacker);
}
