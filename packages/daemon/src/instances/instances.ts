/**
 * The room's head: makes instances, finds them, and hands every change to the one worker that each has. Reading is straight from
 * the rows, so a list never waits for an operation.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { isResting } from '@dormouse/api/instance-states.ts'
import type { Config } from '../config/config.ts'
import type { Devices } from '../devices/devices.ts'
import type { Disks } from '../disks/disks.ts'
import type { Egress } from '../egress/egress.ts'
import type { Events } from '../events/events.ts'
import type { GuestClient } from '../guest/guest-client.ts'
import type { HostFacts } from '../host/host-facts.ts'
import { WHY_ABSENT } from '../hypervisors/absent-drivers.ts'
import type { BaseRef, Hypervisor, HypervisorName, IgnoredConnections, Inbound } from '../hypervisors/hypervisor.ts'
import type { Images } from '../images/images.ts'
import type { BackgroundJobs } from '../lib/background-jobs.ts'
import { createId } from '../lib/create-id.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { LayeredMemory } from '../memory/memory.ts'
import type { LinkCapacity, Network } from '../network/network.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import { InstanceRows } from '../store/instances.ts'
import { type Snapshot, SnapshotRows } from '../store/snapshots.ts'
import type { Volume, Volumes } from '../volumes/volumes.ts'
import { demandOf, takesMemory } from './admission.ts'
import { carryOver } from './carry-over.ts'
import { assertDiskRate, assertHotplug, assertVcpus } from './driver-limits.ts'
import { Forks } from './forks.ts'
import { HostRoom } from './host-room.ts'
import type {
  CreateInstance,
  ForkInstance,
  Instance,
  InstanceId,
  InstanceStats,
  ListInstances,
  LogSource,
  MountRequest,
  UpdateInstance,
  WaitResult,
} from './instance.ts'
import type { CrashPoint, WorkSettings, WorkUses } from './instance-work.ts'
import { assertNoNetwork, bandwidthOf, checkCommand, limitsOf } from './limits.ts'
import type { GuestAccess } from './live-vm.ts'
import { isLogThere, type LogBatch, readLog } from './log-lines.ts'
import { type Reclaimed, type ReclaimRequest, reclaimMemory } from './memory-reclaim.ts'
import { Newcomers, PROBE_LIMIT_MS } from './newcomers.ts'
import { attachVolume } from './operations/attach-volume.ts'
import { create } from './operations/create.ts'
import { type DeleteOptions, deleteInstance } from './operations/delete.ts'
import { detachVolume } from './operations/detach-volume.ts'
import type { TargetState } from './operations/fork.ts'
import { growVolume } from './operations/grow-volume.ts'
import { hold, startByPolicy, stopToRestart, type WantedRestart } from './operations/restart.ts'
import { restoreSnapshot, targetOf } from './operations/restore-snapshot.ts'
import { type SnapshotRequest, snapshot } from './operations/snapshot.ts'
import type { StandbyOptions, StayAwake } from './operations/standby.ts'
import { type Admit, type StartOverrides, start } from './operations/start.ts'
import { type StopOptions, stop } from './operations/stop.ts'
import { update } from './operations/update.ts'
import { PublishedPorts } from './published-ports.ts'
import type { Reconciled } from './reconcile.ts'
import { SharedReads } from './shared-reads.ts'
import { Sleeps } from './sleeps.ts'
import { takeUp } from './take-up.ts'
import { nicOf } from './vm-spec-of.ts'
import { type WaitFor, waitForState } from './wait.ts'
import { Workers } from './workers.ts'

export interface InstancesUses {
  readonly db: Database
  readonly events: Events
  readonly images: Pick<Images, 'byDigest' | 'readyImage' | 'assertThere' | 'pull' | 'whenReady' | 'usage' | 'hold'>
  readonly disks: Disks
  readonly volumes: Volumes
  readonly devices: Devices
  readonly paths: Paths
  readonly log: Logger
  readonly config: Pick<Config, 'limits' | 'instances' | 'network' | 'hypervisor' | 'snapshots'>
  readonly host: Pick<HostFacts, 'cpus' | 'memoryBytes' | 'isRoot' | 'architecture'>
  readonly hypervisors: ReadonlyMap<HypervisorName, Hypervisor>
  readonly network: Network
  readonly egress: Egress
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

export class Instances implements AsyncDisposable {
  readonly #uses: InstancesUses
  readonly #rows: InstanceRows
  readonly #snapshots: SnapshotRows
  /** What of the host is given out, and what is left. */
  readonly room: HostRoom
  readonly #ports: PublishedPorts
  readonly #newcomers: Newcomers
  readonly #work: WorkUses
  readonly #workers: Workers
  readonly #sleeps: Sleeps
  readonly #forks: Forks
  readonly #logReads = new SharedReads()
  #isReclaiming = false

  constructor(uses: InstancesUses) {
    this.#uses = uses
    this.#rows = new InstanceRows(uses.db)
    this.#snapshots = new SnapshotRows(uses.db)
    const { images, disks, volumes, paths, config, host, linkCapacity, makeRoom } = uses
    this.room = new HostRoom({
      ...{ rows: this.#rows, images, disks, volumes, host, linkCapacity },
      dataDir: paths.dataDir,
      limits: config.limits,
      ...(makeRoom === undefined ? {} : { makeRoom }),
    })
    this.#ports = new PublishedPorts(this.#rows, config.network.publishAddress)
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
      egress: uses.egress,
      sleepJobs: { cancel: (id) => this.#sleeps.cancelJobs(id) },
      crashPoint: uses.crashPoint ?? (async () => undefined),
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
    const [find, get] = [this.find.bind(this), this.get.bind(this)]
    const { log } = uses
    this.#workers = new Workers({ work: this.#work, log, get })
    const doors = { work: this.#work, workers: this.#workers, room: this.room, find, get }
    this.#newcomers = new Newcomers({
      ...uses,
      rows: this.#rows,
      room: this.room,
      ports: this.#ports,
      hypervisorOf: (name) => this.#hypervisor(name),
      assertOpen: () => this.#workers.assertOpen(),
    })
    this.#sleeps = new Sleeps({
      ...doors,
      log,
      compressing: uses.compressing,
      consolidationBytesPerSecond: config.snapshots.consolidationBytesPerSecond,
      admitAgain: this.#admitAgain,
    })
    this.#forks = new Forks({
      ...doors,
      newcomers: this.#newcomers,
      carryOver: (snapshot, wanted, given) => this.#carryOver(snapshot, wanted, given),
      compress: (id) => this.#sleeps.compress(id),
    })
  }

  /**
   * Compares what is stored with what is true and mends it: VMs that outlived the last daemon are held again, what was cut short is
   * undone or finished. Once, before the first request. Resolves when every instance is in a true state or on its way there.
   */
  recover(): Promise<Reconciled> {
    const { hypervisors, log } = this.#uses
    return takeUp({ ...this.#work, hypervisors, log, sleeps: this.#sleeps, workerOf: (instance) => this.#workers.of(instance) })
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
    return this.#workers.isBusy(id)
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
    this.#workers.assertOpen()
    const instance = await this.#newcomers.make(request)
    await this.#workers.of(instance).perform('create', undefined, create)
    return this.get(instance.id)
  }

  async start(id: InstanceId, overrides: StartOverrides = {}): Promise<Instance> {
    checkCommand(overrides)
    const hasOverrides = Boolean(overrides.entrypoint?.length || overrides.cmd?.length)
    return this.#workers.request(id, 'start', (work) => start(work, overrides, this.#admitAgain), {
      ...(hasOverrides ? { refuseAlready: 'it runs already, and its command can be changed only by a start from Stopped' } : {}),
    })
  }

  /** Its restart policy leaves it alone from then on, until someone starts it. */
  async stop(id: InstanceId, { force, graceMs: grace }: Pick<StopOptions, 'force' | 'graceMs'> = {}): Promise<Instance> {
    const graceMs = force ? 0 : grace
    const options = { ...present('force', force), ...present('graceMs', grace) }
    const { restartPolicy } = this.get(id)
    const isRefused = this.#workers.of(this.get(id)).admission('stop').answer === 'denied'
    const stopped = this.#workers.request(id, 'stop', (work) => stop(work, options), graceMs === undefined ? {} : { graceMs })
    // What is Stopped already, or is being stopped by its policy, would be started again: behind that stop, and before any start.
    const holding = restartPolicy === undefined || isRefused ? undefined : this.#workers.request(id, 'update', async (work) => hold(work))
    await Promise.all([stopped, holding])
    return this.get(id)
  }

  /** Starts it again, as its policy has it; of one that runs and is not well, it is stopped first. Nothing, when that is no longer so. */
  async restartByPolicy(id: InstanceId, wanted: WantedRestart): Promise<void> {
    // Each half looks again: someone may have stopped, started or changed it meanwhile.
    if (this.get(id).state === 'Running')
      await this.#workers.request(id, 'stop', (work) => stopToRestart(work, wanted), { isTentative: true })
    await this.#workers.request(id, 'start', (work) => startByPolicy(work, this.#admitAgain), { isTentative: true })
  }

  /** Resolves when its memory is on disk and its VM is gone. Options are refused when it sleeps already. */
  standby(id: InstanceId, options: StandbyOptions = {}): Promise<Instance> {
    return this.#sleeps.standby(id, options)
  }

  /** A standby that no one asked for: `stayAwake` may say no, until it is on record. Refused while another one is under way. */
  nap(id: InstanceId, stayAwake: StayAwake): Promise<Instance> {
    return this.#sleeps.nap(id, stayAwake)
  }

  /** Can its driver put it to sleep? */
  canSleep(id: InstanceId): boolean {
    const hypervisor = this.find(id)?.hypervisor
    return hypervisor !== undefined && this.#uses.hypervisors.get(hypervisor)?.capabilities.has('standby') === true
  }

  /** Is a standby of it under way, or waiting? */
  isFallingAsleep(id: InstanceId): boolean {
    return this.#workers.find(id)?.pending.includes('standby') ?? false
  }

  /** The connections that others have opened to it. Rejects while it does not run, and when they cannot be counted. */
  async inbound(id: InstanceId, ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    const instance = this.get(id)
    const [vm, nic] = [this.#workers.find(id)?.live?.vm, nicOf(instance)]
    if (vm === undefined) throw new AppError('guest_unavailable', `The VM of ${instance.name} is not held`)
    return nic === undefined ? { active: 0 } : this.#uses.network.inbound(vm, nic, ignored, step)
  }

  /** Resolves when the agent has answered. */
  restore(id: InstanceId): Promise<Instance> {
    return this.#sleeps.restore(id)
  }

  /** A second instance that goes on from where this one is. Resolves when it is in its target state. */
  fork(id: InstanceId, request: ForkInstance): Promise<Instance> {
    return this.#forks.fork(id, request)
  }

  /** A new instance that goes on from a snapshot, whose source may be gone; from its disk alone with another `hypervisor` if that is wanted. */
  forkSnapshot(kept: Snapshot, request: ForkInstance, hypervisor?: HypervisorName): Promise<Instance> {
    return this.#forks.forkSnapshot(kept, request, hypervisor)
  }

  /** A kept point of the instance. Resolves when it is whole on disk. */
  async snapshot(id: InstanceId, request: Omit<SnapshotRequest, 'id'>): Promise<Snapshot> {
    this.#workers.assertOpen()
    const snapshotId = createId()
    const { name } = this.get(id)
    const admission = this.#workers.admission(this.get(id), 'snapshot', { isQueued: true })
    if (admission.answer === 'denied') throw new AppError('conflict', `A snapshot of ${name} cannot be taken now: ${admission.reason}`)
    await this.#workers.request(id, 'snapshot', (work) => snapshot(work, { ...request, id: snapshotId }))
    const taken = this.#snapshots.find(snapshotId)
    if (taken === undefined) throw new AppError('not_found', `The snapshot of ${name} was deleted as soon as it was taken`)
    return taken
  }

  /** Takes an instance that does not run back to a snapshot of its own; its disk alone to another `hypervisor` if that is wanted. */
  async restoreSnapshot(id: InstanceId, taken: Snapshot, wanted?: TargetState, hypervisor?: HypervisorName): Promise<Instance> {
    if (taken.instance.id !== id)
      throw new AppError('invalid_request', `The snapshot ${taken.id} is of another instance, ${taken.instance.name}`)
    const target = targetOf(taken, wanted)
    const kept = await this.#carryOver(taken, hypervisor, this.get(id))
    return this.#workers.request(id, 'restore_snapshot', (work) =>
      this.room.reserving(id, async () => {
        const judge = await this.room.admitAs(work, { ...kept.instance, runs: target === 'Running' })
        if (target === 'Running' || kept.instance.overlayBytes > work.instance.overlayBytes) judge()
        await restoreSnapshot(work, kept, target)
      }),
    )
  }

  async delete(id: InstanceId, options: DeleteOptions = {}): Promise<void> {
    const instance = this.get(id)
    const graceMs = options.graceful === false ? 0 : this.#uses.config.instances.deleteGraceMs
    await this.#workers.of(instance).request('delete', (work) => deleteInstance(work, options), { graceMs })
  }

  /** Changes what the patch names, all or nothing. */
  async update(id: InstanceId, patch: UpdateInstance): Promise<Instance> {
    const { network, ...rest } = patch
    const current = this.get(id)
    if (!current.network.enabled) assertNoNetwork(network ?? {})
    using chosen = network?.ports === undefined ? undefined : await this.#ports.choose(network.ports, current)
    if (rest.vcpus !== undefined) assertVcpus(this.#hypervisor(current.hypervisor), rest.vcpus)
    if (rest.diskIoBps !== undefined && rest.diskIoBps > 0) assertDiskRate(this.#hypervisor(current.hypervisor), rest.diskIoBps)
    if (rest.hotplugBytes !== undefined) {
      const limits = limitsOf(rest.name ?? current.name, this.#uses.config.limits)
      assertHotplug(this.#hypervisor(current.hypervisor), rest.hotplugBytes, rest.memoryBytes ?? current.memoryBytes, limits)
    }
    const mayGrow = rest.overlayBytes !== undefined || rest.diskIoBps !== undefined || rest.hotplugBytes !== undefined
    return await this.#workers.request(id, 'update', (work) =>
      this.room.reserving(id, async () => {
        const { instance } = work
        const then = {
          ...instance,
          overlayBytes: rest.overlayBytes ?? instance.overlayBytes,
          hotplugBytes: rest.hotplugBytes ?? instance.hotplugBytes,
          ...diskIoOf(rest.diskIoBps, instance),
        }
        if (mayGrow && isMore(then, instance)) (await this.room.admitAs(work, { ...then, runs: takesMemory(instance) }))()
        const isFaster = network?.bandwidthDownload !== undefined || network?.bandwidthUpload !== undefined
        if (isFaster && takesMemory(instance)) this.room.admitNetwork(instance.name, bandwidthOf(network ?? {}, instance.network), instance)
        await update(work, { patch: rest, ports: chosen?.ports, bandwidth: network ?? {}, limits: this.#uses.config.limits })
      }),
    )
  }

  /** Gives host memory back, or says of each instance why it does not. Throws `conflict` while another one is under way. */
  async reclaimMemory(request: ReclaimRequest): Promise<Reclaimed> {
    this.#workers.assertOpen()
    if (this.#isReclaiming) throw new AppError('conflict', 'Memory is being given back already: ask again when that is done')
    this.#isReclaiming = true
    try {
      return await reclaimMemory(request, {
        log: this.#uses.log,
        list: () => this.list(),
        usage: async (id) => this.#workers.find(id)?.live?.vm.usage(),
        obstacle: (instance) => this.#sleeps.obstacle(instance),
        nap: (id) => this.#sleeps.napAndWake(id),
        releaseWaiting: async (untilMs) => {
          let bytes = 0
          for (const hypervisor of this.#uses.hypervisors.values()) bytes += (await hypervisor.releaseWaiting?.(untilMs)) ?? 0
          return bytes
        },
        waitingBytes: () => [...this.#uses.hypervisors.values()].reduce((sum, driver) => sum + (driver.waitingBytes?.() ?? 0), 0),
        releaseBases: (options) => {
          const mapped = new Set(this.list().map(({ vm }) => vm?.machine?.base))
          const step = { signal: AbortSignal.timeout(60_000), log: this.#uses.log }
          return this.#uses.memory.release((base) => mapped.has(base), step, options)
        },
      })
    } finally {
      this.#isReclaiming = false
    }
  }

  /** Resolves when it is mounted, of an instance that runs, or will be with its next start. */
  async attachVolume(id: InstanceId, mount: MountRequest): Promise<Instance> {
    return this.#workers.request(id, 'attach_volume', (work) =>
      attachVolume(work, mount, { judge: (bytes) => this.room.admitDisk(work.instance.name, bytes) }),
    )
  }

  /** Throws `in_use` while something in the guest uses it. */
  async detachVolume(id: InstanceId, volume: string): Promise<Instance> {
    const { id: volumeId } = this.#uses.volumes.resolve(volume)
    return this.#workers.request(id, 'detach_volume', (work) => detachVolume(work, volumeId))
  }

  /** A volume becomes larger, whether it is attached or not. */
  async growVolume(text: string, bytes: number): Promise<Volume> {
    this.#workers.assertOpen()
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
    await this.#workers.request(holder.instanceId, 'attach_volume', (work) =>
      growVolume(work, volume.id, bytes, { judge: (more) => this.room.admitVolume(name, more) }),
    )
    return volumes.resolve(volume.id)
  }

  /** Begins to delete what has expired, each as `around` does it. One that is busy is left for the next time. */
  deleteExpired(around: (instance: Instance, work: () => Promise<void>) => Promise<void> = (_, work) => work()): void {
    for (const id of this.#rows.findExpired(Date.now())) {
      const instance = this.find(id)
      if (!instance || this.isBusy(id)) continue
      this.#workers.of(instance).log.info({ expiresAtMs: instance.expiresAtMs }, 'instance expired and is deleted')
      around(instance, () => this.delete(id)).catch(() => undefined)
    }
  }

  // Waiting and watching

  async wait(id: InstanceId, wanted: WaitFor): Promise<WaitResult> {
    if (wanted.state === 'Unknown') throw new AppError('invalid_state', 'Unknown cannot be waited for')
    this.get(id)
    return waitForState(id, wanted, {
      onChange: (listener) => this.#workers.onChange(id, listener),
      find: (it) => this.find(it),
      isBusy: (it) => this.isBusy(it),
    })
  }

  /** What the VMM has used; zeros when none runs. */
  async stats(id: InstanceId): Promise<InstanceStats> {
    const instance = this.get(id)
    const usage = await this.#workers.find(id)?.live?.vm.usage()
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

  /** What callers do in the guest. Throws `invalid_state` unless Running, `guest_unavailable` when it does not answer. */
  async guest(id: InstanceId, step: Step, operation: 'exec' | 'copy' | 'stat' = 'exec'): Promise<GuestAccess> {
    const instance = this.get(id)
    const { live } = this.#workers.of(instance)
    this.#workers.assertAdmitted(instance, operation)
    if (!live) throw new AppError('guest_unavailable', `The guest of ${instance.name} does not answer`)
    const guest = await live.connected(step)
    return {
      exec: (request, until) => live.exec(request, until),
      stat: (path, options, until) => guest.stat(path, options, until),
      copyTo: (request, source, until) => guest.copyTo(request, source, until),
      copyFrom: (path, options, until) => guest.copyFrom(path, options, until),
    }
  }

  /**
   * Looks at the guest of one that runs, for what only counts when no one did anything to it meanwhile. Undefined when it does not run, is
   * in the middle of an operation, or has been in one before the look was over: a guest that stood still says nothing of itself.
   */
  async observe<T>(id: InstanceId, step: Step, look: (guest: GuestClient, address?: string) => Promise<T>): Promise<T | undefined> {
    const worker = this.#workers.find(id)
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
      onChange: (listener) => this.#workers.onChange(id, listener),
      ...(signal === undefined ? {} : { signal }),
    })
  }

  /** Resolves when no sleeping state is being consolidated, or waits for it. */
  consolidated(): Promise<void> {
    return this.#sleeps.consolidated()
  }

  // The end

  /**
   * Takes no more requests and waits up to `graceMs` for what is under way; what takes longer is ended at its next step: a create or
   * start is undone, a stop or delete is finished by the next daemon. VMs go on.
   */
  async close(graceMs: number): Promise<void> {
    await this.#workers.close(graceMs, () => [this.#sleeps, this.#uses.compressing].map((jobs) => jobs[Symbol.asyncDispose]()))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close(10_000)
  }

  /** For an instance whose disk is counted already, as it is in every state. */
  readonly #admitAgain: Admit = async (work) => {
    await this.#uses.devices.assertReady(work.instance)
    return this.room.admitAs(work, { ...work.instance, runs: true })
  }

  #standsOn(base: BaseRef, except?: InstanceId): boolean {
    return (
      this.#rows.list().some(({ id, vm, sleep }) => id !== except && (vm?.machine?.base === base || sleep?.base === base)) ||
      this.#snapshots.standsOn(base) ||
      this.#forks.standsOn(base)
    )
  }

  async #carryOver(
    snapshot: Snapshot,
    wanted: HypervisorName | undefined,
    { devices, gpu }: Pick<Instance, 'devices' | 'gpu'>,
  ): Promise<Snapshot> {
    const { config, network, settings, log } = this.#uses
    const given = { limits: limitsOf(snapshot.instance.name, config.limits), network, freshBoot: settings.freshBoot }
    const own = { ...present('devices', devices), ...present('gpu', gpu) }
    const step = { signal: AbortSignal.timeout(PROBE_LIMIT_MS), log }
    return carryOver(snapshot, { wanted, devices: own, hypervisorOf: (name) => this.#hypervisor(name), ...given }, step)
  }

  #hypervisor(name: HypervisorName): Hypervisor {
    const hypervisor = this.#uses.hypervisors.get(name)
    if (!hypervisor) {
      const why = name === 'fake' ? '' : `: ${WHY_ABSENT[name]}`
      throw new AppError('not_supported', `The hypervisor ${name} is not available in this daemon${why}`, {
        hint: `Use one of ${[...this.#uses.hypervisors.keys()].join(', ')}; which of them this host can run is told by: dormouse doctor`,
      })
    }
    return hypervisor
  }
}

/** Of an update: 0 takes the rate away. */
const diskIoOf = (asked: number | undefined, { diskIoBps }: Pick<Instance, 'diskIoBps'>): Pick<Instance, 'diskIoBps'> =>
  present('diskIoBps', asked === undefined ? diskIoBps : asked || undefined)

const isMore = (then: Instance, now: Instance): boolean =>
  then.overlayBytes > now.overlayBytes || demandOf(then).diskIoBps > demandOf(now).diskIoBps || then.hotplugBytes > now.hotplugBytes

const present = <K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } =>
  (value === undefined ? {} : { [key]: value }) as { [P in K]?: V }
