#include "check.h"

#include <stdlib.h>
#include <string.h>

#include "frame.h"
#include "tlv.h"

static struct fixture fixture;

struct seen {
	size_t count;
	struct frame last;
	uint8_t payload[FRAME_PAYLOAD_MAX];
};

static void see(void *context, const struct frame *frame)
{
	struct seen *seen = context;
	seen->count++;
	seen->last = *frame;
	memcpy(seen->payload, frame->payload, frame->length);
}

static void each_frame_goes_both_ways(void)
{
	static uint8_t payload[FRAME_PAYLOAD_MAX], wire[FRAME_ENCODED_MAX + 1], ours[FRAME_ENCODED_MAX + 1];
	static struct splitter splitter;
	static struct seen seen;
	for (bool more = fixture_open(&fixture, "frames.txt"); more && fixture_next(&fixture, 5);) {
		const char *name = fixture.columns[3];
		size_t length = fixture_bytes(fixture.columns[3], payload, sizeof payload);
		size_t expected = fixture_bytes(fixture.columns[4], wire, sizeof wire);
		struct frame frame = { (uint8_t)atoi(fixture.columns[0]), (uint8_t)atoi(fixture.columns[1]),
				       (uint32_t)strtoul(fixture.columns[2], NULL, 10), payload, length };
		size_t encoded = frame_encode(ours, &frame);
		CHECK_IN(encoded == expected && memcmp(ours, wire, encoded) == 0, name);
		/* In pieces of every awkward size. */
		for (size_t piece = 1; piece < 5000; piece = piece * 3 + 1) {
			memset(&seen, 0, sizeof seen);
			memset(&splitter, 0, sizeof splitter);
			for (size_t at = 0; at < expected; at += piece)
				splitter_feed(&splitter, wire + at, piece < expected - at ? piece : expected - at, see, &seen);
			CHECK_IN(seen.count == 1 && seen.last.type == frame.type && seen.last.flags == frame.flags, name);
			CHECK_IN(seen.last.stream == frame.stream && seen.last.length == length && memcmp(seen.payload, payload, length) == 0, name);
		}
	}
}

static void what_is_no_frame_is_dropped(void)
{
	static uint8_t raw[1024];
	for (bool more = fixture_open(&fixture, "broken-frames.txt"); more && fixture_next(&fixture, 2);) {
		struct frame frame;
		size_t length = fixture_bytes(fixture.columns[1], raw, sizeof raw);
		CHECK_IN(!frame_decode(raw, length, &frame), fixture.columns[0]);
	}
}

/* A daemon that died at any byte of any frame: the next one is understood from its first zero on. */
static void a_zero_is_always_a_fresh_start(void)
{
	static struct splitter splitter;
	static struct seen seen;
	uint8_t half[700], whole[64];
	static const uint8_t zero = 0;
	uint8_t body[600];
	for (size_t i = 0; i < sizeof body; i++)
		body[i] = (uint8_t)(i * 7);
	struct frame old = { FRAME_DATA, 0, 5, body, sizeof body }, hello = { FRAME_HELLO, 0, 0, (const uint8_t *)"hi", 2 };
	size_t half_length = frame_encode(half, &old), whole_length = frame_encode(whole, &hello);
	for (size_t cut = 0; cut < half_length - 1; cut++) {
		memset(&seen, 0, sizeof seen);
		memset(&splitter, 0, sizeof splitter);
		splitter_feed(&splitter, half, cut, see, &seen);
		splitter_feed(&splitter, &zero, 1, see, &seen);
		splitter_feed(&splitter, whole, whole_length, see, &seen);
		CHECK(seen.count == 1 && seen.last.type == FRAME_HELLO && seen.last.length == 2);
	}
}

static void a_flood_without_a_zero_takes_no_memory(void)
{
	static struct splitter splitter;
	static struct seen seen;
	uint8_t noise[1000], whole[64];
	memset(noise, 0x55, sizeof noise);
	for (int i = 0; i < 1000; i++)
		splitter_feed(&splitter, noise, sizeof noise, see, &seen);
	whole[0] = 0;
	struct frame hello = { FRAME_HELLO, 0, 0, (const uint8_t *)"hi", 2 };
	splitter_feed(&splitter, whole, 1 + frame_encode(whole + 1, &hello), see, &seen);
	CHECK(seen.count == 1 && seen.last.type == FRAME_HELLO);
}

static void answers_are_written_as_the_daemon_reads_them(void)
{
	static uint8_t expected[4096];
	for (bool more = fixture_open(&fixture, "answers.txt"); more && fixture_next(&fixture, 2);) {
		uint8_t bytes[4096];
		struct tlv_writer w = { bytes, 0, sizeof bytes, false };
		const char *name = fixture.columns[0];
		if (strcmp(name, "stat") == 0) {
			static const uint16_t tags[] = { TAG_STATUS, TAG_EXISTS, TAG_FILE_KIND, TAG_MODE, TAG_UID, TAG_GID, TAG_SIZE, TAG_MTIME };
			static const uint64_t values[] = { 0, 1, 3, 0777, 0, 0, 7, 1795462594 };
			for (size_t i = 0; i < 8; i++)
				tlv_put_number(&w, tags[i], values[i]);
			tlv_put_text(&w, TAG_LINK_TARGET, "busybox");
		} else if (strcmp(name, "end") == 0) {
			tlv_put_number(&w, TAG_STATUS, STATUS_OK);
			tlv_put_number(&w, TAG_EXIT_CODE, 137);
			tlv_put_text(&w, TAG_MESSAGE, "killed by signal 9 (SIGKILL) - OOM");
			tlv_put_number(&w, TAG_STARTED, 1);
		} else if (strcmp(name, "freeze") == 0) {
			tlv_put_number(&w, TAG_STATUS, STATUS_OK);
			tlv_put_number(&w, TAG_PARTLY, 1);
		} else if (strcmp(name, "wake") == 0) {
			static const uint8_t nonce[16] = { 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9 };
			tlv_put_number(&w, TAG_STATUS, STATUS_OK);
			tlv_put(&w, TAG_BOOT_NONCE, nonce, sizeof nonce);
			tlv_put_number(&w, TAG_PHASE, PHASE_RUNNING);
			tlv_put_number(&w, TAG_ALREADY, 0);
			tlv_put_number(&w, TAG_CLOSED, 3);
		} else {
			tlv_put_number(&w, TAG_STATUS, STATUS_WRONG_PHASE);
			tlv_put_text(&w, TAG_MESSAGE, "The workload is not running");
		}
		size_t length = fixture_bytes(fixture.columns[1], expected, sizeof expected);
		CHECK_IN(w.used == length && memcmp(bytes, expected, length) == 0, name);
	}
	uint8_t small[10];
	struct tlv_writer w = { small, 0, sizeof small, false };
	tlv_put_text(&w, TAG_MESSAGE, "too long for it");
	CHECK(w.full && w.used == 0);
}

void test_frames(void)
{
	each_frame_goes_both_ways();
	what_is_no_frame_is_dropped();
	a_zero_is_always_a_fresh_start();
	a_flood_without_a_zero_takes_no_memory();
	answers_are_written_as_the_daemon_reads_them();
}
