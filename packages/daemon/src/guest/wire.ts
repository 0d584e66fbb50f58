/**
 * The numbers of the protocol between daemon and guest; docs/protocol.md says what they mean.
 * The guest's twin of this file is guest/src/proto.h; `wire.test.ts` reads that one and compares.
 */
export const PROTO_VERSION = 1
export const FRAME_HEADER = 8
export const FRAME_PAYLOAD_MAX = 32768
export const REQUEST_MAX = 262144
export const STREAMS_MAX = 256
export const WINDOW_GUEST = 65536
export const WINDOW_MAX = 1048576

export const FRAME = {
  HELLO: 1,
  WELCOME: 2,
  REQUEST: 3,
  REPLY: 4,
  DATA: 5,
  CREDIT: 6,
  CONTROL: 7,
  END: 8,
  RESET: 9,
  EVENT: 10,
  ENTRY: 11,
} as const

export const FLAG = { MORE: 1, CHANNEL: 3, EOF: 128 } as const

/** Files go by channel 0 towards the guest and channel 1 from it. */
export const CHANNEL = { STDIN: 0, STDOUT: 1, STDERR: 2 } as const

export const OP = {
  PING: 1,
  GO: 2,
  EXEC: 3,
  STAT: 4,
  PUT: 5,
  GET: 6,
  FREEZE: 7,
  THAW: 8,
  SHUTDOWN: 12,
  WAKE: 13,
  REHEARSE: 14,
  MOUNT: 15,
  UNMOUNT: 16,
  GROW: 17,
  VACATE: 18,
  OFFLINE: 19,
  DIAL: 20,
} as const

export const STATUS = {
  OK: 0,
  BAD_REQUEST: 1,
  NOT_FOUND: 2,
  DENIED: 3,
  WRONG_PHASE: 4,
  BUSY: 5,
  FAILED: 6,
  UNSUPPORTED: 7,
  TIMED_OUT: 8,
  IS_DIRECTORY: 9,
  NOT_DIRECTORY: 10,
  NO_SPACE: 11,
  CANCELLED: 12,
  NOT_STARTED: 13,
} as const

export const PHASE = { PARKED: 0, STARTING: 1, RUNNING: 2, EXITED: 3 } as const
export const EVENT = { EXITED: 1, STARTED: 2 } as const
export const KIND = { FILE: 1, DIRECTORY: 2, SYMLINK: 3, OTHER: 4 } as const
export const WORKLOAD = { EXEC: 1, SYSTEMD: 2 } as const

/** A field whose tag has this bit must be understood, or the whole message is refused. */
export const TAG_CRITICAL = 32768

export const TAG = {
  VERSION: 1,
  VERSION_MIN: 2,
  VERSION_MAX: 3,
  EPOCH: 4,
  BOOT_NONCE: 5,
  PHASE: 6,
  OP: 7,
  STATUS: 8,
  ERRNO: 9,
  MESSAGE: 10,
  WINDOW: 11,
  EXIT_CODE: 12,
  STARTED: 13,
  ALREADY: 14,
  EVENT: 15,
  SIGNAL: 16,
  ROWS: 17,
  COLS: 18,
  ARG: 20,
  ENV: 21,
  CWD: 22,
  USER: 23,
  TTY: 24,
  TIMEOUT_MS: 25,
  GRACE_MS: 26,
  PATH: 30,
  FOLLOW: 31,
  EXISTS: 32,
  FILE_KIND: 33,
  MODE: 34,
  UID: 35,
  GID: 36,
  SIZE: 37,
  MTIME: 38,
  LINK_TARGET: 39,
  BYTES: 40,
  CONFIG_ID: 50,
  CLOCK_NS: 51,
  ENTROPY: 52,
  HOSTNAME: 53,
  MACHINE_ID: 54,
  HOSTS_LINE: 55,
  OVERLAY: 58,
  MODULES: 59,
  VOLUME: 60,
  MAC: 61,
  ADDRESS4: 62,
  PREFIX4: 63,
  GATEWAY4: 64,
  ADDRESS6: 65,
  PREFIX6: 66,
  GATEWAY6: 67,
  DNS: 68,
  MTU: 69,
  WORKLOAD_KIND: 70,
  STOP_SIGNAL: 71,
  SERIAL: 72,
  READ_ONLY: 73,
  FS: 74,
  NAME: 76,
  MICROS: 77,
  FROZEN: 78,
  BEST_EFFORT: 79,
  PARTLY: 80,
  CLOSE_CONNECTIONS: 81,
  CLOSED: 82,
  ANNOUNCE: 83,
  ADDRESS: 84,
  PORT: 85,
  AUTHORITY: 86,
} as const
