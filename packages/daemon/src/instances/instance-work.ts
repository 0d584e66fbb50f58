/**
 * What an operation is given: the instance as it is now, the rooms it works with, and its steps. Each step has a name, a limit and
 * a crash point; the name is what errors, logs and the crash tests call it by.
 */
import { isDeepStrictEqual } from 'node:util'
import type { Compression } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import type { InstanceState } from '@dormouse/api/instance-states.ts'
import type { Devices } from '../devices/devices.ts'
import type { Disks } from '../disks/disks.ts'
import type { Egress } from '../egress/egress.ts'
import type { Events } from '../events/events.ts'
import type { WakeRequest } from '../guest/guest-client.ts'
import type { BaseRef, Hypervisor, HypervisorName, Vm } from '../hypervisors/hypervisor.ts'
import type { VmSpec } from '../hypervisors/vm-spec.ts'
import type { Images, ReadyImage } from '../images/images.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { LayeredMemory } from '../memory/memory.ts'
import type { Network, Nic } from '../network/network.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import type { InstanceId } from '../store/instance-record.ts'
import type { InstanceRows } from '../store/instances.ts'
import type { SnapshotRows } from '../store/snapshots.ts'
import { followAttachments } from '../volumes/attachments.ts'
import type { Volumes } from '../volumes/volumes.ts'
import type { DiskIo } from './disk-rate.ts'
import { enterPhase, type Instance } from './instance.ts'
import type { LiveVm } from './live-vm.ts'
import { holdsDevice, nicOf, vmSpecOf } from './vm-spec-of.ts'

const ATTACH_LIMIT_MS = 30_000
const EGRESS_LIMIT_MS = 30_000
// A driver may take its time to let go of a GPU.
const DEVICES_LIMIT_MS = 120_000

/** Called at the beginning of each step. One that never resolves stands for the daemon's death there; see docs/lifecycle.md. */
export type CrashPoint = (operation: string, step: string) => Promise<void>

export interface WorkUses {
  readonly db: Database
  readonly rows: InstanceRows
  readonly snapshots: SnapshotRows
  readonly volumes: Volumes
  readonly events: Events
  readonly images: Pick<Images, 'byDigest'>
  readonly disks: Disks
  readonly paths: Paths
  readonly memory: LayeredMemory
  readonly network: Network
  readonly devices: Devices
  readonly egress: Egress
  /** What is done with a sleeping state in the background. */
  readonly sleepJobs: SleepJobs
  readonly crashPoint: CrashPoint
  readonly settings: WorkSettings
  hypervisorOf(name: HypervisorName): Hypervisor
  /** Does anything but this instance stand on the base? */
  isBaseShared(base: BaseRef, id: InstanceId): boolean
}

export interface SleepJobs {
  /** Resolves when nothing reads or writes the sleeping state any more. */
  cancel(id: InstanceId): Promise<void>
}

export interface WorkSettings {
  readonly stopGraceMs: number
  readonly deleteGraceMs: number
  readonly bootLimitMs: number
  readonly logMaxBytes: number
  /** The squashfs of kernel modules; absent where none was built. */
  readonly modules: string | undefined
  readonly freshBoot: boolean
  /** What shares of the disks' speed are made of. */
  readonly diskIo: DiskIo
  /** Of memories that neither a request nor a policy says anything of. */
  readonly compression: Compression | undefined
}

/** What the worker lets an operation do to it. */
export interface WorkHost {
  readonly log: Logger
  instance: Instance
  live: LiveVm | undefined
  /** Takes a VM under its care: connects to its guest, boots or wakes it if it still has to be, watches for its end. */
  hold(vm: Vm, wake?: WakeRequest): LiveVm
  /** Lets go of the VM without touching it. Callers whose exec or copy is open are told `reason`. */
  letGo(reason?: AppError): Promise<void>
  /** The instance is no more. */
  forget(): void
}

export class InstanceWork {
  readonly operation: string
  readonly uses: WorkUses
  readonly host: WorkHost
  readonly #signal: AbortSignal
  #at = 'begin'
  readonly #begun: { readonly name: string; readonly atMs: number }[] = [{ name: 'begin', atMs: performance.now() }]
  readonly #afterwards: (() => Promise<void>)[] = []
  #graceEndsAt = Number.POSITIVE_INFINITY
  #isForced = false
  #haste = new AbortController()

  constructor(operation: string, uses: WorkUses, host: WorkHost, signal: AbortSignal) {
    this.operation = operation
    this.uses = uses
    this.host = host
    this.#signal = signal
  }

  get instance(): Instance {
    return this.host.instance
  }
  get live(): LiveVm | undefined {
    return this.host.live
  }
  get log(): Logger {
    return this.host.log
  }
  get hypervisor(): Hypervisor {
    return this.hypervisorWith({})
  }
  /** The driver of what it becomes `along` with its next VM: a snapshot may be of another's. */
  hypervisorWith({ hypervisor = this.instance.hypervisor }: Partial<Instance>): Hypervisor {
    return this.uses.hypervisorOf(hypervisor)
  }
  get runDir(): string {
    return this.uses.paths.vmRunDir(this.instance.id)
  }
  /** True once the daemon has waited long enough at its own end: what is left is for the next one. */
  get isEnding(): boolean {
    return this.#signal.aborted
  }
  /** The step that the work is at. */
  get at(): string {
    return this.#at
  }

  /** Each step so far and how many milliseconds it took, in order. */
  get steps(): readonly string[] {
    const ends = [...this.#begun.slice(1).map(({ atMs }) => atMs), performance.now()]
    return this.#begun.map(({ name, atMs }, index) => `${name} ${Math.round(((ends[index] ?? atMs) - atMs) * 10) / 10}`)
  }

  /** The workload gets no more than `graceMs` from now; what waits for longer is woken. */
  hurry(graceMs: number): void {
    const endsAt = performance.now() + graceMs
    const isForced = graceMs <= 0
    if (isForced ? this.#isForced : endsAt >= this.#graceEndsAt) return
    this.#graceEndsAt = Math.min(endsAt, this.#graceEndsAt)
    this.#isForced ||= isForced
    const woken = this.#haste
    this.#haste = new AbortController()
    woken.abort(new Error('Someone wants it sooner'))
  }
  /** Ends when the time that is left becomes less; ask anew then. */
  get hurried(): AbortSignal {
    return this.#haste.signal
  }
  /** No grace at all is given. */
  get isForced(): boolean {
    return this.#isForced
  }
  /** What is left of the grace. */
  get graceLeftMs(): number {
    return Math.max(1, Math.ceil(this.#graceEndsAt - performance.now()))
  }

  /** Begins the step `name`. Its signal ends after `limitMs`, or when the daemon has waited long enough at its own end. */
  async step(name: string, limitMs: number): Promise<Step> {
    this.#at = name
    this.#begun.push({ name, atMs: performance.now() })
    await this.uses.crashPoint(this.operation, name)
    this.#signal.throwIfAborted()
    return { signal: AbortSignal.any([this.#signal, AbortSignal.timeout(limitMs)]), log: this.log }
  }

  /** A step of an undo: it has a limit, but no one can cancel it. */
  undoStep(limitMs: number): Step {
    return { signal: AbortSignal.timeout(limitMs), log: this.log }
  }

  /**
   * Writes the change and its event in one transaction. Only here does an instance's record change. What ends something or tells what
   * has happened is written on a full disk too; what begins something says that it need not be. `via` is a state that it was in for a
   * moment, without a row of its own; `sinceMs` is when its new state began, where that was seen by someone else; `also` belongs to the same transaction.
   */
  change(patch: Partial<Instance>, { evenWhenFull = true, via, sinceMs, also }: ChangeOptions = {}): void {
    const before = this.instance
    const merged = { ...before, ...patch }
    const passed = via === undefined ? before.phases : enterPhase(before.phases, via.state, via.sinceMs)
    const nowMs = Date.now()
    const beganMs = Math.min(nowMs, Math.max(passed.sinceMs, sinceMs ?? nowMs))
    const after: Instance = { ...merged, phases: enterPhase(passed, merged.state, beganMs) }
    this.uses.db.transaction(
      () => {
        also?.()
        followAttachments({ rows: this.uses.volumes.rows, events: this.uses.events }, after, before.volumes, after.volumes)
        this.uses.rows.update(after)
        this.uses.events.record({ kind: 'instance.changed', subject: after.id, data: eventDataOf(after) })
      },
      { evenWhenFull },
    )
    this.host.instance = after
    if (before.sleep !== undefined && !isDeepStrictEqual(filesOf(before), filesOf(after))) this.#unexpect(before)
    if (before.state !== after.state) {
      const ms = Date.now() - before.phases.sinceMs
      this.log.info({ from: before.state, to: after.state, operation: this.operation, ms }, 'instance changed')
    }
  }

  /** Nothing may hold the files of a sleeper that is another now. */
  #unexpect({ id, hypervisor }: Instance): void {
    this.uses.hypervisorOf(hypervisor).unexpect?.(id).catch(this.leaveForSweep('a VM that waited for it'))
  }

  /** The image that it was made of. Throws `not_found` when it has been taken away by force. */
  image({ image, imageDigest }: Pick<Instance, 'image' | 'imageDigest'>): ReadyImage {
    const ready = this.uses.images.byDigest(imageDigest)
    if (!ready)
      throw new AppError('not_found', `The image ${image} (${imageDigest}) is gone`, {
        hint: `Pull it again: dormouse image pull ${image}`,
      })
    return ready
  }

  /** What its driver needs to run it, as it is or would be with `patch`. Throws `not_found` when its image is gone. */
  vmSpec(patch: Partial<Instance> = {}): VmSpec {
    const { paths, network, settings } = this.uses
    const { modules, logMaxBytes, freshBoot, diskIo } = settings
    const instance = { ...this.instance, ...patch }
    return vmSpecOf(instance, { image: this.image(instance), paths, network, modules, logMaxBytes, freshBoot, diskIo })
  }

  /** Gives its VM a place in the network, and the address that it has there. Before the VM starts; the undo is `sweep`. */
  async attach(): Promise<void> {
    const { network, egress } = this.uses
    const nic = nicOf(this.instance)
    if (nic !== undefined) this.#takeAddress()
    const wayOut = await this.#openWayOut()
    const step = await this.step('attach', ATTACH_LIMIT_MS)
    if (nic === undefined) return
    await network.attach({ ...nic, ...wayOut }, step)
    if (egress.portOf(this.instance.id) !== wayOut.egress?.proxyPort) await egress.lead(this.instance.id, step)
  }

  #takeAddress(): void {
    const { db, network } = this.uses
    const { id } = this.instance
    // Of another kind of network, or of another subnet.
    const ip = network.addressOf(id) ?? db.transaction(() => network.lease(id))
    if (ip !== this.instance.network.ip) this.change({ network: { ...this.instance.network, ip } })
  }

  /** Its proxy, where it has one; before its network leads it there. */
  async #openWayOut(): Promise<Pick<Nic, 'egress'>> {
    const { egress } = this.instance
    if (egress === undefined) return {}
    const proxyPort = await this.uses.egress.open(this.instance, await this.step('egress', EGRESS_LIMIT_MS))
    return { egress: { mode: egress.mode, proxyPort } }
  }

  /** What its credentials are worth now is what its proxy knows, from the next request of its guest's on. */
  async rotate(): Promise<void> {
    if (this.instance.egress === undefined) return
    // What is on record is told also when the daemon is about to end.
    await this.uses.crashPoint(this.operation, 'rotate')
    await this.uses.egress.rotate(this.instance, { log: this.log })
  }

  /** Takes the devices that it has from the host, before its VM starts; the undo is `sweep`. */
  async attachDevices(): Promise<void> {
    if (!holdsDevice(this.instance)) return
    const step = await this.step('devices', DEVICES_LIMIT_MS)
    const gpu = await this.uses.devices.attach(this.instance, step)
    if (gpu !== undefined) this.change({ gpu })
  }

  /**
   * Ends whatever may run for it, takes its place in the network away, and gives its devices back to the host; the address stays its own.
   * Repeat is harmless.
   */
  async sweep(): Promise<void> {
    await this.hypervisor.sweep(this.runDir)
    await this.uses.crashPoint(this.operation, 'detach')
    await this.uses.network.detach(this.instance.id, this.undoStep(ATTACH_LIMIT_MS))
    await this.#closeWayOut()
    await this.detachDevices()
  }

  async #closeWayOut(): Promise<void> {
    const { egress, crashPoint } = this.uses
    if (!egress.isOpen(this.instance.id)) return
    await crashPoint(this.operation, 'close_egress')
    await egress.close(this.instance.id)
  }

  /** Its VM must be gone: a driver that waits for one waits without an end. Repeat is harmless. */
  async detachDevices(): Promise<void> {
    const { id, gpu } = this.instance
    if (this.uses.devices.isHolding(id)) {
      await this.uses.crashPoint(this.operation, 'give_back')
      await this.uses.devices.detach(id, this.undoStep(DEVICES_LIMIT_MS))
    }
    if (gpu?.mdevUuid !== undefined || gpu?.address !== undefined) this.change({ gpu: { profile: gpu.profile } })
  }

  /** Done once who asked has been answered, and before the next operation: what no one waits for. Failures are logged. */
  afterwards(what: string, tidy: () => Promise<void>): void {
    this.#afterwards.push(() => tidy().catch(this.leaveForSweep(what)))
  }

  async tidyUp(): Promise<void> {
    for (const tidy of this.#afterwards.splice(0)) await tidy()
  }

  /** For what may be left to the next start of the daemon: logs it and goes on. */
  leaveForSweep(what: string): (error: unknown) => void {
    return (error) => this.log.warn({ err: error, what }, 'left for the next sweep')
  }
}

interface ChangeOptions {
  readonly evenWhenFull?: boolean
  readonly via?: Passing
  readonly sinceMs?: number
  readonly also?: () => void
}

export interface Passing {
  readonly state: InstanceState
  readonly sinceMs: number
}

/** Of a sleeper: what a VM that is made ready for it has open. */
const filesOf = ({ sleep, disk, volumes }: Instance): unknown => [sleep, disk, volumes]

export const eventDataOf = (instance: Instance): Readonly<Record<string, unknown>> => ({
  name: instance.name,
  state: instance.state,
  operation: instance.operation,
  state_error: instance.stateError,
  exit_code: instance.exitCode,
  exit_message: instance.exitMessage,
  restart_attempts: instance.restarts?.attempts,
})
