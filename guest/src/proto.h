/*
 * The numbers of the protocol between daemon and guest; docs/protocol.md says what they mean.
 * The daemon's twin of this file is packages/daemon/src/guest/wire.ts; a test there reads this one and compares.
 */
#ifndef DORMOUSE_PROTO_H
#define DORMOUSE_PROTO_H

#define PROTO_VERSION 1
#define FRAME_HEADER 8
#define FRAME_PAYLOAD_MAX 32768
/* COBS adds one byte to every 254 and one at the front; the delimiter is not counted. */
#define FRAME_ENCODED_MAX (FRAME_HEADER + FRAME_PAYLOAD_MAX + (FRAME_HEADER + FRAME_PAYLOAD_MAX) / 254 + 1)
#define REQUEST_MAX 262144
#define STREAMS_MAX 256
#define WINDOW_GUEST 65536
#define WINDOW_MAX 1048576

/* Frame types. */
#define FRAME_HELLO 1
#define FRAME_WELCOME 2
#define FRAME_REQUEST 3
#define FRAME_REPLY 4
#define FRAME_DATA 5
#define FRAME_CREDIT 6
#define FRAME_CONTROL 7
#define FRAME_END 8
#define FRAME_RESET 9
#define FRAME_EVENT 10
#define FRAME_ENTRY 11

/* Frame flags. */
#define FLAG_MORE 1
#define FLAG_CHANNEL 3
#define FLAG_EOF 128

/* Channels of a stream. Files go by channel 0 towards the guest and channel 1 from it. */
#define CHANNEL_STDIN 0
#define CHANNEL_STDOUT 1
#define CHANNEL_STDERR 2

/* Requests. */
#define OP_PING 1
#define OP_GO 2
#define OP_EXEC 3
#define OP_STAT 4
#define OP_PUT 5
#define OP_GET 6
#define OP_FREEZE 7
#define OP_THAW 8
#define OP_SHUTDOWN 12
#define OP_WAKE 13
#define OP_REHEARSE 14
#define OP_MOUNT 15
#define OP_UNMOUNT 16
#define OP_GROW 17
#define OP_VACATE 18
#define OP_OFFLINE 19
#define OP_DIAL 20

/* How a request ended. */
#define STATUS_OK 0
#define STATUS_BAD_REQUEST 1
#define STATUS_NOT_FOUND 2
#define STATUS_DENIED 3
#define STATUS_WRONG_PHASE 4
#define STATUS_BUSY 5
#define STATUS_FAILED 6
#define STATUS_UNSUPPORTED 7
#define STATUS_TIMED_OUT 8
#define STATUS_IS_DIRECTORY 9
#define STATUS_NOT_DIRECTORY 10
#define STATUS_NO_SPACE 11
#define STATUS_CANCELLED 12
#define STATUS_NOT_STARTED 13

/* Where the guest is in its life. */
#define PHASE_PARKED 0
#define PHASE_STARTING 1
#define PHASE_RUNNING 2
#define PHASE_EXITED 3

#define EVENT_EXITED 1
#define EVENT_STARTED 2

#define KIND_FILE 1
#define KIND_DIRECTORY 2
#define KIND_SYMLINK 3
#define KIND_OTHER 4

#define WORKLOAD_EXEC 1
#define WORKLOAD_SYSTEMD 2

/* Fields. A field whose tag has this bit must be understood, or the whole request is refused. */
#define TAG_CRITICAL 32768

#define TAG_VERSION 1
#define TAG_VERSION_MIN 2
#define TAG_VERSION_MAX 3
#define TAG_EPOCH 4
#define TAG_BOOT_NONCE 5
#define TAG_PHASE 6
#define TAG_OP 7
#define TAG_STATUS 8
#define TAG_ERRNO 9
#define TAG_MESSAGE 10
#define TAG_WINDOW 11
#define TAG_EXIT_CODE 12
#define TAG_STARTED 13
#define TAG_ALREADY 14
#define TAG_EVENT 15
#define TAG_SIGNAL 16
#define TAG_ROWS 17
#define TAG_COLS 18
#define TAG_ARG 20
#define TAG_ENV 21
#define TAG_CWD 22
#define TAG_USER 23
#define TAG_TTY 24
#define TAG_TIMEOUT_MS 25
#define TAG_GRACE_MS 26
#define TAG_PATH 30
#define TAG_FOLLOW 31
#define TAG_EXISTS 32
#define TAG_FILE_KIND 33
#define TAG_MODE 34
#define TAG_UID 35
#define TAG_GID 36
#define TAG_SIZE 37
#define TAG_MTIME 38
#define TAG_LINK_TARGET 39
#define TAG_BYTES 40
#define TAG_CONFIG_ID 50
#define TAG_CLOCK_NS 51
#define TAG_ENTROPY 52
#define TAG_HOSTNAME 53
#define TAG_MACHINE_ID 54
#define TAG_HOSTS_LINE 55
#define TAG_OVERLAY 58
#define TAG_MODULES 59
#define TAG_VOLUME 60
#define TAG_MAC 61
#define TAG_ADDRESS4 62
#define TAG_PREFIX4 63
#define TAG_GATEWAY4 64
#define TAG_ADDRESS6 65
#define TAG_PREFIX6 66
#define TAG_GATEWAY6 67
#define TAG_DNS 68
#define TAG_MTU 69
#define TAG_WORKLOAD_KIND 70
#define TAG_STOP_SIGNAL 71
#define TAG_SERIAL 72
#define TAG_READ_ONLY 73
#define TAG_FS 74
#define TAG_NAME 76
#define TAG_MICROS 77
#define TAG_FROZEN 78
#define TAG_BEST_EFFORT 79
#define TAG_PARTLY 80
#define TAG_CLOSE_CONNECTIONS 81
#define TAG_CLOSED 82
#define TAG_ANNOUNCE 83
#define TAG_ADDRESS 84
#define TAG_PORT 85
#define TAG_AUTHORITY 86

#endif
