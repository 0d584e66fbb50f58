#include "tlv.h"

#include <string.h>

#define HEAD 6

bool tlv_next(struct tlv_reader *r, struct tlv_field *field)
{
	if (r->left == 0 || r->broken)
		return false;
	r->broken = true;
	if (r->left < HEAD)
		return false;
	const uint8_t *at = r->at;
	size_t length = at[2] | (size_t)at[3] << 8 | (size_t)at[4] << 16 | (size_t)at[5] << 24;
	if (length > r->left - HEAD)
		return false;
	field->tag = (uint16_t)(at[0] | at[1] << 8);
	field->value = at + HEAD;
	field->length = length;
	r->at += HEAD + length;
	r->left -= HEAD + length;
	r->broken = false;
	return true;
}

bool tlv_number(const struct tlv_field *field, uint64_t min, uint64_t max, uint64_t *value)
{
	if (field->length != 8)
		return false;
	uint64_t number = 0;
	for (int i = 7; i >= 0; i--)
		number = number << 8 | field->value[i];
	if (number < min || number > max)
		return false;
	*value = number;
	return true;
}

bool tlv_bytes(const struct tlv_field *field, void *out, size_t length)
{
	if (field->length != length)
		return false;
	memcpy(out, field->value, length);
	return true;
}

void tlv_put(struct tlv_writer *w, uint16_t tag, const void *value, size_t length)
{
	if (w->full || w->size - w->used < HEAD || w->size - w->used - HEAD < length) {
		w->full = true;
		return;
	}
	uint8_t *at = w->bytes + w->used;
	at[0] = (uint8_t)tag;
	at[1] = (uint8_t)(tag >> 8);
	for (int i = 0; i < 4; i++)
		at[2 + i] = (uint8_t)(length >> 8 * i);
	if (length > 0)
		memcpy(at + HEAD, value, length);
	w->used += HEAD + length;
}

void tlv_put_number(struct tlv_writer *w, uint16_t tag, uint64_t value)
{
	uint8_t bytes[8];
	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t)(value >> 8 * i);
	tlv_put(w, tag, bytes, sizeof bytes);
}

void tlv_put_text(struct tlv_writer *w, uint16_t tag, const char *text)
{
	tlv_put(w, tag, text, strlen(text));
}
