import { appendFileSync, writeFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Duplex, duplexPair } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { FakeGuest, type FakeGuestState, type FakeGuestUses, type FakeService } from '../../guest/fake-guest.ts'
import { overlaps } from '../../host/host-ports.ts'
import { readBootId } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import type { Leisure } from '../../memory/memory.ts'
import type { Bandwidth, Inbound, MachineRecord, PortForward, VmExit, VmHandle } from '../hypervisor.ts'
import type { DiskRole, VmSpec } from '../vm-spec.ts'

/** Calls that can be made to fail, or to hang until their step's limit. */
export type FaultPoint =
  | 'start'
  | 'start_late'
  | 'restore'
  | 'reconnect'
  | 'connect_guest'
  | 'pause'
  | 'resume'
  | 'capture'
  | 'store'
  | 'prepare_pivot'
  | 'commit_pivot'
  | 'flatten'
  | 'insert_disk'
  | 'eject_disk'
  | 'grow_disk'
  | 'request_shutdown'
  | 'kill'
  | 'set_ports'
  | 'set_bandwidth'
  | 'inbound'
  | 'set_disk_rate'
  | 'set_hotplug'
  | 'sweep'
  | 'consolidate'
  | 'compress'
export type Fault = 'fail' | 'hang'

/** What a host holds: machines and the ports they have open. Outlives drivers and daemons of this process. */
export class FakeHost {
  readonly machines = new Map<string, FakeMachine>()
  /** What must never happen and did: two machines on one disk, one directory, one port. */
  readonly violations: string[] = []
  /** Connections to guests are taken and never answered. */
  muteGuests = false
  /** What guests are said to have written since their base was mapped, in captures that are taken from now on. */
  deltaBytes = 0
  /** How the bases were asked for that have been made of captures: at leisure, or as fast as it goes. */
  readonly leisures: (Leisure | undefined)[] = []
  /** What workloads serve, by port. */
  readonly services = new Map<number, FakeService>()
  readonly #faults = new Map<FaultPoint, { readonly fault: Fault; times: number }>()
  readonly #gone = new Set<string>()

  /** The next call of `point` fails or hangs, once or as often as `times` says, unless it is disposed of first. */
  injectFault(point: FaultPoint, fault: Fault = 'fail', { times = 1 } = {}): Disposable {
    this.#faults.set(point, { fault, times })
    return { [Symbol.dispose]: () => void this.#faults.delete(point) }
  }

  /** A sleeping state is loaded onto one disk once: from the moment at which that runs on, it would not know what is on it. */
  noteRun(what: string): void {
    if (this.#gone.has(what)) this.violations.push(`a sleeping state ran twice on one disk: ${what}`)
    this.#gone.add(what)
  }

  clearFaults(): void {
    this.#faults.clear()
  }

  /** Passes, or does what was injected. */
  async reach(point: FaultPoint, step?: Pick<Step, 'signal'>): Promise<void> {
    const injected = this.#faults.get(point)
    if (injected === undefined) return
    if (--injected.times <= 0) this.#faults.delete(point)
    const { fault } = injected
    if (fault === 'hang' && step !== undefined) await aborted(step.signal)
    throw new Error(`Injected fault at ${point}`)
  }

  /** Every machine that runs. */
  running(): FakeMachine[] {
    return [...this.machines.values()].filter(({ exit }) => exit === undefined)
  }
}

/** A capture that a machine is made of. */
export interface FakeOrigin {
  readonly name: string
  /** What is written to. */
  readonly disk: string
  readonly guest: FakeGuestState
  readonly on: Pick<MachineRecord, 'base' | 'baseSum'>
}

let lastTick = 0

/** What runs: a guest, its open ports, its exit. Belongs to the host, not to a driver. */
export class FakeMachine {
  readonly spec: VmSpec
  /** The layers of each disk as they are now, top first, by role. */
  readonly chains: Map<DiskRole, readonly string[]>
  /** Of disks that were made larger under it. */
  readonly sizes = new Map<DiskRole, number>()
  readonly handle: VmHandle
  readonly exited: Promise<VmExit>
  readonly guest: FakeGuest
  ports: readonly PortForward[] = []
  bandwidth: Bandwidth
  /** What is told of connections to its ports; a test sets it. */
  inbound: Inbound = { active: 0 }
  diskIoBps: number | undefined
  /** The disks that this rate is the budget of: those that came later are not among them. */
  budgeted: ReadonlySet<DiskRole>
  /** Undefined: it was started without room for any. */
  hotplugBytes: number | undefined
  /** What its guest has written; less once it stands on a base of its own. */
  privateBytes: number
  exit: VmExit | undefined
  isPaused = false
  /** Both ends: that of the daemon is not told when the other is destroyed. */
  #line: readonly Duplex[] = []
  /** Dialled while it was paused. */
  #unanswered: Duplex | undefined
  readonly #host: FakeHost
  /** Until it runs. */
  #origin: FakeOrigin | undefined
  readonly #settle: (exit: VmExit) => void
  #ending: Promise<void> | undefined

  /** With `origin` it goes on from where that guest was captured. */
  constructor(spec: VmSpec, host: FakeHost, origin?: FakeOrigin) {
    this.spec = spec
    this.#origin = origin
    this.bandwidth = (spec.nic?.backend === 'user' ? spec.nic.bandwidth : undefined) ?? {}
    this.diskIoBps = spec.diskIoBps
    this.hotplugBytes = spec.hotplugMib === undefined ? undefined : spec.hotplugMib * 2 ** 20
    this.privateBytes = origin === undefined ? spec.memoryMib * 2 ** 19 : 2 ** 26
    this.chains = new Map(spec.disks.map(({ role, path, backing = [] }) => [role, [path, ...backing.map((layer) => layer.path)]]))
    this.budgeted = new Set(this.chains.keys())
    this.#host = host
    const identity = { pid: process.pid, startTicks: `fake-${++lastTick}` }
    this.handle = {
      ...{ hypervisor: 'fake', runDir: spec.runDir, shim: identity, vmm: identity, bootId: readBootId(), startedAtMs: Date.now() },
      machine: {
        ...(origin?.on ?? { base: 'zero', baseSum: '0'.repeat(16) }),
        memoryBytes: spec.memoryMib * 2 ** 20,
        facts: { vcpus: spec.vcpus },
      },
    }
    const { promise, resolve } = Promise.withResolvers<VmExit>()
    this.exited = promise
    this.#settle = resolve
    const uses: FakeGuestUses = {
      onJournal: (fact) => this.#write(spec.logs.journal, `${JSON.stringify(fact)}\n`),
      onLog: (text) => this.#write(spec.logs.app, text),
      services: host.services,
      onPowerOff: () => void this.end({ kind: 'exited', code: 0, atMs: Date.now() }),
    }
    this.guest = origin === undefined ? new FakeGuest(uses) : FakeGuest.restore(origin.guest, uses)
    this.isPaused = origin !== undefined
  }

  get runDir(): string {
    return this.spec.runDir
  }

  /** What it writes to. */
  get tops(): string[] {
    return [...this.chains].filter(([role]) => role === 'overlay' || role.startsWith('volume-')).flatMap(([, [top]]) => top ?? [])
  }

  async boot(): Promise<void> {
    // As a shim does, whether or not anything is ever written.
    this.#write(this.spec.logs.app, '')
    writeFileSync(this.spec.logs.journal, '')
    this.#write(this.spec.logs.vmm, `fake VM ${this.spec.id} is up\n`)
  }

  /** Throws `port_in_use`, leaving its ports as they were. */
  openPorts(ports: readonly PortForward[]): void {
    for (const machine of this.#host.running()) {
      if (machine === this) continue
      const taken = ports.find((port) => machine.ports.some((other) => overlaps(port, other)))
      if (taken) throw new AppError('port_in_use', `The host port ${taken.hostPort} is open already`)
    }
    this.ports = ports
  }

  connect(): Duplex {
    if (this.exit !== undefined) throw new AppError('guest_unavailable', 'The VM is gone')
    this.hangUp()
    const [ours, theirs] = duplexPair()
    this.#line = [ours, theirs]
    if (this.#host.muteGuests) return ours
    if (this.isPaused) this.#unanswered = theirs
    else this.guest.attach(theirs)
    return ours
  }

  pause(): void {
    this.isPaused = true
  }

  /** Who dialled while it was paused is answered now. */
  resume(): void {
    if (!this.isPaused) return
    this.isPaused = false
    if (this.#origin) this.#host.noteRun(`${this.#origin.name} on ${this.#origin.disk}`)
    this.#origin = undefined
    if (this.#unanswered !== undefined && !this.#host.muteGuests) this.guest.attach(this.#unanswered)
    this.#unanswered = undefined
  }

  /** The line to the guest is cut. The machine goes on. */
  hangUp(): void {
    for (const end of this.#line) end.destroy()
    this.#line = []
    this.#unanswered = undefined
  }

  /** The machine is gone, its exit on record. Repeat is harmless: the first way it ended stays. */
  end(exit: VmExit): Promise<void> {
    this.#ending ??= this.#end(exit)
    return this.#ending
  }

  async #end(exit: VmExit): Promise<void> {
    this.exit = exit
    this.ports = []
    this.guest.crash()
    this.hangUp()
    await writeExitRecord(this.runDir, exit)
    this.#settle(exit)
  }

  #write(file: string, text: string): void {
    try {
      appendFileSync(file, text)
    } catch {
      // Its instance's directory is gone; a shim would have held the file open.
    }
  }
}

export const EXIT_RECORD = 'exit.json'

/** Writes the exit where `lastExit` of the next daemon finds it, unless the directory is gone. */
const writeExitRecord = (runDir: string, exit: VmExit): Promise<void> =>
  writeFile(join(runDir, EXIT_RECORD), JSON.stringify(exit)).catch(() => undefined)

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}
