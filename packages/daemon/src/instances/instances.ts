/**
 * The room's head: makes instances, finds them, and hands every change to the one worker that each has. Reading is straight from
 * the rows, so a list never waits for an operation.
 */
import { statfs } from 'node:fs/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { admit, isResting, type Transition } from '@dormouse/api/instance-states.ts'
import { createId } from '@paralleldrive/cuid2'
import type { Config } from '../config/config.ts'
import type { Disks } from '../disks/disks.ts'
import { nameLayer } from '../disks/layer.ts'
import type { Events } from '../events/events.ts'
import type { GuestClient } from '../guest/guest-client.ts'
import type { HostFacts } from '../host/host-facts.ts'
import { overlaps } from '../host/host-ports.ts'
import type { Hypervisor, HypervisorName, PortForward } from '../hypervisors/hypervisor.ts'
import type { Images, ReadyImage } from '../images/images.ts'
import { formatPlatform, parsePlatform } from '../images/platform.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import { macOf, USER_NET } from '../network/network.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import { InstanceRows } from '../store/instances.ts'
import { admitDemand, type Demand } from './admission.ts'
import { probeHostPort } from './host-ports.ts'
import type {
  CreateInstance,
  Instance,
  InstanceId,
  InstanceStats,
  ListInstances,
  LogSource,
  PortRequest,
  UpdateInstance,
  WaitResult,
} from './instance.ts'
import { instanceLogger } from './instance-log.ts'
import { type CrashPoint, eventDataOf, type InstanceWork, type WorkSettings, type WorkUses } from './instance-work.ts'
import { InstanceWorker, type RequestOptions, type Story } from './instance-worker.ts'
import { checkEnv, checkName, checkSizes, DEFAULT_SIZES, portsOf, type Sizes } from './limits.ts'
import { isLogThere, readLog } from './log-lines.ts'
import { create } from './operations/create.ts'
import { type DeleteOptions, deleteInstance } from './operations/delete.ts'
import { type StartOverrides, start } from './operations/start.ts'
import { type StopOptions, stop } from './operations/stop.ts'
import { update } from './operations/update.ts'
import { type Reconciled, reconcile } from './reconcile.ts'
import { type WaitFor, waitForState } from './wait.ts'

export interface InstancesUses {
  readonly db: Database
  readonly events: Events
  readonly images: Pick<Images, 'byDigest' | 'readyImage' | 'pull' | 'whenReady' | 'usage'>
  readonly disks: Disks
  readonly paths: Paths
  readonly log: Logger
  readonly config: Pick<Config, 'limits' | 'instances' | 'network' | 'hypervisor'>
  readonly host: Pick<HostFacts, 'cpus' | 'memoryBytes' | 'isRoot' | 'architecture'>
  readonly hypervisors: ReadonlyMap<HypervisorName, Hypervisor>
  readonly settings: Pick<WorkSettings, 'modules' | 'dns' | 'freshBoot'>
  readonly crashPoint?: CrashPoint
}

/** How much of an id is enough to name an instance. */
const MIN_PREFIX = 4
const IMAGE_WAIT_MS = 5000

export class Instances implements AsyncDisposable {
  readonly #uses: InstancesUses
  readonly #rows: InstanceRows
  readonly #work: WorkUses
  readonly #workers = new Map<InstanceId, InstanceWorker>()
  readonly #end = new AbortController()
  readonly #idleListeners = new Set<(id: InstanceId) => void>()
  #isClosed = false

  constructor(uses: InstancesUses) {
    this.#uses = uses
    this.#rows = new InstanceRows(uses.db)
    const { stopGraceMs, deleteGraceMs, bootLimitMs, logMaxBytes } = uses.config.instances
    this.#work = {
      db: uses.db,
      rows: this.#rows,
      events: uses.events,
      images: uses.images,
      disks: uses.disks,
      paths: uses.paths,
      crashPoint: uses.crashPoint ?? (async () => undefined),
      settings: { ...uses.settings, stopGraceMs, deleteGraceMs, bootLimitMs, logMaxBytes },
      hypervisorOf: (name) => this.#hypervisor(name),
    }
  }

  /**
   * Compares what is stored with what is true and mends it: VMs that outlived the last daemon are held again, what was cut short is
   * undone or finished. Once, before the first request. Resolves when every instance is in a true state or on its way there.
   */
  async recover(): Promise<Reconciled> {
    return reconcile({
      ...this.#work,
      log: this.#uses.log,
      hypervisors: this.#uses.hypervisors,
      workerOf: (instance) => this.#workerOf(instance),
    })
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

  /** True while an instance stands on that image, so that it may not be deleted. */
  isImageInUse(digest: string): boolean {
    return this.#rows.hasImage(digest)
  }

  // Changing

  /** Resolves when the VM runs and the instance is Initializing; the guest is then still on its way. */
  async create(request: CreateInstance): Promise<Instance> {
    this.#assertOpen()
    const asked = this.#checkCreate(request)
    if (this.#rows.findByName(request.name)) throw nameConflict(request.name)
    const demand = { ...asked.sizes, diskBytes: asked.sizes.overlayBytes }
    const image = this.#uses.images.readyImage(request.image, request.platform) ?? (await this.#pullFor(request, demand))
    assertPlatform(request.image, image.platform, asked.platform)
    const ports = await this.#choosePorts(request.network?.ports ?? [])
    const room = await this.#diskRoom()
    // From here to the row nothing awaits: who comes first has the name, the ports and the room.
    this.#assertOpen()
    this.#admitDemand(request.name, demand, room)
    const instance = this.#reserve(request, asked, image, ports)
    await this.#workerOf(instance).perform('create', undefined, create)
    return this.get(instance.id)
  }

  async start(id: InstanceId, overrides: StartOverrides = {}): Promise<Instance> {
    const hasOverrides = Boolean(overrides.entrypoint?.length || overrides.cmd?.length)
    // Its disk is counted already, in every state.
    const admitCapacity = async ({ instance }: InstanceWork) => {
      const room = await this.#diskRoom()
      return () => this.#admitDemand(instance.name, { ...instance, diskBytes: 0 }, room)
    }
    return this.#request(id, 'start', (work) => start(work, overrides, admitCapacity), {
      ...(hasOverrides ? { refuseAlready: 'it runs already, and its command can be changed only by a start from Stopped' } : {}),
    })
  }

  async stop(id: InstanceId, options: StopOptions = {}): Promise<Instance> {
    const graceMs = options.force ? 0 : options.graceMs
    return this.#request(id, 'stop', (work) => stop(work, options), graceMs === undefined ? {} : { graceMs })
  }

  async delete(id: InstanceId, options: DeleteOptions = {}): Promise<void> {
    const instance = this.get(id)
    const graceMs = options.graceful === false ? 0 : this.#uses.config.instances.deleteGraceMs
    await this.#workerOf(instance).request('delete', (work) => deleteInstance(work, options), { graceMs })
  }

  /** Changes what the patch names, all or nothing. */
  async update(id: InstanceId, patch: UpdateInstance): Promise<Instance> {
    const { network, ...rest } = patch
    if (network?.bandwidthDownload !== undefined || network?.bandwidthUpload !== undefined) {
      throw new AppError('not_supported', 'Bandwidth limits are not supported on this network yet')
    }
    const current = this.get(id)
    if (!current.network.enabled && network?.ports?.length) throw portsWithoutNetwork()
    const ports = network?.ports === undefined ? undefined : await this.#choosePorts(network.ports, current)
    const room = rest.overlayBytes === undefined ? undefined : await this.#diskRoom()
    return this.#request(id, 'update', async (work) => {
      const growth = (rest.overlayBytes ?? 0) - work.instance.overlayBytes
      if (room && growth > 0) this.#admitDemand(work.instance.name, { vcpus: 0, memoryBytes: 0, diskBytes: growth }, room)
      await update(work, { patch: rest, ports, limits: this.#uses.config.limits })
    })
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
    return {
      instance,
      cpuSeconds: usage?.cpuSeconds ?? 0,
      memoryRssBytes: usage?.memoryRssBytes ?? 0,
      memoryVmsBytes: usage?.memoryVmsBytes ?? 0,
      networkRxBytes: usage?.networkRxBytes ?? 0,
      networkTxBytes: usage?.networkTxBytes ?? 0,
    }
  }

  /** The line to the guest's agent, for exec, copy and stat. Throws `invalid_state` unless Running, `guest_unavailable` when it does not answer. */
  async guest(id: InstanceId, step: Step, operation: 'exec' | 'copy' | 'stat' = 'exec'): Promise<GuestClient> {
    const instance = this.get(id)
    const worker = this.#workerOf(instance)
    const { capabilities } = this.#hypervisor(instance.hypervisor)
    const admission = admit(operation, { state: instance.state, capabilities, pending: worker.pending })
    if (admission.answer === 'denied') {
      throw new AppError('invalid_state', `The instance ${instance.name} cannot take ${operation} now: ${admission.reason}`, {
        detail: { state: instance.state },
      })
    }
    if (!worker.live) throw new AppError('guest_unavailable', `The guest of ${instance.name} does not answer`)
    return worker.live.connected(step)
  }

  /**
   * Lines of a log, the last `tail` first. Rejects with `log_not_found` when there is no such log, which is not one that is empty;
   * a follower waits for one that may yet come.
   */
  async logs(
    id: InstanceId,
    options: { source?: LogSource; tail?: number; follow?: boolean; untilStopped?: boolean; signal?: AbortSignal },
  ): Promise<AsyncIterable<readonly string[]>> {
    const { name } = this.get(id)
    const { source = 'app', tail = 100, follow = false, untilStopped = false, signal } = options
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
      follow,
      isOver,
      onChange: (listener) => this.#onChange(id, listener),
      ...(signal === undefined ? {} : { signal }),
    })
  }

  // The end

  /**
   * Takes no more requests and waits up to `graceMs` for what is under way; what takes longer is ended at its next step: a create or
   * start is undone, a stop or delete is finished by the next daemon. VMs go on.
   */
  async close(graceMs: number): Promise<void> {
    this.#isClosed = true
    const limit = setTimeout(() => this.#end.abort(new AppError('shutting_down', 'The daemon is shutting down')), graceMs)
    await Promise.all([...this.#workers.values()].map((worker) => worker.close()))
    clearTimeout(limit)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close(10_000)
  }

  async #request(id: InstanceId, verb: Transition | 'update', story: Story, options: RequestOptions = {}): Promise<Instance> {
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
    this.#hypervisor(hypervisor)
    const network = request.network ?? {}
    if (network.enabled === false && network.ports?.length) {
      throw portsWithoutNetwork()
    }
    if (network.bandwidthDownload !== undefined || network.bandwidthUpload !== undefined) {
      throw new AppError('not_supported', 'Bandwidth limits are not supported on this network yet')
    }
    if (request.hotplugBytes !== undefined && request.hotplugBytes > 0) {
      throw new AppError('not_supported', 'Memory that is added while a VM runs is not supported yet')
    }
    const platform = `linux/${this.#uses.host.architecture === 'aarch64' ? 'arm64' : 'amd64'}`
    if (request.platform !== undefined) assertPlatform(request.image, formatPlatform(parsePlatform(request.platform)), platform)
    return { sizes, hypervisor, platform }
  }

  async #pullFor(request: CreateInstance, demand: Demand): Promise<ReadyImage> {
    const { images } = this.#uses
    const { image: name, platform } = request
    // Nothing is pulled for what cannot run.
    this.#admitDemand(request.name, demand, await this.#diskRoom())
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

  #reserve(request: CreateInstance, asked: Asked, image: ReadyImage, ports: readonly PortForward[]): Instance {
    const { images, config, host, events } = this.#uses
    const id = createId() as InstanceId
    const nowMs = Date.now()
    return this.#uses.db.transaction(() => {
      if (this.#rows.findByName(request.name)) throw nameConflict(request.name)
      if (!images.byDigest(image.digest)) throw new AppError('image_not_ready', `The image ${request.image} was deleted meanwhile`)
      this.#assertPortsFree(ports)
      const uid = host.isRoot ? this.#rows.findFreeUid(config.instances.uidBase, config.instances.uidCount) : undefined
      if (host.isRoot && uid === undefined) throw new AppError('insufficient_resources', 'Every user id of the configured range is taken')
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
        hotplugBytes: 0,
        network: { enabled: isNetworked, ports, ...(isNetworked ? { mac: macOf(id), ip: USER_NET.ipv4.address } : {}) },
        env: request.env ?? {},
        tags: request.tags ?? {},
        skipGuestAgent: request.skipGuestAgent ?? false,
        skipKernelHeaders: request.skipKernelHeaders ?? false,
        state: 'Created',
        operation: 'create',
        disk: [nameLayer('raw')],
        phases: { current: 'Created', sinceMs: nowMs, durations: {} },
        ...(request.entrypoint?.length ? { entrypoint: request.entrypoint } : {}),
        ...(request.cmd?.length ? { cmd: request.cmd } : {}),
        ...(request.snapshotPolicy === undefined ? {} : { snapshotPolicy: request.snapshotPolicy }),
        ...(request.expiresAtMs === undefined ? {} : { expiresAtMs: request.expiresAtMs }),
        ...(uid === undefined ? {} : { uid }),
      }
      this.#rows.insert(instance)
      events.record({ kind: 'instance.created', subject: id, data: eventDataOf(instance) })
      return instance
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

  #admitDemand(name: string, demand: Demand, room: DiskRoom): void {
    const { limits } = this.#uses.config
    const { cpus, memoryBytes } = this.#uses.host
    const { overlayBytes, ...taken } = this.#rows.demand()
    admitDemand(
      name,
      demand,
      { ...taken, diskBytes: overlayBytes + room.frozenBytes + room.imagesBytes },
      {
        vcpus: cpus * limits.cpuRatio,
        memoryBytes: memoryBytes * limits.memoryRatio,
        diskBytes: room.totalBytes * limits.diskRatio,
        diskFreeBytes: room.freeBytes,
      },
    )
  }

  async #diskRoom(): Promise<DiskRoom> {
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
interface Asked {
  readonly sizes: Sizes
  readonly hypervisor: HypervisorName
  readonly platform: string
}

function assertPlatform(image: string, platform: string, own: string): void {
  if (platform === own) return
  throw new AppError('platform_not_available', `The image ${image} for ${platform} cannot run on this host`, {
    hint: `This host runs ${own}: pull the image for it, or leave out the platform`,
  })
}

const portsWithoutNetwork = (): AppError => new AppError('invalid_request', 'Ports can be published only with the network enabled')

const nameConflict = (name: string): AppError =>
  new AppError('name_conflict', `The name ${name} is taken by another instance`, { hint: `See it with: dormouse inspect ${name}` })
