/* Fields: tag (2 bytes), length (4 bytes), value; all little-endian. A number is 8 bytes, a nested message is a value. */
#ifndef DORMOUSE_TLV_H
#define DORMOUSE_TLV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tlv_field {
	uint16_t tag;
	const uint8_t *value;
	size_t length;
};

struct tlv_reader {
	const uint8_t *at;
	size_t left;
	/* Set when the bytes were no fields; the reader then gives no more of them. */
	bool broken;
};

bool tlv_next(struct tlv_reader *reader, struct tlv_field *field);

bool tlv_number(const struct tlv_field *field, uint64_t min, uint64_t max, uint64_t *value);
bool tlv_bytes(const struct tlv_field *field, void *out, size_t length);

/* Writes into a fixed buffer; when it does not fit, `full` is set and nothing more is written. */
struct tlv_writer {
	uint8_t *bytes;
	size_t used, size;
	bool full;
};

void tlv_put(struct tlv_writer *writer, uint16_t tag, const void *value, size_t length);
void tlv_put_number(struct tlv_writer *writer, uint16_t tag, uint64_t value);
void tlv_put_text(struct tlv_writer *writer, uint16_t tag, const char *text);

#endif
