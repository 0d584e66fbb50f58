/**
 * The one table of errors: what each code means, its HTTP status, whether the same request may do better later, and what to do. The
 * daemon answers by it, docs/errors.md and the OpenAPI document are printed from it. Apart from errors.ts, so that a client that
 * only matches codes does not load it.
 */
import type { Method } from './endpoints.ts'
import type { ErrorCode } from './errors.ts'
import type { Route } from './routes.ts'

/**
 * May the same request do better later? Published clients repeat 408, 409, 429 and 5xx unless told not to.
 * `never` says `x-should-retry: false`; `later` gives `retry-after`; `as-is` leaves it to the client's own rules.
 */
export type Retry = 'never' | 'later' | 'as-is'

export interface ErrorRow {
  readonly status: number
  readonly retry: Retry
  /** When it is answered: a sentence without its full stop. */
  readonly when: string
  /** What to do, for answers that bring no hint of their own. That a request is malformed says by itself what to do. */
  readonly hint?: string
}

const never = (status: number, when: string, hint?: string): ErrorRow => ({ status, retry: 'never', when, ...(hint && { hint }) })
const later = (status: number, when: string, hint?: string): ErrorRow => ({ status, retry: 'later', when, ...(hint && { hint }) })
const asIs = (status: number, when: string, hint?: string): ErrorRow => ({ status, retry: 'as-is', when, ...(hint && { hint }) })

export const ERRORS: Readonly<Record<ErrorCode, ErrorRow>> = {
  // the request
  invalid_request: never(400, 'The request breaks the schema of its route, or two of its fields cannot both be'),
  invalid_name: never(400, 'A name or an image reference is malformed'),
  invalid_size: never(400, '`size` or `size_gb` is no size, or beyond what the daemon allows'),
  invalid_hotplug_size: never(400, '`hotplug_size` is no size, or no multiple that can be plugged'),
  invalid_overlay_size: never(400, '`overlay_size` is no size, too large, or smaller than what is there'),
  invalid_disk_io_bps: never(400, '`disk_io_bps` is no rate'),
  invalid_bandwidth_download: never(400, '`bandwidth_download` is no rate, or one that cannot be held'),
  invalid_bandwidth_upload: never(400, '`bandwidth_upload` is no rate, or one that cannot be held'),
  invalid_ttl: never(400, '`ttl` is no duration, or not one that can be kept'),
  invalid_expires_at: never(400, '`expires_at` is no time, or lies in the past'),
  invalid_auto_standby: never(400, 'A text inside `auto_standby` is malformed'),
  invalid_health_check: never(400, 'A text inside `health_check` is malformed, or what its type needs is missing'),
  invalid_restart_policy: never(400, 'A text inside `restart_policy` is malformed'),
  invalid_snapshot_policy: never(400, 'A text or a level inside `snapshot_policy` is malformed'),
  invalid_snapshot_compression: never(
    400,
    '`compression` has a level that its algorithm has not, or is asked for where there is no memory',
  ),
  invalid_compression_delay: never(400, '`compression_delay` is no duration'),
  invalid_platform: never(400, '`platform` is none that the daemon knows'),
  invalid_timeout: never(400, '`timeout` is no duration above 0'),
  invalid_image: never(400, 'What was imported or pulled is no image, or contradicts its digests'),
  invalid_target: never(400, 'The target of a push names no registry, repository and tag'),
  invalid_path: never(400, 'A path is not absolute, or leads where it may not'),
  invalid_pci_address: never(400, 'A PCI address is not written as the kernel writes them, such as 0000:65:00.0'),
  invalid_archive: never(400, 'The archive is no tar, or holds an entry that may not be unpacked'),

  // who asks
  unauthorized: never(
    401,
    'There is no token or ticket, or none that holds: it is malformed, of another secret, expired, revoked or used',
    'Send a bearer token: `dormouse token create` on the host makes one',
  ),
  forbidden: never(
    403,
    'The token lacks the scope that the route needs, or a browser asks from an origin that is not allowed',
    'Take a token whose scopes allow this: `dormouse token create --scope SCOPE`',
  ),

  // what is asked for
  not_found: never(404, 'There is no such thing, or nothing at this path', 'Look at what there is: `dormouse ps -a`, `dormouse image ls`'),
  ambiguous: never(409, 'A beginning of an id, or a name, fits more than one', 'Give more of the id, or the name'),
  name_conflict: never(409, 'Another one has this name', 'Take another name, or remove the one that has it'),
  already_exists: never(409, 'What was to be made is there already, under the id that was given', 'Take another id, or none: one is made'),
  invalid_state: never(
    409,
    'The instance is in a state in which this cannot be done (400 where a state that nothing can be waited into was named)',
    'Look at its state with `dormouse inspect`, and wait for the one you need with `dormouse wait`',
  ),
  conflict: never(409, 'What is there now, or is under way, does not allow it', 'Look at what is there now, then ask again'),
  in_use: never(409, 'Something else still needs it', 'Remove what uses it first: `dormouse ps -a` lists instances with their images'),
  port_in_use: never(409, 'A host port is taken', 'Take another host port; 0 picks a free one'),
  instance_expired: never(
    409,
    'The time of the instance is up; it is about to be deleted',
    'Make a new instance; give it a longer `ttl`, or none',
  ),
  instance_in_standby: never(409, 'The instance sleeps, or is about to', 'Restore it first: `dormouse restore`'),
  snapshot_unusable: never(
    409,
    'A memory cannot be loaded here: another kernel, VMM or CPU, or its files are damaged',
    'Its disk is whole: stop the instance to discard its memory, then start it',
  ),
  log_not_found: never(
    404,
    'Nothing has begun to write this log, and nothing is about to',
    'Ask for another log (`app`, `vmm` or `daemon`), or follow this one: a follower waits for it',
  ),
  device_not_found: never(
    404,
    'The host has no such device, or none is registered under it',
    'Look at what there is: `dormouse device ls`, `dormouse device available`',
  ),
  path_not_found: never(
    404,
    'There is nothing at this path in the guest',
    'Look at what is in the directory above: `dormouse exec NAME ls`',
  ),
  method_not_allowed: never(405, 'The path is there, with other methods', 'GET /openapi.json lists what there is, with its methods'),

  // images and registries
  // The contract says 400; a client that waits a moment gets its instance all the same.
  image_not_ready: later(
    400,
    'The image is still being pulled or converted',
    'Follow the pull with `dormouse image inspect`, then ask again',
  ),
  image_too_large: never(
    400,
    'The image is larger, or has more entries, than the daemon allows',
    'Take a smaller image, or raise DORMOUSE_MAX_IMAGE_SIZE or DORMOUSE_MAX_IMAGE_ENTRIES',
  ),
  archive_too_large: never(400, 'The archive does not fit into the volume', 'Ask for a larger volume, or leave files out of the archive'),
  platform_not_available: never(
    404,
    'The image is not there for this platform',
    'Leave out `platform`, or take an image that is built for it',
  ),
  // 401 would say that our own token is bad.
  registry_unauthorized: never(
    403,
    'The registry wants a login, or refuses the one it was given',
    'Give `credentials`, or a login in the docker config.json of the daemon’s user, or in the one that DORMOUSE_REGISTRY_CREDENTIALS_FILE names',
  ),
  registry_unavailable: later(
    502,
    'The registry cannot be reached, or answers with a fault of its own',
    'Check the name of the registry and that the host reaches it, then ask again',
  ),
  registry_refused: never(403, 'The registry says no, or may not be asked', 'Check the name of the image and what your login may read'),
  rate_limited: later(
    429,
    'A registry asks for patience, too many streams are open, or too many bad tokens came from this address',
    'Ask again after the time that Retry-After gives',
  ),
  credential_conflict: never(
    409,
    'The same work is under way with other credentials',
    'Wait for what is under way with other credentials, then ask again',
  ),

  // the host and the guest
  insufficient_resources: never(
    409,
    'The host has not enough processors, memory, disk or bandwidth left to promise',
    'Stop or remove instances, or ask for less: `dormouse df` shows what is given away',
  ),
  not_supported: never(
    501,
    'This version, this host or this hypervisor cannot do it',
    'The README lists what this version does not do yet',
  ),
  dependency_missing: never(
    500,
    'The host lacks a program or a right that the daemon needs',
    'Run `dormouse doctor` on the host: it says what is missing and how to mend it',
  ),
  guest_unavailable: later(
    503,
    'The agent in the guest does not answer',
    'Look at its logs with `dormouse logs --source vmm`; if it stays away, restart the instance',
  ),
  timed_out: asIs(
    504,
    'A step took longer than it may',
    'Ask again with a longer timeout; the logs of the instance and of the daemon say what took so long',
  ),
  shutting_down: later(503, 'The daemon is about to end', 'Ask again once the daemon is back'),
  internal_error: asIs(
    500,
    'A fault in the daemon; its log has it with the request id',
    'The log of the daemon has the reason: `journalctl -u dormouse`',
  ),
}

/** Refusals of the request itself, before any route: they carry `invalid_request` with a status of their own. */
export const BROKEN_REQUESTS: readonly { readonly status: number; readonly when: string; readonly of?: 'body' }[] = [
  { status: 408, when: 'The headers took longer than 20 s to arrive' },
  { status: 413, when: 'A JSON body is larger than 4 MiB', of: 'body' },
  { status: 415, when: 'The content type of the body is not one that the route takes', of: 'body' },
  { status: 431, when: 'The headers are larger than 16 KiB' },
]

/** Those that a request of this method may be answered with: a GET's body is not read. */
export const brokenOn = (method: Method): typeof BROKEN_REQUESTS => BROKEN_REQUESTS.filter(({ of }) => of === undefined || method !== 'GET')

/** What every route may answer, whatever it is about. */
const ANYWHERE: readonly ErrorCode[] = ['invalid_request', 'internal_error', 'shutting_down']
/** And every one that asks who calls. */
const ASKING: readonly ErrorCode[] = ['unauthorized', 'forbidden', 'rate_limited']
/** Whatever changes something is written down, and the disk may be full. */
const CHANGING: readonly ErrorCode[] = ['insufficient_resources']
/** What stands between the daemon and a VM. */
const WITH_A_VM: readonly ErrorCode[] = ['timed_out', 'guest_unavailable', 'dependency_missing', 'not_supported']

/** Every code that `route` may answer, each once. */
export function errorsOf(route: Route): readonly ErrorCode[] {
  const { scope, errors = [], later } = route
  if (later !== undefined) return [...new Set([...ANYWHERE, ...ASKING, ...errors, 'not_supported' as const])]
  const isChange = scope === 'host' || /:(write|delete)$/.test(scope)
  return [
    ...new Set([
      ...ANYWHERE,
      ...(scope === 'open' ? [] : ASKING),
      ...errors,
      ...(isChange ? CHANGING : []),
      ...(isChange && /^(instance|snapshot|volume):/.test(scope) ? WITH_A_VM : []),
    ]),
  ]
}

export const statusOf = (code: ErrorCode): number => ERRORS[code].status

/** The status of `code` on this route: what was asked for cannot be (400), where elsewhere it is a conflict. */
export const statusOn = (route: Pick<Route, 'badRequests' | 'conflicts'>, code: ErrorCode): number =>
  route.badRequests?.includes(code) ? 400 : route.conflicts?.includes(code) ? 409 : statusOf(code)
