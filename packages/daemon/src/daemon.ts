/**
 * The composition root: builds every part, in order, on one stack, and takes them down in the opposite order. VMs are no part of it: they are found at the start and left at the end.
 */
import { chmodSync, closeSync, existsSync, mkdirSync, openSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { Audit } from './audit/audit.ts'
import { AutoStandby } from './auto-standby/auto-standby.ts'
import { assetsIn, defaultAssetsDir } from './config/assets.ts'
import type { Config } from './config/config.ts'
import { Devices } from './devices/devices.ts'
import { PciIds } from './devices/pci-ids.ts'
import { Disks } from './disks/disks.ts'
import { Egress, type ProxyProcesses } from './egress/egress.ts'
import { Events } from './events/events.ts'
import { Garbage } from './garbage/garbage.ts'
import { isTight, readHostFacts, readMemoryPressure } from './host/host-facts.ts'
import { hostSysfs, noSysfs, type Sysfs } from './host/sysfs.ts'
import { loadOrCreateSecret } from './http/secret.ts'
import { HttpServer } from './http/server.ts'
import { createHypervisors, type DriverUses, type HypervisorSet, noCgroups, noMemory, nothingKept } from './hypervisor-set.ts'
import type { BaseRef, Hypervisor, HypervisorName } from './hypervisors/hypervisor.ts'
import { Images } from './images/images.ts'
import type { CrashPoint } from './instances/instance-work.ts'
import { Instances } from './instances/instances.ts'
import { DEFAULT_SIZES } from './instances/limits.ts'
import { Reaper } from './instances/reaper.ts'
import { BackgroundJobs } from './lib/background-jobs.ts'
import { parseSubnet4, parseSubnet6 } from './lib/subnet.ts'
import type { Logger } from './log.ts'
import { BridgedNetwork } from './network/bridged.ts'
import { type Network, readLinkCapacity, UserNetwork } from './network/network.ts'
import { Paths } from './paths.ts'
import { Schedules, scheduledSnapshots } from './schedules/schedules.ts'
import { Snapshots } from './snapshots/snapshots.ts'
import { Ballast } from './store/ballast.ts'
import { DataLock } from './store/data-lock.ts'
import { Database } from './store/database.ts'
import { DiskLayers } from './store/disk-layers.ts'
import { LeaseRows } from './store/leases.ts'
import { TokenRows } from './store/tokens.ts'
import { Supervision } from './supervision/supervision.ts'
import { VERSION } from './version.ts'
import { Volumes } from './volumes/volumes.ts'

export interface DaemonOptions {
  readonly config: Config
  readonly log: Logger
  /** In place of those that the configuration names; for tests. */
  readonly hypervisors?: readonly Hypervisor[]
  readonly crashPoint?: CrashPoint
  /** In place of the host's own; for tests. */
  readonly sysfs?: Sysfs
  /** In place of processes of the host; for tests. */
  readonly proxies?: ProxyProcesses
}

// Under way at the end: long enough for a create, short enough for an init system's patience.
const CLOSE_GRACE_MS = 10_000

export class Daemon implements AsyncDisposable {
  readonly instances: Instances
  readonly images: Images
  readonly events: Events
  readonly paths: Paths
  /** The TCP address that it listens on, when it does. */
  readonly tcp: { readonly host: string; readonly port: number } | undefined
  readonly #schedules: Schedules
  readonly #autoStandby: AutoStandby
  readonly #supervision: Supervision
  readonly #http: HttpServer
  readonly #log: Logger
  readonly #parts: AsyncDisposableStack
  #stopped: Promise<void> | undefined

  private constructor(parts: {
    instances: Instances
    images: Images
    schedules: Schedules
    autoStandby: AutoStandby
    supervision: Supervision
    events: Events
    paths: Paths
    http: HttpServer
    tcp: Daemon['tcp']
    log: Logger
    stack: AsyncDisposableStack
  }) {
    this.instances = parts.instances
    this.images = parts.images
    this.events = parts.events
    this.paths = parts.paths
    this.tcp = parts.tcp
    this.#schedules = parts.schedules
    this.#autoStandby = parts.autoStandby
    this.#supervision = parts.supervision
    this.#http = parts.http
    this.#log = parts.log
    this.#parts = parts.stack
  }

  /** A daemon that has mended what it found and answers requests. Throws a sentence, having taken down what it had built. */
  static async start({
    config,
    log,
    hypervisors: given,
    crashPoint = crashPointOf(config, log),
    sysfs = config.hypervisor === 'fake' ? noSysfs : hostSysfs,
    proxies,
  }: DaemonOptions): Promise<Daemon> {
    const startedAt = performance.now()
    await using stack = new AsyncDisposableStack()
    const paths = new Paths(config)
    makeDirectories(paths)
    const ballast = new Ballast({ path: paths.ballast, log })
    stack.use(ballast.spend(() => DataLock.take(paths.lock)))
    closeSync(openSync(paths.database, 'a', 0o600))
    const db = stack.use(ballast.spend(() => Database.open(paths.database, { ballast })))
    stack.use(ballast.tend())
    const events = new Events({ db })
    const audit = stack.use(new Audit({ db, log, config: config.audit }))
    audit.recover()
    const host = readHostFacts()
    const assets = assetsIn(config.assetsDir ?? defaultAssetsDir())
    const isNeeded = (base: BaseRef): boolean => instances.standsOn(base)
    const disks = new Disks({ paths, layers: new DiskLayers(db) })
    const volumes = new Volumes({
      ...{ db, events, disks, log, crashPoint },
      fillProgram: assets.fill,
      diskPath: (layer) => paths.disk(layer),
      // The one after those of VMs that wait: no VM runs as it.
      ...(host.isRoot ? { user: userOf(config.instances.uidBase + 2 * config.instances.uidCount + 1) } : {}),
      admit: (what, bytes) => instances.room.admitVolume(what, bytes),
    })
    const devices = new Devices({ db, events, sysfs, pciIds: new PciIds(config.devices.pciIdsFiles), log, isRoot: host.isRoot })
    const pool: DriverUses['pool'] = {
      roomBytes: () => instances.room.memoryRoom(),
      makeDisk: (file, owner, step) => disks.makeEmpty(file, DEFAULT_SIZES.overlayBytes, { owner, step }),
    }
    const uses = { config, log, paths, assets, isRoot: host.isRoot, stack, workDir: paths.goldenRunDir, isNeeded, pool }
    const set: HypervisorSet =
      given === undefined
        ? createHypervisors(uses)
        : { drivers: given, memory: noMemory, kept: nothingKept, cgroups: noCgroups, recover: async () => undefined }
    const { drivers } = set
    const hypervisors = new Map<HypervisorName, Hypervisor>(drivers.map((driver) => [driver.name, driver]))

    const images: Images = stack.use(
      new Images({
        ...{ db, paths, log, events, crashPoint },
        config: config.images,
        isInUse: (digest: string): boolean => instances.isImageInUse(digest),
        makeRoom: (bytes, of) => garbage.makeRoom(bytes, of),
      }),
    )
    const { memory } = set
    const network = networkOf({ config, db, log, stack, isRoot: host.isRoot, shimPath: assets.shim })
    const egress = stack.use(
      new Egress({
        ...{ paths, network, log, shimPath: assets.shim, logMaxBytes: config.instances.logMaxBytes },
        opensHost: config.network.allowHostAccess,
        trusted: config.egress.trusted,
        ...(set.vmCgroups && { cgroups: set.vmCgroups }),
        // After those of VMs, of VMs that wait, and of what fills volumes: no VM runs as it.
        userOf: (uid) => uid + 2 * (config.instances.uidCount + 1),
        ...(proxies && { processes: proxies }),
      }),
    )
    const compressing = stack.use(new BackgroundJobs())
    const snapshots = new Snapshots({ db, events, disks, memory, paths, log, compressing, crashPoint })
    const instances: Instances = new Instances({
      db,
      events,
      images,
      disks,
      volumes,
      devices,
      paths,
      log,
      config,
      host,
      hypervisors,
      memory,
      network,
      egress,
      linkCapacity: () => readLinkCapacity(config.network),
      compressing,
      crashPoint,
      makeRoom: (bytes) => garbage.makeRoom(bytes),
      settings: {
        modules: existsSync(assets.modules) ? assets.modules : undefined,
        freshBoot: !config.golden.enabled,
      },
    })
    stack.defer(() => instances.close(0))
    const { isStale, ...kept } = set.kept
    const garbage: Garbage = stack.use(
      new Garbage({
        ...{ images, instances, snapshots, volumes, paths, config, log, audit, crashPoint, isStale },
        memory: kept,
        layers: new DiskLayers(db),
      }),
    )
    await set.recover()
    await images.recover()
    await instances.recover()
    snapshots.recover()
    stack.use(new Reaper({ instances, audit }))
    const schedules = new Schedules({ db, events, instances, snapshots: scheduledSnapshots(instances, snapshots, audit), log })
    stack.defer(() => schedules.close())
    schedules.recover()
    const autoStandby = new AutoStandby({
      ...{ db, events, instances, audit, log, tracking: network.tracking },
      maxConcurrent: config.snapshots.maxConcurrentAutoStandbys,
    })
    stack.defer(() => autoStandby.close())
    autoStandby.recover()
    const supervision = new Supervision({ db, instances, events, audit, log })
    // What it has under way ends with the instances, which are taken down after it.
    stack.defer(() => void supervision.close())
    supervision.recover()
    garbage.begin()

    const http = stack.use(
      new HttpServer({
        instances,
        images,
        registry: images.registry,
        snapshots,
        volumes,
        devices,
        schedules,
        autoStandby,
        supervision,
        garbage,
        events,
        host: {
          facts: host,
          network: network.model,
          link: () => readLinkCapacity(config.network),
          defaultHypervisor: config.hypervisor,
          hypervisors: drivers.map((driver) => ({
            name: driver.name,
            capabilities: driver.capabilities,
            ...(driver.versions === undefined ? {} : { versions: driver.versions }),
            waiting: () => driver.waiting,
            probe: () => driver.probe({ signal: AbortSignal.timeout(60_000), log }),
          })),
          ratios: {
            cpu: config.limits.cpuRatio,
            memory: config.limits.memoryRatio,
            disk: config.limits.diskRatio,
            network: config.limits.networkRatio,
            diskIo: config.limits.diskIoRatio,
          },
          diskIoBps: config.limits.diskIoBps,
          cgroups: set.cgroups,
          disk: async () => {
            const { bavail, blocks, bsize } = await statfs(paths.dataDir)
            return { totalBytes: blocks * bsize, freeBytes: bavail * bsize }
          },
          pressure: () => {
            const pressure = readMemoryPressure()
            return { availableBytes: pressure.availableBytes, isTight: isTight(pressure) }
          },
        },
        secret: loadOrCreateSecret(config.jwtSecretFile, log),
        tokens: new TokenRows(db),
        audit,
        allowedOrigins: config.allowedOrigins,
        version: VERSION,
        log,
      }),
    )
    const { tcp } = await http.listen({ socket: { path: config.listen.socket, mode: config.listen.socketMode }, tcp: config.listen.tcp })
    log.info(
      {
        version: VERSION,
        socket: config.listen.socket,
        tcp,
        dataDir: paths.dataDir,
        hypervisor: config.hypervisor,
        ms: Math.round(performance.now() - startedAt),
      },
      'daemon ready',
    )
    return new Daemon({ instances, images, schedules, autoStandby, supervision, events, paths, http, tcp, log, stack: stack.move() })
  }

  /** Takes no more requests, finishes or parks what is under way, leaves VMs running. Repeat is harmless. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop()
    return this.#stopped
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  async #stop(): Promise<void> {
    this.#log.info('daemon stopping; its VMs go on')
    await Promise.all([
      this.#http.close(),
      this.#schedules.close(),
      this.#autoStandby.close(),
      this.#supervision.close(),
      this.instances.close(CLOSE_GRACE_MS),
    ])
    await this.#parts.disposeAsync()
    this.#log.info('daemon stopped')
  }
}

const userOf = (id: number): { uid: number; gid: number } => ({ uid: id, gid: id })

interface NetworkParts {
  readonly config: Config
  readonly db: Database
  readonly log: Logger
  readonly stack: AsyncDisposableStack
  readonly isRoot: boolean
  readonly shimPath: string
}

function networkOf({ config, db, log, stack, isRoot, shimPath }: NetworkParts): Network {
  const { kind, dns, bridge, subnet, subnet6, uplink, allowHostAccess } = config.network
  if (kind === 'user') return new UserNetwork({ dns })
  if (!isRoot) {
    throw new AppError('invalid_request', 'A bridge is for a daemon that is root', {
      hint: 'Set DORMOUSE_NETWORK=user, or start the daemon as root',
    })
  }
  const [subnet4, parsed6] = [parseSubnet4(subnet), parseSubnet6(subnet6)]
  if (subnet4 === undefined || parsed6 === undefined) throw new AppError('invalid_request', `${subnet} or ${subnet6} is no subnet`)
  const settings = { bridge, subnet4, subnet6: parsed6, uplink, dns, opensHost: allowHostAccess }
  return stack.use(new BridgedNetwork({ settings, leases: new LeaseRows(db), shimPath, log }))
}

/**
 * Dies at one named step: how the crash tests see what a restart makes of it. At others it stops until it is told to go on (SIGCONT), so
 * that something can be done to its VM just then.
 */
function crashPointOf({ crashAt, stopAt }: Pick<Config, 'crashAt' | 'stopAt'>, log: Logger): CrashPoint {
  if (crashAt === undefined && stopAt.length === 0) return async () => undefined
  return async (operation, step) => {
    const at = `${operation}:${step}`
    if (stopAt.includes(at)) {
      log.info({ at, pid: process.pid }, 'daemon stops itself')
      // Of all threads the one that sends it gets it, before it goes on.
      process.kill(process.pid, 'SIGSTOP')
    }
    if (at !== crashAt) return
    process.kill(process.pid, 'SIGKILL')
    // The signal comes at its own time; nothing may happen until then.
    await new Promise(() => undefined)
  }
}

function makeDirectories(paths: Paths): void {
  // A VM's own user goes through these to its disks and sockets, and can list nothing.
  for (const dir of [paths.dataDir, paths.runDir, paths.instancesDir, paths.disksDir, paths.vmsDir, paths.proxiesDir]) {
    mkdirSync(dir, { recursive: true, mode: 0o711 })
    chmodSync(dir, 0o711)
  }
  mkdirSync(paths.cacheDir, { recursive: true, mode: 0o711 })
  // Memory: no user but ours gets through to any of it.
  for (const dir of [paths.basesDir, paths.pointsDir, paths.snapshotsDir]) mkdirSync(dir, { recursive: true, mode: 0o700 })
  // What is in an image is no other VM's to read; a VMM gets its root by a descriptor.
  mkdirSync(paths.imagesDir, { recursive: true, mode: 0o700 })
  chmodSync(paths.imagesDir, 0o700)
}
