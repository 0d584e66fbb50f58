/**
 * The room's head: makes instances, finds them, and hands every change to the one worker that each has. Reading is straight from
 * the rows, so a list never waits for an operation.
 */
import { statfs } from 'node:fs/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { admit, isResting, type Operation, type Subject, type Transition } from '@dormouse/api/instance-states.ts'
import type { Config } from '../config/config.ts'
import type { Devices, PlannedDevices } from '../devices/devices.ts'
import type { Disks } from '../disks/disks.ts'
import { nameLayer } from '../disks/layer.ts'
import type { Events } from '../events/events.ts'
import type { GuestClient } from '../guest/guest-client.ts'
import type { HostFacts } from '../host/host-facts.ts'
import { overlaps } from '../host/host-ports.ts'
import type { BaseRef, Hypervisor, HypervisorName, IgnoredConnections, Inbound, PortForward } from '../hypervisors/hypervisor.ts'
import type { Images, ReadyImage } from '../images/images.ts'
import { formatPlatform, parsePlatform } from '../images/platform.ts'
import type { BackgroundJobs } from '../lib/background-jobs.ts'
import { createId } from '../lib/create-id.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { LayeredMemory } from '../memory/memory.ts'
import { type LinkCapacity, macOf, type Network } from '../network/network.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import { InstanceRows } from '../store/instances.ts'
import { type Snapshot, SnapshotRows } from '../store/snapshots.ts'
import { followAttachments, type Volume, type Volumes } from '../volumes/volumes.ts'
import { admitDemand, type Demand, DISK_RESERVE, demandOf, NOTHING, takesMemory } from './admission.ts'
import { Consolidations } from './consolidations.ts'
import { defaultTargetOf, forkOf } from './fork-of.ts'
import { probeHostPort } from './host-ports.ts'
import type {
  CreateInstance,
  ForkInstance,
  Instance,
  InstanceId,
  InstanceStats,
  ListInstances,
  LogSource,
  MountRequest,
  PortRequest,
  UpdateInstance,
  WaitResult,
} from './instance.ts'
import { layersOf } from './instance-disks.ts'
import { instanceLogger } from './instance-log.ts'
import { type CrashPoint, eventDataOf, type InstanceWork, type WorkSettings, type WorkUses } from './instance-work.ts'
import { InstanceWorker, type RequestOptions, type Rewiring, type Story } from './instance-worker.ts'
import { bandwidthOf, checkDiskRate, checkEnv, checkHotplug, checkName, checkSizes, DEFAULT_SIZES, portsOf, type Sizes } from './limits.ts'
import { isLogThere, type LogBatch, readLog } from './log-lines.ts'
import { type Reclaimed, type ReclaimRequest, reclaimMemory } from './memory-reclaim.ts'
import { type PlannedMount, planMounts, prepareMounts } from './mounts.ts'
import { admitNetwork, networkDemandOf } from './network-admission.ts'
import { attachVolume } from './operations/attach-volume.ts'
import { create, undoCreate } from './operations/create.ts'
import { type DeleteOptions, deleteInstance } from './operations/delete.ts'
import { detachVolume } from './operations/detach-volume.ts'
import { type AdmitAs, fork, type TargetState } from './operations/fork.ts'
import { growVolume } from './operations/grow-volume.ts'
import { hold, startByPolicy, stopToRestart, type WantedRestart } from './operations/restart.ts'
import { restore } from './operations/restore.ts'
import { pointOf, restoreSnapshot, targetOf } from './operations/restore-snapshot.ts'
import { type SnapshotRequest, snapshot } from './operations/snapshot.ts'
import { isKeptAwake, type StandbyOptions, type StayAwake, standby } from './operations/standby.ts'
import { type Admit, type StartOverrides, start } from './operations/start.ts'
import { type StopOptions, stop } from './operations/stop.ts'
import { update } from './operations/update.ts'
import { type HeldPoint, Points } from './points.ts'
import { type Reconciled, reconcile } from './reconcile.ts'
import { SharedReads } from './shared-reads.ts'
import { SleepCompressions } from './sleep-compressions.ts'
import { holdsDevice, nicOf, vmSpecOf } from './vm-spec-of.ts'
import { type WaitFor, waitForState } from './wait.ts'

export interface InstancesUses {
  readonly db: Database
  readonly events: Events
  readonly images: Pick<Images, 'byDigest' | 'readyImage' | 'pull' | 'whenReady' | 'usage' | 'hold'>
  readonly disks: Disks
  readonly volumes: Volumes
  readonly devices: Devices
  readonly paths: Paths
  readonly log: Logger
  readonly config: Pick<Config, 'limits' | 'instances' | 'network' | 'hypervisor' | 'snapshots'>
  readonly host: Pick<HostFacts, 'cpus' | 'memoryBytes' | 'isRoot' | 'architecture'>
  readonly hypervisors: ReadonlyMap<HypervisorName, Hypervisor>
  readonly network: Network
  readonly linkCapacity: () => LinkCapacity
  readonly settings: Pick<WorkSettings, 'modules' | 'freshBoot'>
  readonly memory: LayeredMemory
  /** Where memories are compressed. Taken down with the instances. */
  readonly compressing: BackgroundJobs
  readonly crashPoint?: CrashPoint
  /** Frees what can be missed on the disk until `bytes` more are free, or says nothing. */
  readonly makeRoom?: (bytes: number) => Promise<void>
}

/** How much of an id is enough to name an instance. */
const MIN_PREFIX = 4
const IMAGE_WAIT_MS = 5000
const NETWORK_LIMIT_MS = 60_000
const DEVICES_LIMIT_MS = 60_000

export class Instances implements AsyncDisposable {
  readonly #uses: InstancesUses
  readonly #rows: InstanceRows
  readonly #snapshots: SnapshotRows
  readonly #points: Points
  readonly #consolidations: Consolidations
  readonly #logReads = new SharedReads()
  readonly #compressions: SleepCompressions
  readonly #work: WorkUses
  readonly #workers = new Map<InstanceId, InstanceWorker>()
  readonly #end = new AbortController()
  /** What work that is under way has been admitted to; undefined until it has. */
  readonly #reserved = new Map<InstanceId, Parameters<AdmitAs>[1] | undefined>()
  /** Those that sleep for a moment, to give memory back. */
  readonly #naps = new Map<InstanceId, Promise<void>>()
  readonly #idleListeners = new Set<(id: InstanceId) => void>()
  #isClosed = false
  #isReclaiming = false

  constructor(uses: InstancesUses) {
    this.#uses = uses
    this.#rows = new InstanceRows(uses.db)
    this.#snapshots = new SnapshotRows(uses.db)
    this.#points = new Points({
      paths: uses.paths,
      request: async (id, story) => this.#workerOf(this.get(id)).request('fork', story),
      claim: ({ instance }, takers) => this.#claim(instance, takers),
      sweep: ({ instance }) => this.#sweepUnused(layersOf(instance)),
    })
    const crashPoint = uses.crashPoint ?? (async () => undefined)
    const sleepUses = {
      memory: uses.memory,
      paths: uses.paths,
      log: uses.log,
      crashPoint,
      find: (id: InstanceId) => this.find(id),
      perform: async (id: InstanceId, name: string, story: Story) => this.#workerOf(this.get(id)).perform(name, undefined, story),
    }
    this.#consolidations = new Consolidations({ ...sleepUses, maxBytesPerSecond: uses.config.snapshots.consolidationBytesPerSecond })
    this.#compressions = new SleepCompressions({
      ...sleepUses,
      jobs: uses.compressing,
      isBaseShared: (base, id) => this.#standsOn(base, id),
      endConsolidation: (id) => this.#consolidations.cancel(id),
    })
    const { stopGraceMs, deleteGraceMs, bootLimitMs, logMaxBytes } = uses.config.instances
    this.#work = {
      db: uses.db,
      rows: this.#rows,
      snapshots: this.#snapshots,
      volumes: uses.volumes,
      events: uses.events,
      images: uses.images,
      disks: uses.disks,
      paths: uses.paths,
      memory: uses.memory,
      network: uses.network,
      devices: uses.devices,
      sleepJobs: {
        cancel: async (id) => {
          await this.#compressions.cancel(id)
          await this.#consolidations.cancel(id)
        },
      },
      crashPoint,
      settings: {
        ...uses.settings,
        diskIo: { capacityBps: uses.config.limits.diskIoBps, ratio: uses.config.limits.diskIoRatio, cpus: uses.host.cpus },
        stopGraceMs,
        deleteGraceMs,
        bootLimitMs,
        logMaxBytes,
        compression: uses.config.snapshots.compression,
      },
      hypervisorOf: (name) => this.#hypervisor(name),
      isBaseShared: (base, id) => this.#standsOn(base, id),
    }
  }

  /**
   * Compares what is stored with what is true and mends it: VMs that outlived the last daemon are held again, what was cut short is
   * undone or finished. Once, before the first request. Resolves when every instance is in a true state or on its way there.
   */
  async recover(): Promise<Reconciled> {
    const { network, log } = this.#uses
    // What is under way may have been cut short with its place in the network taken; whoever undoes it gives it up.
    const held = this.list().filter(({ vm, operation }) => vm !== undefined || operation !== undefined)
    const nics = held.flatMap((instance) => nicOf(instance) ?? [])
    await network.recover(
      nics.filter(({ id }) => network.addressOf(id) !== undefined),
      { signal: AbortSignal.timeout(NETWORK_LIMIT_MS), log },
    )
    await this.#uses.devices.recover((id) => this.find(id) !== undefined, { signal: AbortSignal.timeout(DEVICES_LIMIT_MS), log })
    const reconciled = await reconcile({
      ...this.#work,
      log: this.#uses.log,
      hypervisors: this.#uses.hypervisors,
      workerOf: (instance) => this.#workerOf(instance),
    })
    // Those that the last daemon did not come to.
    for (const { id, sleep } of this.list({ state: 'Standby' })) {
      if (sleep?.wakes) this.restore(id).catch(() => undefined)
      else this.#attendSleep(id)
    }
    return reconciled
  }

  // Looking

  /** Newest first. */
  list(filter: ListInstances = {}): readonly Instance[] {
    return this.#rows.list(filter)
  }

  find(id: InstanceId): Instance | undefined {
    return this.#rows.find(id)
  }

  /** Throws `not_found`. */
  get(id: InstanceId): Instance {
    const instance = this.find(id)
    if (!instance) throw new AppError('not_found', `There is no instance ${id}`)
    return instance
  }

  /** By exact id, exact name, or the beginning of an id. Throws `not_found`, or `ambiguous` when several ids begin so. */
  resolve(text: string): Instance {
    const exact = this.#rows.find(text) ?? this.#rows.findByName(text)
    if (exact) return exact
    const found = text.length >= MIN_PREFIX && /^[a-z0-9]+$/.test(text) ? this.#rows.findByIdPrefix(text) : []
    if (found.length > 1) {
      throw new AppError('ambiguous', `More than one instance has an id that begins with ${text}`, {
        hint: 'Give more of the id, or the name',
      })
    }
    const [instance] = found
    if (!instance)
      throw new AppError('not_found', `There is no instance ${JSON.stringify(text.slice(0, 80))}`, {
        hint: 'List them with: dormouse ps -a',
      })
    return instance
  }

  /** True while work is under way or waiting, for one instance or for any. */
  isBusy(id?: InstanceId): boolean {
    if (id !== undefined) return this.#workers.get(id)?.isBusy ?? false
    return [...this.#workers.values()].some((worker) => worker.isBusy)
  }

  /** What writable disks take of the host's: each up to its full size, and what they share once. */
  async diskBytes(): Promise<number> {
    return this.#rows.demand().overlayBytes + (await this.#uses.disks.frozenBytes())
  }

  /** Memory that is given to no instance, oversubscription included. */
  memoryRoom(): number {
    const { host, config } = this.#uses
    return host.memoryBytes * config.limits.memoryRatio - this.#taken().memoryBytes
  }

  /** True while an instance stands on that image, so that it may not be deleted. */
  isImageInUse(digest: string): boolean {
    return this.#rows.hasImage(digest) || this.#snapshots.hasImage(digest)
  }

  /** Does a VM, a sleeping state, a snapshot or a fork that is under way stand on the memory base? */
  standsOn(base: BaseRef): boolean {
    return this.#standsOn(base)
  }

  // Changing

  /** Resolves when the VM runs and the instance is Initializing; the guest is then still on its way. */
  async create(request: CreateInstance): Promise<Instance> {
    this.#assertOpen()
    const asked = this.#checkCreate(request)
    if (this.#rows.findByName(request.name)) throw nameConflict(request.name)
    const demand = {
      ...demandOf(asked),
      diskBytes: asked.sizes.overlayBytes + sum(asked.mounts.map(({ request: { overlayBytes = 0 } }) => overlayBytes)),
    }
    const devices = await this.#planDevices(request, asked.hypervisor)
    devices.assertFree()
    const image = this.#uses.images.readyImage(request.image, request.platform) ?? (await this.#pullFor(request, demand))
    // Until its row says so itself.
    using _image = this.#uses.images.hold(image.digest)
    assertPlatform(request.image, image.platform, asked.platform)
    const ports = await this.#choosePorts(request.network?.ports ?? [])
    const { disks, volumes } = this.#uses
    await using mounts = await prepareMounts(asked.mounts, { volumes, release: (layers) => disks.release(layers) })
    const room = await this.#diskRoom()
    // From here to the row nothing awaits: who comes first has the name, the ports and the room.
    this.#assertOpen()
    this.#admitDemand(request.name, demand, room)
    this.#admitNetwork(request.name, request.network ?? {})
    const instance = this.#reserve(request, asked, image, ports, mounts, devices)
    await this.#workerOf(instance).perform('create', undefined, create)
    return this.get(instance.id)
  }

  async start(id: InstanceId, overrides: StartOverrides = {}): Promise<Instance> {
    const hasOverrides = Boolean(overrides.entrypoint?.length || overrides.cmd?.length)
    return this.#request(id, 'start', (work) => start(work, overrides, this.#admitAgain), {
      ...(hasOverrides ? { refuseAlready: 'it runs already, and its command can be changed only by a start from Stopped' } : {}),
    })
  }

  /** Its restart policy leaves it alone from then on, until someone starts it. */
  async stop(id: InstanceId, { force, graceMs: grace }: Pick<StopOptions, 'force' | 'graceMs'> = {}): Promise<Instance> {
    const graceMs = force ? 0 : grace
    const options = { ...present('force', force), ...present('graceMs', grace) }
    const { restartPolicy } = this.get(id)
    const stopped = this.#request(id, 'stop', (work) => stop(work, options), graceMs === undefined ? {} : { graceMs })
    // What is Stopped already, or is being stopped by its policy, would be started again: behind that stop, and before any start.
    const holding = restartPolicy === undefined ? undefined : this.#request(id, 'update', async (work) => hold(work))
    await Promise.all([stopped, holding])
    return this.get(id)
  }

  /** Starts it again, as its policy has it; of one that runs and is not well, it is stopped first. Nothing, when that is no longer so. */
  async restartByPolicy(id: InstanceId, wanted: WantedRestart): Promise<void> {
    // Each half looks again: someone may have stopped, started or changed it meanwhile.
    if (this.get(id).state === 'Running') await this.#request(id, 'stop', (work) => stopToRestart(work, wanted), { isTentative: true })
    await this.#request(id, 'start', (work) => startByPolicy(work, this.#admitAgain), { isTentative: true })
  }

  /** Resolves when its memory is on disk and its VM is gone. Options are refused when it sleeps already. */
  async standby(id: InstanceId, options: StandbyOptions = {}): Promise<Instance> {
    // Whoever asks for it is not done with a nap, which is about to end.
    if (!options.wakes) await this.#naps.get(id)?.catch(() => undefined)
    const refuse =
      Object.keys(options).length > 0 ? { refuseAlready: 'it is in standby already, and was compressed as it was asked for then' } : {}
    try {
      await this.#request(id, 'standby', (work) => standby(work, options), refuse)
    } catch (error) {
      // It joined one that no one had asked for, and that gave way to someone: this one was asked for.
      if (isKeptAwake(error)) return this.standby(id, options)
      throw error
    }
    return this.#slept(id)
  }

  /** A standby that no one asked for: `stayAwake` may say no, until it is on record. Refused while another one is under way. */
  async nap(id: InstanceId, stayAwake: StayAwake): Promise<Instance> {
    const refuse = { refuseAlready: 'it is in standby already, or on its way there' }
    await this.#request(id, 'standby', (work) => standby(work, { stayAwake }), refuse)
    return this.#slept(id)
  }

  /** Can its driver put it to sleep? */
  canSleep(id: InstanceId): boolean {
    const hypervisor = this.find(id)?.hypervisor
    return hypervisor !== undefined && this.#uses.hypervisors.get(hypervisor)?.capabilities.has('standby') === true
  }

  /** Is a standby of it under way, or waiting? */
  isFallingAsleep(id: InstanceId): boolean {
    return this.#workers.get(id)?.pending.includes('standby') ?? false
  }

  /** The connections that others have opened to it. Rejects while it does not run, and when they cannot be counted. */
  async inbound(id: InstanceId, ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    const instance = this.get(id)
    const [vm, nic] = [this.#workers.get(id)?.live?.vm, nicOf(instance)]
    if (vm === undefined) throw new AppError('guest_unavailable', `The VM of ${instance.name} is not held`)
    return nic === undefined ? { active: 0 } : this.#uses.network.inbound(vm, nic, ignored, step)
  }

  #slept(id: InstanceId): Instance {
    this.#attendSleep(id, () => this.#expectRestore(id))
    return this.get(id)
  }

  /** Resolves when the agent has answered. */
  async restore(id: InstanceId): Promise<Instance> {
    try {
      return await this.#request(id, 'restore', (work) => this.#reserving(work, () => restore(work, this.#admitAgain)))
    } catch (error) {
      // It sleeps on, and what the attempt cancelled is still to be done.
      this.#attendSleep(id)
      throw error
    }
  }

  /** A second instance that goes on from where this one is. Resolves when it is in its target state. */
  async fork(id: InstanceId, request: ForkInstance): Promise<Instance> {
    this.#assertOpen()
    const source = this.get(id)
    const target = request.target ?? defaultTargetOf(source.state)
    const admission = admit('fork', this.#subject(source, { isQueued: true }))
    if (admission.answer === 'denied') throw this.#denied(source, 'fork', admission.reason)
    const child = await this.#reserveFork(source, request, target)
    const wanted = { fromRunning: request.fromRunning === true, diskOnly: target === 'Stopped' }
    return this.#goOn(child, target, () => this.#points.take(source, child.id, wanted))
  }

  /** A new instance that goes on from a snapshot, whose source may be gone. */
  async forkSnapshot(snapshot: Snapshot, request: ForkInstance): Promise<Instance> {
    this.#assertOpen()
    const target = targetOf(snapshot, request.target)
    const child = await this.#reserveFork(snapshot.instance, request, target)
    const point = pointOf(snapshot, this.#uses.paths.snapshotDir(snapshot.id, snapshot.generation))
    return this.#goOn(child, target, async () => {
      // What was deleted meanwhile cannot be claimed.
      if (this.#snapshots.find(snapshot.id) === undefined) throw new AppError('not_found', `There is no snapshot ${snapshot.id} any more`)
      this.#claim(point.instance, [child.id])
      return { point, [Symbol.asyncDispose]: async () => this.#sweepUnused(layersOf(point.instance)) }
    })
  }

  /** A kept point of the instance. Resolves when it is whole on disk. */
  async snapshot(id: InstanceId, request: Omit<SnapshotRequest, 'id'>): Promise<Snapshot> {
    this.#assertOpen()
    const snapshotId = createId()
    const { name } = this.get(id)
    const admission = admit('snapshot', this.#subject(this.get(id), { isQueued: true }))
    if (admission.answer === 'denied') throw new AppError('conflict', `A snapshot of ${name} cannot be taken now: ${admission.reason}`)
    await this.#request(id, 'snapshot', (work) => snapshot(work, { ...request, id: snapshotId }))
    const taken = this.#snapshots.find(snapshotId)
    if (taken === undefined) throw new AppError('not_found', `The snapshot of ${name} was deleted as soon as it was taken`)
    return taken
  }

  /** Takes an instance that does not run back to a snapshot of its own. */
  async restoreSnapshot(id: InstanceId, kept: Snapshot, wanted: TargetState | undefined): Promise<Instance> {
    if (kept.instance.id !== id)
      throw new AppError('invalid_request', `The snapshot ${kept.id} is of another instance, ${kept.instance.name}`)
    const target = targetOf(kept, wanted)
    return this.#request(id, 'restore_snapshot', (work) =>
      this.#reserving(work, async () => {
        const judge = await this.#admitAs(work, { ...kept.instance, runs: target === 'Running' })
        if (target === 'Running' || kept.instance.overlayBytes > work.instance.overlayBytes) judge()
        await restoreSnapshot(work, kept, target)
      }),
    )
  }

  async delete(id: InstanceId, options: DeleteOptions = {}): Promise<void> {
    const instance = this.get(id)
    const graceMs = options.graceful === false ? 0 : this.#uses.config.instances.deleteGraceMs
    await this.#workerOf(instance).request('delete', (work) => deleteInstance(work, options), { graceMs })
  }

  /** Changes what the patch names, all or nothing. */
  async update(id: InstanceId, patch: UpdateInstance): Promise<Instance> {
    const { network, ...rest } = patch
    const current = this.get(id)
    if (!current.network.enabled) assertNoNetwork(network ?? {})
    const ports = network?.ports === undefined ? undefined : await this.#choosePorts(network.ports, current)
    if (rest.diskIoBps !== undefined && rest.diskIoBps > 0) this.#assertDiskRate(current.hypervisor, rest.diskIoBps)
    if (rest.hotplugBytes !== undefined) this.#assertHotplug(current.hypervisor, rest.hotplugBytes, rest.memoryBytes ?? current.memoryBytes)
    const mayGrow = rest.overlayBytes !== undefined || rest.diskIoBps !== undefined || rest.hotplugBytes !== undefined
    return this.#request(id, 'update', (work) =>
      this.#reserving(work, async () => {
        const { instance } = work
        const then = {
          ...instance,
          overlayBytes: rest.overlayBytes ?? instance.overlayBytes,
          hotplugBytes: rest.hotplugBytes ?? instance.hotplugBytes,
          ...diskIoOf(rest.diskIoBps, instance),
        }
        if (mayGrow && isMore(then, instance)) (await this.#admitAs(work, { ...then, runs: takesMemory(instance) }))()
        const isFaster = network?.bandwidthDownload !== undefined || network?.bandwidthUpload !== undefined
        if (isFaster && takesMemory(instance)) this.#admitNetwork(instance.name, bandwidthOf(network ?? {}, instance.network), instance)
        await update(work, { patch: rest, ports, bandwidth: network ?? {}, limits: this.#uses.config.limits })
      }),
    )
  }

  /** Gives host memory back, or says of each instance why it does not. Throws `conflict` while another one is under way. */
  async reclaimMemory(request: ReclaimRequest): Promise<Reclaimed> {
    this.#assertOpen()
    if (this.#isReclaiming) throw new AppError('conflict', 'Memory is being given back already: ask again when that is done')
    this.#isReclaiming = true
    try {
      return await reclaimMemory(request, {
        log: this.#uses.log,
        list: () => this.list(),
        usage: async (id) => this.#workers.get(id)?.live?.vm.usage(),
        obstacle: (instance) => this.#napObstacle(instance),
        nap: (id) => this.#napToReclaim(id),
        releaseWaiting: async (untilMs) => {
          let bytes = 0
          for (const hypervisor of this.#uses.hypervisors.values()) bytes += (await hypervisor.releaseWaiting?.(untilMs)) ?? 0
          return bytes
        },
        releaseBases: () => {
          const mapped = new Set(this.list().map(({ vm }) => vm?.machine?.base))
          return this.#uses.memory.release((base) => mapped.has(base), { signal: AbortSignal.timeout(60_000), log: this.#uses.log })
        },
      })
    } finally {
      this.#isReclaiming = false
    }
  }

  #napObstacle(instance: Instance): string | undefined {
    if (instance.state !== 'Running') return `it is ${instance.state}`
    if (this.isBusy(instance.id)) return 'it is in the middle of an operation'
    const admission = admit('standby', this.#subject(instance))
    return admission.answer === 'denied' ? admission.reason : undefined
  }

  async #napToReclaim(id: InstanceId): Promise<void> {
    const nap = this.#napAndWake(id)
    this.#naps.set(id, nap)
    try {
      await nap
    } finally {
      this.#naps.delete(id)
    }
  }

  /** What it takes of the host is kept for it meanwhile. */
  async #napAndWake(id: InstanceId): Promise<void> {
    const instance = this.get(id)
    this.#reserved.set(id, { ...instance, runs: true })
    try {
      await this.standby(id, { compression: 'off', wakes: true })
      await this.#consolidations.settled(id)
      // What fails here for a moment must not leave it asleep.
      await this.restore(id).catch(() => this.restore(id))
    } finally {
      this.#reserved.delete(id)
    }
  }

  /** Resolves when it is mounted, of an instance that runs, or will be with its next start. */
  async attachVolume(id: InstanceId, mount: MountRequest): Promise<Instance> {
    return this.#request(id, 'attach_volume', (work) =>
      attachVolume(work, mount, { judge: (bytes) => this.admitDisk(work.instance.name, bytes) }),
    )
  }

  /** Throws `in_use` while something in the guest uses it. */
  async detachVolume(id: InstanceId, volume: string): Promise<Instance> {
    const { id: volumeId } = this.#uses.volumes.resolve(volume)
    return this.#request(id, 'detach_volume', (work) => detachVolume(work, volumeId))
  }

  /** A volume becomes larger, whether it is attached or not. */
  async growVolume(text: string, bytes: number): Promise<Volume> {
    this.#assertOpen()
    const { volumes } = this.#uses
    const volume = volumes.resolve(text)
    if (bytes < volume.bytes) throw new AppError('invalid_size', `The volume ${volume.name} can only grow`)
    if (bytes === volume.bytes) return volume
    const [holder] = volumes.holders(volume.id)
    if (holder === undefined) return volumes.growAtRest(volume, bytes)
    if (holder.readOnly) {
      throw new AppError('conflict', `The volume ${volume.name} is attached to the instance ${holder.instanceName}, which reads it`, {
        hint: 'Detach it from all who read it, then make it larger',
      })
    }
    const { name } = this.get(holder.instanceId)
    await this.#request(holder.instanceId, 'attach_volume', (work) =>
      growVolume(work, volume.id, bytes, { judge: (more) => this.admitDisk(name, more) }),
    )
    return volumes.resolve(volume.id)
  }

  /** Looks at the disk; what it gives judges whether so many bytes more may be given out. Throws `insufficient_resources`. */
  async admitDisk(what: string, bytes: number): Promise<() => void> {
    const room = await this.#diskRoom()
    return () => this.#admitDemand(what, { ...NOTHING, diskBytes: bytes }, room)
  }

  /** Begins to delete what has expired. One that is busy is left for the next time. */
  deleteExpired(): void {
    for (const id of this.#rows.findExpired(Date.now())) {
      const instance = this.find(id)
      if (!instance || this.isBusy(id)) continue
      this.#workerOf(instance).log.info({ expiresAtMs: instance.expiresAtMs }, 'instance expired and is deleted')
      this.delete(id).catch(() => undefined)
    }
  }

  // Waiting and watching

  async wait(id: InstanceId, wanted: WaitFor): Promise<WaitResult> {
    if (wanted.state === 'Unknown') throw new AppError('invalid_state', 'Unknown cannot be waited for')
    this.get(id)
    return waitForState(id, wanted, {
      onChange: (listener) => this.#onChange(id, listener),
      find: (it) => this.find(it),
      isBusy: (it) => this.isBusy(it),
    })
  }

  /** What the VMM has used; zeros when none runs. */
  async stats(id: InstanceId): Promise<InstanceStats> {
    const instance = this.get(id)
    const usage = await this.#workers.get(id)?.live?.vm.usage()
    const traffic = this.#uses.network.traffic(id)
    return {
      instance,
      cpuSeconds: usage?.cpuSeconds ?? 0,
      memoryRssBytes: usage?.memoryRssBytes ?? 0,
      memoryVmsBytes: usage?.memoryVmsBytes ?? 0,
      networkRxBytes: traffic?.receivedBytes ?? usage?.networkRxBytes ?? 0,
      networkTxBytes: traffic?.sentBytes ?? usage?.networkTxBytes ?? 0,
    }
  }

  /** The line to the guest's agent, for exec, copy and stat. Throws `invalid_state` unless Running, `guest_unavailable` when it does not answer. */
  async guest(id: InstanceId, step: Step, operation: 'exec' | 'copy' | 'stat' = 'exec'): Promise<GuestClient> {
    const instance = this.get(id)
    const worker = this.#workerOf(instance)
    const admission = admit(operation, this.#subject(instance, { isQueued: true }))
    if (admission.answer === 'denied') throw this.#denied(instance, operation, admission.reason)
    if (!worker.live) throw new AppError('guest_unavailable', `The guest of ${instance.name} does not answer`)
    return worker.live.connected(step)
  }

  /**
   * Looks at the guest of one that runs, for what only counts when no one did anything to it meanwhile. Undefined when it does not run, is
   * in the middle of an operation, or has been in one before the look was over: a guest that stood still says nothing of itself.
   */
  async observe<T>(id: InstanceId, step: Step, look: (guest: GuestClient, address?: string) => Promise<T>): Promise<T | undefined> {
    const worker = this.#workers.get(id)
    const instance = this.find(id)
    if (worker?.live === undefined || worker.isBusy || instance?.state !== 'Running') return undefined
    const { live, turns } = worker
    const isUndisturbed = (): boolean => worker.turns === turns && !worker.isBusy && worker.live === live
    const nic = nicOf(instance)
    try {
      const found = await look(await live.connected(step), nic && this.#uses.network.guestNetworkOf(nic).ipv4?.address)
      return isUndisturbed() ? found : undefined
    } catch (error) {
      if (isUndisturbed()) throw error
      return undefined
    }
  }

  /**
   * Lines of a log, the last `tail` first. Rejects with `log_not_found` when there is no such log, which is not one that is empty;
   * a follower waits for one that may yet come.
   */
  async logs(
    id: InstanceId,
    options: { source?: LogSource; tail?: number; from?: string; follow?: boolean; untilStopped?: boolean; signal?: AbortSignal },
  ): Promise<AsyncIterable<LogBatch>> {
    const { name } = this.get(id)
    const { source = 'app', tail = 100, from, follow = false, untilStopped = false, signal } = options
    const isOver = (): boolean => {
      const instance = this.find(id)
      return instance === undefined || (untilStopped && isResting(instance.state) && !this.isBusy(id))
    }
    const path = this.#uses.paths.instanceLogs(id)[source]
    if (!(await isLogThere(path)) && (!follow || isOver())) {
      throw new AppError('log_not_found', `The instance ${name} has no log ${source}: nothing has begun to write it`)
    }
    return readLog(path, {
      tail,
      ...(from !== undefined && { from }),
      follow,
      shared: this.#logReads,
      isOver,
      onChange: (listener) => this.#onChange(id, listener),
      ...(signal === undefined ? {} : { signal }),
    })
  }

  /** Resolves when no sleeping state is being consolidated, or waits for it. */
  consolidated(): Promise<void> {
    return this.#consolidations.settled()
  }

  // The end

  /**
   * Takes no more requests and waits up to `graceMs` for what is under way; what takes longer is ended at its next step: a create or
   * start is undone, a stop or delete is finished by the next daemon. VMs go on.
   */
  async close(graceMs: number): Promise<void> {
    this.#isClosed = true
    const limit = setTimeout(() => this.#end.abort(new AppError('shutting_down', 'The daemon is shutting down')), graceMs)
    // Each may wait for the other: a consolidation for its turn with a worker, a worker for one that it cancels.
    const jobs = [this.#consolidations, this.#uses.compressing].map((job) => job[Symbol.asyncDispose]())
    await Promise.all([...jobs, ...[...this.#workers.values()].map((worker) => worker.close())])
    clearTimeout(limit)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close(10_000)
  }

  /** For an instance whose disk is counted already, as it is in every state. */
  readonly #admitAgain: Admit = async (work) => {
    await this.#uses.devices.assertReady(work.instance)
    return this.#admitAs(work, { ...work.instance, runs: true })
  }

  /** For one that becomes another than its record says: what it takes now makes room for what it will. */
  readonly #admitAs: AdmitAs = async ({ instance }, then) => {
    const room = await this.#diskRoom()
    const diskBytes = Math.max(0, then.overlayBytes - instance.overlayBytes)
    return () => {
      this.#admitDemand(instance.name, { ...(then.runs ? demandOf(then) : NOTHING), diskBytes }, room, instance)
      if (then.runs) this.#admitNetwork(instance.name, instance.network, instance)
      // Until its row says so itself.
      if (this.#reserved.has(instance.id)) this.#reserved.set(instance.id, then)
    }
  }

  /** What is admitted within `work` counts from then on, although it is recorded later. */
  async #reserving({ instance: { id } }: InstanceWork, work: () => Promise<void>): Promise<void> {
    this.#reserved.set(id, this.#reserved.get(id))
    try {
      await work()
    } finally {
      this.#reserved.delete(id)
    }
  }

  /** Begins what is done with a sleeping state in the background. What is compressed at once needs no base of its own first. */
  #attendSleep(id: InstanceId, onConsolidated?: () => void): void {
    const sleep = this.find(id)?.sleep
    if (sleep === undefined) return
    if (sleep.compress === undefined || sleep.compress.atMs > Date.now()) this.#consolidations.begin(id, onConsolidated)
    this.#compressions.begin(id)
  }

  /** Who has just gone to sleep may soon be woken: its driver makes ready for it. */
  #expectRestore(id: InstanceId): void {
    const instance = this.find(id)
    if (instance?.sleep === undefined) return
    const { paths, network, settings } = this.#work
    const image = this.#uses.images.byDigest(instance.imageDigest)
    const { generation, base } = instance.sleep
    if (image === undefined) return
    const spec = vmSpecOf(instance, { image, paths, network, ...settings })
    const capture = { dir: paths.instanceSleep(id, generation), base, isShared: this.#standsOn(base, id) }
    this.#hypervisor(instance.hypervisor).expectRestore?.(spec, capture)
  }

  /** A fork's row and its way to `target`; what cannot be taken leaves nothing. */
  async #goOn(child: Instance, target: TargetState, take: () => Promise<HeldPoint>): Promise<Instance> {
    let held: HeldPoint
    try {
      held = await take()
    } catch (error) {
      await this.#workerOf(this.get(child.id)).perform('create', undefined, (work) => undoCreate(work, error))
      throw error
    }
    await using point = held
    await this.#workerOf(this.get(child.id)).perform('create', undefined, (work) =>
      fork(work, point.point, { target, admit: this.#admitAs }),
    )
    this.#compressions.begin(child.id)
    return this.get(child.id)
  }

  async #reserveFork(source: Instance, request: ForkInstance, target: TargetState): Promise<Instance> {
    checkName(request.name)
    if (target === 'Standby' && source.gpu !== undefined) {
      throw new AppError('invalid_state', `A fork of ${source.name} has a part of a GPU as well, and cannot be put into standby with it`, {
        hint: 'Fork it to Running or Stopped',
      })
    }
    if (!source.network.enabled) assertNoNetwork(request)
    const bandwidth = bandwidthOf(request, source.network)
    // What has no memory to go on from boots first, also on its way to Standby.
    const runs = target === 'Running' || (target === 'Standby' && source.state === 'Stopped')
    const demand = runs ? demandOf(source) : NOTHING
    const ports = await this.#choosePorts(request.ports ?? [])
    const room = await this.#diskRoom()
    this.#assertOpen()
    // Volumes that it writes to become two.
    const volumeBytes = sum(source.volumes.map(({ readOnly, bytes, overlayBytes = 0 }) => (readOnly ? overlayBytes : bytes)))
    this.#admitDemand(request.name, { ...demand, diskBytes: source.overlayBytes + volumeBytes }, room)
    if (runs) this.#admitNetwork(request.name, bandwidth)
    const { db, config, host, events } = this.#uses
    const id = createId() as InstanceId
    const nowMs = Date.now()
    return db.transaction(() => {
      if (this.#rows.findByName(request.name)) throw nameConflict(request.name)
      this.#assertPortsFree(ports)
      const uid = this.#takeUid(config, host.isRoot)
      const instance: Instance = {
        ...forkOf(source, { id, name: request.name, network: { ports, ...bandwidth }, nowMs }),
        ...(uid === undefined ? {} : { uid }),
      }
      const addressed = this.#insert(instance)
      events.record({ kind: 'instance.created', subject: id, data: eventDataOf(addressed) })
      return addressed
    })
  }

  /** With the address that is its own until the row goes. */
  #insert(instance: Instance): Instance {
    // A lease goes with its row.
    this.#rows.insert(instance)
    if (!instance.network.enabled) return instance
    const addressed = { ...instance, network: { ...instance.network, ip: this.#uses.network.lease(instance.id) } }
    this.#rows.update(addressed)
    return addressed
  }

  /**
   * Rows of forks name the layers that they will stand on, and have volumes of their own for those that the source writes to. One that was
   * asked something meanwhile has a worker, which follows.
   */
  #claim(source: Instance, takers: readonly InstanceId[]): void {
    const { db, events, volumes } = this.#uses
    const claimed = db.transaction(() => {
      const found = takers.flatMap((id) => this.#rows.find(id) ?? [])
      return found.map((before) => {
        const own = source.volumes.map((attachment) => volumes.attachmentOfFork(attachment, before))
        const taker = { ...before, disk: source.disk, volumes: own }
        followAttachments({ rows: volumes.rows, events }, taker, before.volumes, own)
        this.#rows.update(taker)
        return taker
      })
    })
    for (const taker of claimed) {
      const worker = this.#workers.get(taker.id)
      if (worker) worker.instance = taker
    }
  }

  async #sweepUnused(disk: readonly string[]): Promise<void> {
    await this.#uses.disks.release(disk)
    await this.#uses.memory.sweepBases()
  }

  #standsOn(base: BaseRef, except?: InstanceId): boolean {
    return (
      this.#rows.list().some(({ id, vm, sleep }) => id !== except && (vm?.machine?.base === base || sleep?.base === base)) ||
      this.#snapshots.standsOn(base) ||
      this.#points.standsOn(base)
    )
  }

  /** As the gate sees it; `isQueued` with what is under way for it. */
  #subject(instance: Instance, { isQueued = false } = {}): Subject {
    return {
      state: instance.state,
      capabilities: this.#hypervisor(instance.hypervisor).capabilities,
      holdsDevice: holdsDevice(instance),
      ...(isQueued ? { pending: this.#workerOf(instance).pending } : {}),
    }
  }

  #denied({ name, state }: Instance, operation: Operation, reason: string): AppError {
    return new AppError('invalid_state', `The instance ${name} cannot take ${operation} now: ${reason}`, { detail: { state } })
  }

  #takeUid(config: InstancesUses['config'], isRoot: boolean): number | undefined {
    if (!isRoot) return undefined
    const uid = this.#rows.findFreeUid(config.instances.uidBase, config.instances.uidCount)
    if (uid === undefined) throw new AppError('insufficient_resources', 'Every user id of the configured range is taken')
    return uid
  }

  async #request(id: InstanceId, verb: Transition | Rewiring, story: Story, options: RequestOptions = {}): Promise<Instance> {
    this.#assertOpen()
    await this.#workerOf(this.get(id)).request(verb, story, options)
    return this.get(id)
  }

  /** Calls `listener` when the instance has changed, and when nothing is under way for it any more. */
  #onChange(id: InstanceId, listener: () => void): Disposable {
    const onIdle = (idle: InstanceId) => idle === id && listener()
    this.#idleListeners.add(onIdle)
    const listening = this.#uses.events.listen(({ subject }) => subject === id && listener())
    return {
      [Symbol.dispose]: () => {
        this.#idleListeners.delete(onIdle)
        listening[Symbol.dispose]()
      },
    }
  }

  #workerOf(instance: Instance): InstanceWorker {
    const known = this.#workers.get(instance.id)
    if (known) return known
    const { paths, log, config } = this.#uses
    const worker = new InstanceWorker(instance, {
      work: this.#work,
      log: instanceLogger(log, instance, { path: paths.instanceLogs(instance.id).daemon, maxBytes: config.instances.logMaxBytes }),
      signal: this.#end.signal,
      onForgotten: () => this.#workers.delete(instance.id),
      onIdle: () => {
        for (const listener of this.#idleListeners) listener(instance.id)
      },
    })
    this.#workers.set(instance.id, worker)
    return worker
  }

  #checkCreate(request: CreateInstance): Asked {
    checkName(request.name)
    checkEnv(request.env ?? {})
    const sizes = {
      vcpus: request.vcpus ?? DEFAULT_SIZES.vcpus,
      memoryBytes: request.memoryBytes ?? DEFAULT_SIZES.memoryBytes,
      overlayBytes: request.overlayBytes ?? DEFAULT_SIZES.overlayBytes,
    }
    checkSizes(sizes, this.#uses.config.limits)
    const hypervisor = request.hypervisor ?? this.#uses.config.hypervisor
    const slots = this.#hypervisor(hypervisor).volumeSlots
    const mounts = planMounts(request.volumes ?? [], [], { volumes: this.#uses.volumes, slots })
    const network = request.network ?? {}
    if (network.enabled === false) assertNoNetwork(network)
    bandwidthOf(network)
    const { hotplugBytes = 0 } = request
    this.#assertHotplug(hypervisor, hotplugBytes, sizes.memoryBytes)
    const platform = `linux/${this.#uses.host.architecture === 'aarch64' ? 'arm64' : 'amd64'}`
    if (request.platform !== undefined) assertPlatform(request.image, formatPlatform(parsePlatform(request.platform)), platform)
    if (request.diskIoBps !== undefined) this.#assertDiskRate(hypervisor, request.diskIoBps)
    return { ...sizes, hotplugBytes, ...present('diskIoBps', request.diskIoBps), sizes, hypervisor, platform, mounts }
  }

  async #pullFor(request: CreateInstance, demand: Demand): Promise<ReadyImage> {
    const { images } = this.#uses
    const { image: name, platform } = request
    // Nothing is pulled for what cannot run.
    this.#admitDemand(request.name, demand, await this.#diskRoom())
    this.#admitNetwork(request.name, request.network ?? {})
    await images.pull({ name, ...(platform === undefined ? {} : { platform }) })
    try {
      return await images.whenReady(name, { signal: AbortSignal.timeout(IMAGE_WAIT_MS) })
    } catch (cause) {
      const code = errorCodeOf(cause)
      if (code !== undefined && code !== 'timed_out' && code !== 'image_not_ready') throw cause
      throw new AppError('image_not_ready', `The image ${name} is still being pulled`, {
        hint: `Follow it with: dormouse image pull ${name}; then ask again`,
        retryAfterSeconds: 2,
        cause,
      })
    }
  }

  /** What is in the way of its devices is told before anything is made. */
  async #planDevices({ devices, gpuProfile }: CreateInstance, name: HypervisorName): Promise<PlannedDevices> {
    if (((devices?.length ?? 0) > 0 || gpuProfile !== undefined) && !this.#hypervisor(name).capabilities.has('gpu')) {
      throw new AppError('not_supported', `The hypervisor ${name} cannot be given devices of the host (no gpu-passthrough)`, {
        hint: 'Use the hypervisor qemu',
      })
    }
    return this.#uses.devices.plan({ ...present('devices', devices), ...present('profile', gpuProfile) })
  }

  #reserve(
    request: CreateInstance,
    asked: Asked,
    image: ReadyImage,
    ports: readonly PortForward[],
    mounts: Awaited<ReturnType<typeof prepareMounts>>,
    devices: PlannedDevices,
  ): Instance {
    const { images, config, host, events, volumes } = this.#uses
    const id = createId() as InstanceId
    const nowMs = Date.now()
    return this.#uses.db.transaction(() => {
      if (this.#rows.findByName(request.name)) throw nameConflict(request.name)
      if (!images.byDigest(image.digest)) throw new AppError('image_not_ready', `The image ${request.image} was deleted meanwhile`)
      this.#assertPortsFree(ports)
      const uid = this.#takeUid(config, host.isRoot)
      const isNetworked = request.network?.enabled !== false
      const instance: Instance = {
        id,
        name: request.name,
        createdAtMs: nowMs,
        image: request.image,
        imageDigest: image.digest,
        platform: asked.platform,
        hypervisor: asked.hypervisor,
        ...asked.sizes,
        hotplugBytes: asked.hotplugBytes,
        ...present('diskIoBps', asked.diskIoBps),
        network: {
          enabled: isNetworked,
          ports,
          ...bandwidthOf(request.network ?? {}),
          ...(isNetworked ? { mac: macOf(id) } : {}),
        },
        env: request.env ?? {},
        tags: request.tags ?? {},
        skipGuestAgent: request.skipGuestAgent ?? false,
        skipKernelHeaders: request.skipKernelHeaders ?? false,
        state: 'Created',
        operation: 'create',
        disk: [nameLayer('raw')],
        volumes: mounts.attachments,
        ...(devices.devices.length > 0 ? { devices: devices.devices } : {}),
        ...(request.gpuProfile === undefined ? {} : { gpu: { profile: request.gpuProfile } }),
        phases: { current: 'Created', sinceMs: nowMs, durations: {} },
        ...(request.entrypoint?.length ? { entrypoint: request.entrypoint } : {}),
        ...(request.cmd?.length ? { cmd: request.cmd } : {}),
        ...(request.freshBoot ? { freshBoot: true } : {}),
        ...(request.snapshotPolicy === undefined ? {} : { snapshotPolicy: request.snapshotPolicy }),
        ...(request.autoStandby === undefined ? {} : { autoStandby: request.autoStandby }),
        ...(request.expiresAtMs === undefined ? {} : { expiresAtMs: request.expiresAtMs }),
        ...present('healthCheck', request.healthCheck),
        ...present('restartPolicy', request.restartPolicy),
        ...(uid === undefined ? {} : { uid }),
      }
      mounts.assertUnchanged()
      devices.assertFree()
      followAttachments({ rows: volumes.rows, events }, instance, [], instance.volumes)
      const addressed = this.#insert(instance)
      events.record({ kind: 'instance.created', subject: id, data: eventDataOf(addressed) })
      return addressed
    })
  }

  async #choosePorts(requests: readonly PortRequest[], owner?: Instance): Promise<PortForward[]> {
    const ports = portsOf(requests, this.#uses.config.network.publishAddress)
    this.#assertPortsFree(ports, owner)
    const chosen: PortForward[] = []
    const isGiven = (port: PortForward): boolean =>
      chosen.some((other) => overlaps(port, other)) || this.#rows.findPortOwner(port) !== undefined
    for (const port of ports) {
      // Its own ports are open already while it runs, and make room for those that take their place.
      const isHeld = owner?.network.ports.some((held) => overlaps(held, port))
      chosen.push(isHeld ? port : await probeHostPort(port, isGiven))
    }
    return chosen
  }

  #assertPortsFree(ports: readonly PortForward[], owner?: Instance): void {
    for (const port of ports) {
      const taken = port.hostPort === 0 ? undefined : this.#rows.findPortOwner(port)
      if (taken && taken.id !== owner?.id) {
        throw new AppError('port_in_use', `The host port ${port.hostPort}/${port.protocol} is published by the instance ${taken.name}`, {
          hint: 'Take another host port, 0 picks a free one',
          detail: { instance: taken.id },
        })
      }
    }
  }

  /** `by` is whose demand it is, when its processors and memory may be among those that are taken. */
  #admitDemand(name: string, demand: Demand, room: DiskRoom, by?: Instance): void {
    const { limits } = this.#uses.config
    const { cpus, memoryBytes } = this.#uses.host
    const taken = this.#taken(by)
    const own = by !== undefined && takesMemory(by) ? demandOf(by) : NOTHING
    admitDemand(
      name,
      demand,
      {
        vcpus: taken.vcpus - own.vcpus,
        memoryBytes: taken.memoryBytes - own.memoryBytes,
        diskBytes: taken.overlayBytes + this.#uses.volumes.demandBytes() + room.frozenBytes + room.imagesBytes,
        diskIoBps: taken.diskIoBps - own.diskIoBps,
      },
      {
        vcpus: { host: cpus, ratio: limits.cpuRatio },
        memoryBytes: { host: memoryBytes, ratio: limits.memoryRatio },
        diskBytes: { host: room.totalBytes, ratio: limits.diskRatio },
        ...(limits.diskIoBps === 0 ? {} : { diskIoBps: { host: limits.diskIoBps, ratio: limits.diskIoRatio } }),
        diskFreeBytes: room.freeBytes,
      },
    )
  }

  /** What rows say is taken, and beyond it what has been admitted and is not on record yet; but for `by`. */
  #taken(by?: Instance): ReturnType<InstanceRows['demand']> {
    let { vcpus, memoryBytes, overlayBytes, diskIoBps } = this.#rows.demand()
    for (const [id, then] of this.#reserved) {
      const row = this.#rows.find(id)
      if (then === undefined || row === undefined || id === by?.id) continue
      const now = takesMemory(row) ? demandOf(row) : NOTHING
      const more = then.runs ? demandOf(then) : NOTHING
      vcpus += Math.max(0, more.vcpus - now.vcpus)
      memoryBytes += Math.max(0, more.memoryBytes - now.memoryBytes)
      diskIoBps += Math.max(0, more.diskIoBps - now.diskIoBps)
      overlayBytes += Math.max(0, then.overlayBytes - row.overlayBytes)
    }
    return { vcpus, memoryBytes, overlayBytes, diskIoBps }
  }

  #assertHotplug(hypervisor: HypervisorName, hotplugBytes: number, memoryBytes: number): void {
    checkHotplug(hotplugBytes, memoryBytes, this.#uses.config.limits)
    if (hotplugBytes === 0 || this.#hypervisor(hypervisor).capabilities.has('memory_hotplug')) return
    throw new AppError('not_supported', `The hypervisor ${hypervisor} cannot add memory to a VM that runs (no hotplug-memory)`, {
      hint: 'Use the hypervisor qemu, or give it a larger size',
    })
  }

  #assertDiskRate(hypervisor: HypervisorName, bytesPerSecond: number): void {
    checkDiskRate(bytesPerSecond)
    if (this.#hypervisor(hypervisor).capabilities.has('disk_limit')) return
    throw new AppError('not_supported', `The hypervisor ${hypervisor} cannot limit how much its disks move`)
  }

  /** `by` is whose it is, when its share may be among what is taken. */
  #admitNetwork(name: string, wanted: Pick<Instance['network'], 'bandwidthDownload' | 'bandwidthUpload'>, by?: Instance): void {
    const { linkCapacity, config } = this.#uses
    const isTaker = (one: Instance): boolean => takesMemory(one) || this.#reserved.get(one.id)?.runs === true
    const taken = this.list().filter((one) => one.id !== by?.id && isTaker(one))
    const { bytesPerSecond } = linkCapacity()
    admitNetwork(
      name,
      networkDemandOf(wanted),
      taken.reduce((sum, { network }) => sum + networkDemandOf(network), 0),
      bytesPerSecond === undefined ? undefined : bytesPerSecond * config.limits.networkRatio,
    )
  }

  async #diskRoom(): Promise<DiskRoom> {
    const room = await this.#lookAtDisk()
    const { makeRoom } = this.#uses
    if (room.freeBytes >= DISK_RESERVE || makeRoom === undefined) return room
    // Before anything is refused for want of room.
    await makeRoom(DISK_RESERVE - room.freeBytes)
    return this.#lookAtDisk()
  }

  async #lookAtDisk(): Promise<DiskRoom> {
    const { images, disks, paths } = this.#uses
    const [{ blocks, bavail, bsize }, imagesBytes, frozenBytes] = await Promise.all([
      statfs(paths.dataDir),
      images.usage(),
      disks.frozenBytes(),
    ])
    return { totalBytes: blocks * bsize, freeBytes: bavail * bsize, imagesBytes, frozenBytes }
  }

  #hypervisor(name: HypervisorName): Hypervisor {
    const hypervisor = this.#uses.hypervisors.get(name)
    if (!hypervisor) {
      throw new AppError('not_supported', `The hypervisor ${name} is not available in this daemon`, {
        hint: `Available: ${[...this.#uses.hypervisors.keys()].join(', ')}`,
      })
    }
    return hypervisor
  }

  #assertOpen(): void {
    if (this.#isClosed) throw new AppError('shutting_down', 'The daemon is shutting down')
  }
}

/** What the data directory's file system holds, as it was a moment ago. */
interface DiskRoom {
  readonly totalBytes: number
  readonly freeBytes: number
  readonly imagesBytes: number
  /** Of layers that are shared or kept: they take what they have, and no more. */
  readonly frozenBytes: number
}

/** A create request once it is checked and its defaults are filled in. */
interface Asked extends Pick<Instance, 'vcpus' | 'memoryBytes' | 'hotplugBytes' | 'diskIoBps'> {
  readonly sizes: Sizes
  readonly hypervisor: HypervisorName
  readonly platform: string
  readonly mounts: readonly PlannedMount[]
}

function assertPlatform(image: string, platform: string, own: string): void {
  if (platform === own) return
  throw new AppError('platform_not_available', `The image ${image} for ${platform} cannot run on this host`, {
    hint: `This host runs ${own}: pull the image for it, or leave out the platform`,
  })
}

/** Of an update: 0 takes the rate away. */
const diskIoOf = (asked: number | undefined, { diskIoBps }: Pick<Instance, 'diskIoBps'>): Pick<Instance, 'diskIoBps'> =>
  present('diskIoBps', asked === undefined ? diskIoBps : asked || undefined)

const isMore = (then: Instance, now: Instance): boolean =>
  then.overlayBytes > now.overlayBytes || demandOf(then).diskIoBps > demandOf(now).diskIoBps || then.hotplugBytes > now.hotplugBytes

const present = <K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } =>
  (value === undefined ? {} : { [key]: value }) as { [P in K]?: V }

const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0)

/** What only an instance with a network can have. */
function assertNoNetwork({ ports, ...rates }: NonNullable<UpdateInstance['network']>): void {
  if (ports?.length) throw new AppError('invalid_request', 'Ports can be published only with the network enabled')
  if (Object.keys(bandwidthOf(rates)).length > 0) {
    throw new AppError('invalid_request', 'Bandwidth can be limited only with the network enabled')
  }
}

const nameConflict = (name: string): AppError =>
  new AppError('name_conflict', `The name ${name} is taken by another instance`, { hint: `See it with: dormouse inspect ${name}` })
