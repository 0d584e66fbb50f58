#pragma once
/* Pieces of memory, packed: each by itself, so that any can be unpacked alone and no more than one has to be held. */
#include <stddef.h>
#include <stdint.h>

enum packing { PACK_NONE, PACK_ZSTD, PACK_LZ4, PACKINGS };

struct packer;

/* `word` is zstd or lz4. Ends the program when there is none of that name and level. */
struct packer *new_packer(const char *word, int level);
enum packing packing_of(const struct packer *packer);
/* Into `to`, which has as much room as there is to pack. Returns how much it has become; 0: it would not become less. */
size_t pack(struct packer *packer, const char *piece, size_t bytes, char *to);
void free_packer(struct packer *packer);

/* One for each that unpacks at the same time. NULL: there is no memory for it. */
struct unpacker;
struct unpacker *new_unpacker(enum packing packing);
/* What was packed by whomever: -1 unless it becomes exactly `bytes`. Never writes beyond them. */
int unpack(struct unpacker *unpacker, const char *packed, size_t packed_bytes, char *piece, size_t bytes);
void free_unpacker(struct unpacker *unpacker);
