/**
 * The one gate. What an instance may do in which state is this table and nothing else: the daemon's worker, the API's 409,
 * the CLI's message and the console's disabled button all ask `admit()`.
 *
 *   Created ──► Initializing ──► Running ──► Paused ──► Standby
 *                    │               │                     │
 *                    └──► Shutdown ◄─┘                     │
 *                            │                             │
 *                         Stopped ◄────────────────────────┘
 *
 * States are derived from facts; `Created`, `Paused` and `Shutdown` are only ever seen inside an operation. `Unknown` says that
 * the facts could not be had: such an instance can be looked at, stopped and deleted.
 */
import { type Static, Type } from 'typebox'

export const INSTANCE_STATES = ['Created', 'Initializing', 'Running', 'Paused', 'Shutdown', 'Stopped', 'Standby', 'Unknown'] as const
export const InstanceState = Type.Enum([...INSTANCE_STATES], { $id: 'InstanceState', description: 'Where an instance is in its life' })
export type InstanceState = Static<typeof InstanceState>

/** Operations that change an instance's state. They pass through its worker, one at a time. */
export const TRANSITIONS = ['start', 'stop', 'standby', 'restore', 'fork', 'snapshot', 'restore_snapshot', 'delete'] as const
export type Transition = (typeof TRANSITIONS)[number]

/** Operations that only need the instance to be in a certain state. */
export const ACCESSES = ['update', 'attach_volume', 'detach_volume', 'exec', 'copy', 'stat', 'logs', 'stats', 'wait'] as const
export type Access = (typeof ACCESSES)[number]

export type Operation = Transition | Access

/** What a driver must be able to do for an operation. Named once, checked at admission. */
export const CAPABILITIES = [
  'pause',
  'standby',
  'fork',
  'snapshots',
  'disk_hotplug',
  'memory_hotplug',
  'disk_limit',
  'disk_limit_live',
  'gpu',
  'disk_layers',
  'fresh_boot',
] as const
export type Capability = (typeof CAPABILITIES)[number]

/** `to` is the state that the instance settles in; absent where the operation leaves the state as it is. */
type Rule =
  | { readonly answer: 'accepted'; readonly to?: InstanceState; readonly needs?: Capability }
  | { readonly answer: 'already' }
  | { readonly answer: 'denied'; readonly reason: string }

export type Admission = Rule

const to = (state: InstanceState, needs?: Capability): Rule =>
  needs === undefined ? { answer: 'accepted', to: state } : { answer: 'accepted', to: state, needs }
const stays = (needs?: Capability): Rule => (needs === undefined ? { answer: 'accepted' } : { answer: 'accepted', needs })
const already: Rule = { answer: 'already' }
const denied = (reason: string): Rule => ({ answer: 'denied', reason })

const notBooted = denied('it is still booting: wait for Running')
const asleep = denied('it is in standby: restore it first')
const notRunning = denied('it is stopped: start it first')
const midway = denied('it is in the middle of an operation: wait for it to settle')
const unknown = denied('its state could not be determined: stop or delete it')

type Row = Readonly<Record<InstanceState, Rule>>
const row = (rules: Pick<Row, 'Running' | 'Initializing' | 'Standby' | 'Stopped'> & Partial<Row>): Row => ({
  Created: midway,
  Paused: midway,
  Shutdown: midway,
  Unknown: unknown,
  ...rules,
})
const always = (rule: Rule): Row =>
  row({ Running: rule, Initializing: rule, Standby: rule, Stopped: rule, Created: rule, Paused: rule, Shutdown: rule, Unknown: rule })
/** At rest without memory, or at once where the VMM can. */
const rewired: Row = row({ Running: stays('disk_hotplug'), Initializing: notBooted, Standby: asleep, Stopped: stays() })
const whileRunning: Row = row({ Running: stays(), Initializing: notBooted, Standby: asleep, Stopped: notRunning })

export const OPERATIONS: Readonly<Record<Operation, Row>> = {
  start: row({
    Running: already,
    Initializing: already,
    Standby: denied('it is in standby: restore it, or stop it to discard its memory'),
    Stopped: to('Initializing'),
  }),
  stop: row({
    Running: to('Stopped'),
    Initializing: to('Stopped'),
    Standby: to('Stopped'),
    Stopped: already,
    // Its workload has ended by itself: a stop waits for the rest, so that it stays so whatever its restart policy says.
    Shutdown: to('Stopped'),
    Unknown: to('Stopped'),
  }),
  standby: row({ Running: to('Standby', 'standby'), Initializing: notBooted, Standby: already, Stopped: notRunning }),
  restore: row({
    Running: already,
    Initializing: already,
    Standby: to('Running', 'standby'),
    Stopped: denied('it is stopped and has no memory to restore: start it'),
  }),
  fork: row({ Running: stays('fork'), Initializing: notBooted, Standby: stays('fork'), Stopped: stays() }),
  snapshot: row({ Running: stays('snapshots'), Initializing: notBooted, Standby: stays('snapshots'), Stopped: stays() }),
  restore_snapshot: row({
    Running: denied('it is running: stop it first'),
    Initializing: denied('it is running: stop it first'),
    Standby: stays('snapshots'),
    Stopped: stays(),
  }),
  delete: always(stays()),
  update: always(stays()),
  attach_volume: rewired,
  detach_volume: rewired,
  exec: whileRunning,
  copy: whileRunning,
  stat: whileRunning,
  logs: always(stays()),
  stats: always(stays()),
  wait: always(stays()),
}

/** The instance as admission sees it: where it is, what its driver can do, and where the work that is already accepted will leave it. */
export interface Subject {
  readonly state: InstanceState
  readonly capabilities: ReadonlySet<Capability>
  /** A device of the host is in it, or is to be with its next start. */
  readonly holdsDevice?: boolean
  /** It was made with `skip_guest_agent`. */
  readonly skipsGuestAgent?: boolean
  /** Accepted and not yet finished, oldest first. */
  readonly pending?: readonly Transition[]
}

/**
 * May `operation` be done now? Accepted transitions queue behind the pending ones, so the answer is about the state that those
 * will leave: a `start` during a `stop` is accepted, a second `stop` is `already` (and joins the first). After a pending
 * `delete` nothing is accepted but another `delete`, which joins it.
 */
export function admit(operation: Operation, subject: Subject): Admission {
  let state = subject.state
  for (const pending of subject.pending ?? []) {
    if (pending === 'delete') return operation === 'delete' ? already : denied('it is being deleted')
    const rule = OPERATIONS[pending][state]
    if (rule.answer === 'accepted' && rule.to !== undefined) state = rule.to
    // A state that is only seen inside the pending operation: judge by where that operation leads.
    else if (rule.answer === 'denied') state = settlesIn(pending) ?? state
  }
  // In every state: to wait for another would not help.
  if (subject.skipsGuestAgent && ENTERS_GUEST.has(operation)) return closed
  const rule = OPERATIONS[operation][state]
  // Into a guest no one waits his turn: it has to run now, and to be let run.
  if (ENTERS_GUEST.has(operation) && rule.answer === 'accepted' && OPERATIONS[operation][subject.state].answer === 'denied') return waking
  if (rule.answer === 'accepted' && rule.needs !== undefined && !subject.capabilities.has(rule.needs)) {
    return denied(`its hypervisor cannot do this (no ${rule.needs})`)
  }
  if (subject.holdsDevice && rule.answer === 'accepted' && rule.needs !== undefined && COPIES_MEMORY.has(rule.needs)) return deviceInside
  return rule
}

/** What needs the state of all that is in a machine. */
const COPIES_MEMORY: ReadonlySet<Capability> = new Set(['standby', 'fork', 'snapshots'])
const deviceInside = denied('it has a device of the host, and what is in a device can be neither kept nor copied: stop it first')

/** What a caller does inside the guest, by its agent. */
const ENTERS_GUEST: ReadonlySet<Operation> = new Set(['exec', 'copy', 'stat'])
const waking = denied('it is not running yet: wait for Running')
const closed = denied('it was made with skip_guest_agent, so no one enters its guest: make another without')

/** Where a transition leads when it succeeds, whatever state it began in. */
function settlesIn(transition: Transition): InstanceState | undefined {
  switch (transition) {
    case 'start':
      return 'Initializing'
    case 'restore':
      return 'Running'
    case 'stop':
      return 'Stopped'
    case 'standby':
      return 'Standby'
    case 'fork':
    case 'snapshot':
    case 'restore_snapshot':
    case 'delete':
      return undefined
  }
}

/** States in which a VM runs for the instance, so its memory and CPUs count. */
export const isLive = (state: InstanceState): boolean => state !== 'Stopped' && state !== 'Standby' && state !== 'Unknown'

/** States that `wait` does not outlive: the target will not come without someone's doing. */
export const isResting = (state: InstanceState): boolean => state === 'Stopped' || state === 'Standby' || state === 'Unknown'
