/** For tests: instances on a fake host, with a directory of their own and one ready image, through any number of daemons' lives. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { type Capability, type InstanceState, isLive } from '@dormouse/api/instance-states.ts'
import { configOf } from '../config/config.ts'
import { Devices } from '../devices/devices.ts'
import { FakeSysfs } from '../devices/fake-sysfs.ts'
import { PciIds } from '../devices/pci-ids.ts'
import { Disks } from '../disks/disks.ts'
import { formatOf, isPlain, nameLayer } from '../disks/layer.ts'
import { Egress } from '../egress/egress.ts'
import { FakeProxies } from '../egress/fake-proxies.ts'
import type { ProxyOrder } from '../egress/proxy-order.ts'
import { Events } from '../events/events.ts'
import { pollUntil } from '../host/poll-until.ts'
import { FakeHost, FakeHypervisor, type FakeManners } from '../hypervisors/fake/fake.ts'
import { FakeMemory } from '../hypervisors/fake/fake-memory.ts'
import type { Hypervisor, HypervisorName } from '../hypervisors/hypervisor.ts'
import type { ReadyImage } from '../images/images.ts'
import { BackgroundJobs } from '../lib/background-jobs.ts'
import { createLogger, type LogLevel } from '../log.ts'
import { checkState, readManifest } from '../memory/capture-files.ts'
import { type Network, UserNetwork } from '../network/network.ts'
import { Paths } from '../paths.ts'
import { type Snapshot, Snapshots } from '../snapshots/snapshots.ts'
import type { Ballast } from '../store/ballast.ts'
import { Database } from '../store/database.ts'
import { DiskLayers } from '../store/disk-layers.ts'
import type { OperationName } from '../store/instance-record.ts'
import { InstanceRows } from '../store/instances.ts'
import { type Volume, Volumes } from '../volumes/volumes.ts'
import { diskRateOf } from './disk-rate.ts'
import type { Instance, InstanceId } from './instance.ts'
import { disksOf, layersOf } from './instance-disks.ts'
import type { CrashPoint } from './instance-work.ts'
import { Instances } from './instances.ts'
import { paceOf } from './vm-spec-of.ts'

export const TEST_IMAGE: ReadyImage = {
  digest: `sha256:${'a'.repeat(64)}`,
  name: 'docker.io/library/test:latest',
  rootfs: { path: '/dev/null', format: 'squashfs' },
  platform: 'linux/amd64',
  config: {
    entrypoint: [],
    cmd: ['sleep', '1000000'],
    env: ['LANG=C'],
    workingDir: '/',
    user: '',
    stopSignal: 'SIGTERM',
    exposedPorts: [],
  },
  sizeBytes: 4096,
}

/** As on a file system that shares blocks; here they are copied. */
class CloningDisks extends Disks {
  readonly #paths: Pick<Paths, 'disk'>

  constructor(uses: ConstructorParameters<typeof Disks>[0]) {
    super(uses)
    this.#paths = uses.paths
  }

  override async reflink(name: string): Promise<string> {
    const copy = nameLayer(formatOf(name))
    await copyFile(this.#paths.disk(name), this.#paths.disk(copy))
    return copy
  }
}

/** As it is built here; most tests have no use for it. */
const FILL_PROGRAM = join(import.meta.dirname, '../../../../build/shim/dormouse-fill')

/** A template of this size is quick to make, and small. */
export const TEST_OVERLAY = 32 * 2 ** 20

export interface TestHouseOptions {
  readonly settings?: Readonly<Record<string, string>>
  readonly logLevel?: LogLevel
  /** Of the file system that the disks are on. */
  readonly sharesBlocks?: boolean
  /** What its driver cannot do. */
  readonly lacks?: readonly Capability[]
  /** A second driver, and what that cannot do. */
  readonly beside?: FakeManners & { readonly name: HypervisorName }
  /** What a full database may spend. */
  readonly ballast?: Pick<Ballast, 'spend'>
  /** Of all its lives; each has one of its own otherwise, where drivers do all of it. */
  readonly network?: Network
}

export class TestHouse implements AsyncDisposable {
  readonly host = new FakeHost()
  readonly sysfs = new FakeSysfs()
  readonly proxies = new FakeProxies()
  readonly dir = mkdtempSync(join(tmpdir(), 'dm-'))
  readonly paths = new Paths({ dataDir: join(this.dir, 'data'), runDir: join(this.dir, 'run') })
  readonly log
  /** What a registry has, by name: what becomes of the wait for it. */
  readonly pulls = new Map<string, () => Promise<ReadyImage>>()
  /** Digests of images that may not go, as often as they are held. */
  readonly heldImages: string[] = []
  #options: TestHouseOptions
  #life:
    | {
        db: Database
        instances: Instances
        events: Events
        snapshots: Snapshots
        volumes: Volumes
        devices: Devices
        egress: Egress
        compressing: BackgroundJobs
        memory: FakeMemory
        isDead: boolean
      }
    | undefined

  constructor(options: TestHouseOptions = {}) {
    this.#options = options
    this.log = createLogger({ level: options.logLevel ?? 'silent' })
    this.sysfs.isOpen = (what) =>
      this.host.running().some(({ spec }) => spec.hostDevices?.some((one) => (one.kind === 'pci' ? one.address : one.uuid) === what))
    const { instancesDir, disksDir, vmsDir, snapshotsDir } = this.paths
    for (const dir of [instancesDir, disksDir, vmsDir, snapshotsDir]) mkdirSync(dir, { recursive: true })
  }

  get instances(): Instances {
    return this.#alive.instances
  }
  get events(): Events {
    return this.#alive.events
  }
  get snapshots(): Snapshots {
    return this.#alive.snapshots
  }
  get volumes(): Volumes {
    return this.#alive.volumes
  }
  get devices(): Devices {
    return this.#alive.devices
  }
  get compressing(): BackgroundJobs {
    return this.#alive.compressing
  }
  get memory(): FakeMemory {
    return this.#alive.memory
  }
  get db(): Database {
    return this.#alive.db
  }

  #drivers(): ReadonlyMap<HypervisorName, Hypervisor> {
    const { lacks = [], beside } = this.#options
    const drivers = [{ name: 'fake', lacks } as const, ...(beside === undefined ? [] : [beside])]
    return new Map(drivers.map((one) => [one.name, new FakeHypervisor(this.host, one)]))
  }

  /**
   * Begins a daemon's life. `crashAt` (`operation:step`) makes it die there, `crashAtStep` at the n-th step of any: it then
   * does nothing more, as after SIGKILL. `atStep` is waited for at each step.
   */
  async begin(
    options: {
      crashAt?: string
      crashAtStep?: number
      onCrash?: () => void
      atStep?: (operation: string, step: string) => Promise<void>
    } = {},
  ): Promise<Instances> {
    const config = configOf(
      new Map(
        Object.entries({
          DATA_DIR: this.paths.dataDir,
          RUN_DIR: this.paths.runDir,
          HYPERVISOR: 'fake',
          CPU_RATIO: '10000',
          MEMORY_RATIO: '10000',
          STOP_GRACE: '200ms',
          DELETE_GRACE: '100ms',
          BOOT_LIMIT: '5s',
          ...this.#options.settings,
        }),
      ),
    )
    const { ballast } = this.#options
    const db = Database.open(this.paths.database, ballast === undefined ? {} : { ballast })
    const events = new Events({ db })
    const life = { db, events, isDead: false }
    const alive = async (): Promise<void> => {
      if (life.isDead) await new Promise(() => undefined)
    }
    let reached = 0
    const crashPoint: CrashPoint = async (operation, step) => {
      if (!life.isDead && (`${operation}:${step}` === options.crashAt || reached++ === options.crashAtStep)) {
        life.isDead = true
        options.onCrash?.()
      }
      if (options.atStep !== undefined && !life.isDead) await options.atStep(operation, step)
      // A dead daemon gets no further; what it had open is cut below, by `crash`.
      await alive()
    }
    const memory = new FakeMemory({
      host: this.host,
      basesDir: this.paths.basesDir,
      isNeeded: (base): boolean => instances.standsOn(base),
      alive,
    })
    const disks = new (this.#options.sharesBlocks ? CloningDisks : Disks)({ paths: this.paths, layers: new DiskLayers(db) })
    const volumes = new Volumes({
      db,
      events,
      disks,
      log: this.log,
      crashPoint,
      fillProgram: FILL_PROGRAM,
      diskPath: (layer) => this.paths.disk(layer),
      admit: (what, bytes) => instances.room.admitVolume(what, bytes),
    })
    const devices = new Devices({ db, events, sysfs: this.sysfs, pciIds: new PciIds([]), log: this.log, isRoot: true })
    const network = this.#options.network ?? new UserNetwork({ dns: [] })
    const egress = new Egress({
      ...{ paths: this.paths, network, log: this.log, shimPath: '', logMaxBytes: 1 << 20, opensHost: false, trusted: [] },
      userOf: (uid) => uid,
      processes: this.proxies,
      retryMs: 1,
    })
    const compressing = new BackgroundJobs()
    const snapshots = new Snapshots({ db, events, disks, memory, paths: this.paths, log: this.log, compressing, crashPoint })
    const instances: Instances = new Instances({
      db,
      events,
      images: {
        byDigest: (digest) => (digest === TEST_IMAGE.digest ? TEST_IMAGE : undefined),
        readyImage: (name) => (name === 'test' ? TEST_IMAGE : undefined),
        assertThere: async ({ name }) => {
          if (!this.pulls.has(name)) throw new AppError('not_found', `There is no image ${name}`)
        },
        pull: async ({ name }) => {
          if (!this.pulls.has(name)) throw new AppError('not_found', `There is no image ${name}`)
          return { name, digest: TEST_IMAGE.digest, status: 'pending', created_at: new Date().toISOString() }
        },
        whenReady: async (name) => (await this.pulls.get(name)?.()) ?? TEST_IMAGE,
        usage: async () => TEST_IMAGE.sizeBytes,
        hold: (digest) => {
          this.heldImages.push(digest)
          return { [Symbol.dispose]: () => void this.heldImages.splice(this.heldImages.indexOf(digest), 1) }
        },
      },
      disks,
      volumes,
      devices,
      paths: this.paths,
      log: this.log,
      config,
      host: { cpus: 2, memoryBytes: 2 ** 34, isRoot: false, architecture: 'x86_64' },
      hypervisors: this.#drivers(),
      memory,
      compressing,
      network,
      egress,
      linkCapacity: () => ({ bytesPerSecond: config.network.bandwidthBps, source: 'configured' }),
      settings: { modules: undefined, freshBoot: false },
      crashPoint,
    })
    this.#life = Object.assign(life, { instances, snapshots, volumes, devices, egress, compressing, memory })
    await instances.recover()
    snapshots.recover()
    return instances
  }

  /** The disk of a Stopped instance becomes a chain, as a fork or a snapshot leaves it, while no daemon lives. Its contents stay. */
  async layerDisk(id: InstanceId): Promise<readonly string[]> {
    using db = Database.open(this.paths.database)
    const disks = new Disks({ paths: this.paths, layers: new DiskLayers(db) })
    const rows = new InstanceRows(db)
    const instance = rows.find(id)
    if (!instance) throw new Error(`There is no instance ${id}`)
    const { source } = await disks.freeze(instance.disk, { bytes: instance.overlayBytes })
    rows.update({ ...instance, disk: source })
    return source
  }

  /** The daemon dies at once: its rows stay as they are, its machines run on. */
  crash(): void {
    const life = this.#alive
    life.isDead = true
    this.#life = undefined
    for (const machine of this.host.machines.values()) machine.hangUp()
    // It does nothing more.
    void life.egress[Symbol.asyncDispose]()
    life.db.close()
  }

  /** The daemon ends as on SIGTERM. */
  async end(graceMs = 5000): Promise<void> {
    const life = this.#alive
    await life.instances.close(graceMs)
    await life.egress[Symbol.asyncDispose]()
    this.#life = undefined
    life.db.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#life) await this.end(0)
    this.sysfs[Symbol.dispose]()
    rmSync(this.dir, { recursive: true, force: true })
  }

  get #alive() {
    if (!this.#life) throw new Error('No daemon lives in this house')
    return this.#life
  }
}

/** Resolves when no instance has work under way or is on its way somewhere. */
export async function settled(instances: Instances): Promise<void> {
  const isMoving = () =>
    instances.isBusy() || instances.list().some(({ state, operation }) => MOVING.has(state) || isUnderWay(state, operation))
  await pollUntil('the instances to settle', () => !isMoving(), { signal: AbortSignal.timeout(10_000) }, { everyMs: 1, upToMs: 5 })
}

const MOVING = new Set(['Created', 'Initializing', 'Shutdown', 'Paused'])

/** A restore whose guest does not answer stays on record, for whoever meets the guest next. */
const isUnderWay = (state: InstanceState, operation: OperationName | undefined): boolean =>
  operation !== undefined && !(state === 'Unknown' && operation === 'restore')

/** What must be true of a house at rest: facts and records say the same, and nothing is left over. */
export async function assertInOrder(house: TestHouse): Promise<void> {
  // Who asks is answered before the last leftovers are cleared away.
  await pollUntil(
    'the work to be over',
    () => !house.instances.isBusy(),
    { signal: AbortSignal.timeout(10_000) },
    { everyMs: 1, upToMs: 5 },
  )
  await house.instances.consolidated()
  await house.compressing.settled()
  const stored = house.instances.list()
  const kept = house.snapshots.list()
  const running = house.host.running()
  assert.deepEqual(house.host.violations, [])
  assertDevices(house, stored)
  const live = stored.filter(({ state }) => isLive(state))
  const unknown = stored.filter(({ state }) => state === 'Unknown')
  const runs = new Set<string>(running.map(({ spec }) => spec.id))
  // No VM lost, none running twice, none without an instance.
  assert.equal(runs.size, running.length)
  for (const { id, name } of live) assert.ok(runs.has(id), `the VM of ${name} is lost`)
  for (const id of runs)
    assert.ok(
      [...live, ...unknown].some((instance) => instance.id === id),
      `a VM runs for ${id}, which has none`,
    )
  for (const instance of live) assert.deepEqual(instance.vm, running.find(({ spec }) => spec.id === instance.id)?.handle)
  for (const instance of stored) {
    const { name, state, sleep, operation, disk } = instance
    assert.ok(!isUnderWay(state, operation), `${name} is still in ${operation}`)
    if (state === 'Stopped' || state === 'Standby') assert.equal(instance.vm, undefined, `${name} is ${state} and has a VM on record`)
    if (state !== 'Unknown') assert.equal(sleep !== undefined, state === 'Standby', `${name} is ${state}, with a sleeping state or without`)
    for (const layer of layersOf(instance)) assert.ok(existsSync(house.paths.disk(layer)), `a disk of ${name} is gone`)
    if (isPlain(disk)) assert.equal(statSync(house.paths.disk(String(disk[0]))).size, instance.overlayBytes)
  }
  await assertAwake(house, live)
  await assertWaysOut(house, stored)
  assertDisks(house, stored, kept)
  await assertMemory(house, stored, kept)
  // No directory, socket or port left over.
  assert.deepEqual(namesIn(house.paths.instancesDir), stored.map(({ id }) => id).sort())
  const known = [...live, ...unknown].map(({ id }) => basename(house.paths.vmRunDir(id)))
  for (const name of namesIn(house.paths.vmsDir)) assert.ok(known.includes(name), `the run directory ${name} is left over`)
  const open = running.flatMap(({ ports }) => ports.map(({ hostPort }) => hostPort))
  const wanted = [...live, ...unknown].flatMap(({ network }) => network.ports.map(({ hostPort }) => hostPort))
  for (const port of open) assert.ok(wanted.includes(port), `the port ${port} is left open`)
  for (const { network, name } of live)
    for (const { hostPort } of network.ports) assert.ok(open.includes(hostPort), `the port ${hostPort} of ${name} is closed`)
  for (const { id, name, network } of live)
    assert.deepEqual(running.find(({ spec }) => spec.id === id)?.bandwidth, paceOf(network), `how fast the network of ${name} is`)
}

/** Who runs and goes out by a proxy has one, which knows what is on record; and there are no others. */
async function assertWaysOut(house: TestHouse, stored: readonly Instance[]): Promise<void> {
  const running = stored.filter(({ state, vm, egress }) => egress !== undefined && (isLive(state) || vm !== undefined))
  const { proxiesDir } = house.paths
  for (const { id, name, env, egress } of running) {
    const runDir = house.paths.proxyRunDir(id)
    const order = (): ProxyOrder | undefined => house.proxies.running.get(runDir)?.order
    await pollUntil(`the proxy of ${name} to run`, () => order() !== undefined, { signal: AbortSignal.timeout(10_000) })
    const values = Object.values(egress?.credentials ?? {}).map(({ source }) => [source, env[source]])
    assert.deepEqual(order()?.mediation.values, Object.fromEntries(values), `the proxy of ${name} has other values than are on record`)
    assert.equal(order()?.mediation.authority.key, egress?.authority.key)
  }
  const wanted = running.map(({ id }) => house.paths.proxyRunDir(id)).sort()
  assert.deepEqual([...house.proxies.running.keys()].sort(), wanted, 'proxies that run')
  assert.deepEqual(
    namesIn(proxiesDir).map((name) => join(proxiesDir, name)),
    wanted,
  )
}

/** Who runs has its devices, and the host has all others. */
function assertDevices(house: TestHouse, stored: readonly Instance[]): void {
  const { sysfs } = house
  assert.deepEqual(sysfs.violations, [])
  const running = stored.filter(({ state, vm }) => isLive(state) || vm !== undefined)
  for (const { id, name } of stored.filter((one) => !running.includes(one)))
    assert.ok(!house.devices.isHolding(id), `${name} does not run, and a device has not been given back`)
  const parts = running.flatMap(({ gpu }) => gpu?.mdevUuid ?? [])
  assert.deepEqual([...sysfs.mdevs].sort(), parts.sort(), 'mediated devices')
  for (const { name, devices = [] } of running)
    for (const { address } of devices) assert.equal(sysfs.driverOf(address), 'vfio-pci', `a device of ${name}`)
}

/** Of two processors, by default. */
const HOUSE_DISK_IO = { capacityBps: 2 ** 30, ratio: 2, cpus: 2 }

/** No machine stands still, no workload is frozen, and no guest takes itself for another. */
async function assertAwake(house: TestHouse, live: readonly Instance[]): Promise<void> {
  for (const instance of live) {
    const { id, name, state } = instance
    const machine = house.host.running().find(({ spec }) => spec.id === id)
    assert.equal(machine?.isPaused, false, `the VM of ${name} is paused`)
    // A guest that a dead daemon left frozen is thawed as soon as it is met.
    await pollUntil(`the workload of ${name} to run`, () => machine?.guest.isFrozen === false, { signal: AbortSignal.timeout(60_000) })
    assert.equal(machine?.diskIoBps, diskRateOf(instance, HOUSE_DISK_IO), `the disks of ${name} move another rate than is on record`)
    const unlimited = [...(machine?.chains.keys() ?? [])].filter((role) => !machine?.budgeted.has(role))
    assert.deepEqual(unlimited, [], `disks of ${name} that no rate limits`)
    assert.equal(machine?.hotplugBytes ?? 0, instance.hotplugBytes, `${name} has other memory than is on record`)
    // One that boots has yet to be told.
    if (state === 'Running')
      assert.equal(machine?.guest.identity.mac, machine?.spec.nic?.mac, `the guest of ${name} takes itself for another`)
  }
}

/** Layers are those that rows name, and what a VM writes to no one else has. */
function assertDisks(house: TestHouse, stored: readonly Instance[], kept: readonly Snapshot[]): void {
  const volumes = house.volumes.list()
  const named = [...stored.flatMap(layersOf), ...kept.flatMap(({ instance }) => layersOf(instance)), ...volumes.flatMap(({ disk }) => disk)]
  assert.deepEqual(namesIn(house.paths.disksDir), [...new Set(named)].sort())
  for (const machine of house.host.running()) {
    const instance = stored.find(({ id }) => id === machine.spec.id)
    const disks = instance === undefined ? [] : disksOf(instance)
    const roles = [...machine.chains.keys()].filter((role) => role !== 'rootfs' && role !== 'modules')
    assert.deepEqual(roles.sort(), disks.map(({ role }) => role).sort(), `the VM of ${instance?.name} has other disks than are on record`)
    for (const { role, layers } of disks) {
      const chain = (machine.chains.get(role) ?? []).map((path) => basename(path))
      // Where a daemon died over a pivot, a layer that is on record was never given to the VM: it is empty, and changes nothing.
      const known = layers.filter((layer) => chain.includes(layer))
      assert.deepEqual(known, chain, `the VM of ${instance?.name} writes to another ${role} than is on record`)
    }
    const mounted = [...machine.guest.mounts.keys()].sort()
    if (instance?.state === 'Running')
      assert.deepEqual(
        mounted,
        disks
          .map(({ role }) => role)
          .filter((role) => role !== 'overlay')
          .sort(),
      )
  }
  for (const instance of stored) {
    const { id, name } = instance
    const others = [
      ...stored.filter((it) => it.id !== id).flatMap(layersOf),
      ...kept.flatMap((it) => layersOf(it.instance)),
      ...volumes.flatMap(({ disk }) => disk),
    ]
    for (const { layers } of disksOf(instance)) assert.ok(!others.includes(String(layers[0])), `what ${name} writes to is another's too`)
  }
  assertVolumes(stored, volumes)
}

/** One that writes, or any number that read; and the layers of a volume are on one record. */
function assertVolumes(stored: readonly Instance[], volumes: readonly Volume[]): void {
  for (const { id, name, disk, bytes } of volumes) {
    const holders = stored.flatMap((instance) => instance.volumes.filter(({ volumeId }) => volumeId === id))
    const writers = holders.filter(({ readOnly }) => !readOnly)
    assert.ok(writers.length === 0 || holders.length === 1, `the volume ${name} is written while others have it`)
    assert.equal(disk.length === 0, writers.length === 1, `the layers of the volume ${name} are on no record, or on two`)
    for (const writer of writers) assert.equal(writer.bytes, bytes)
    for (const { moving } of holders) assert.equal(moving, undefined, `the volume ${name} is on its way for ever`)
  }
  const known = new Set(volumes.map(({ id }) => id))
  for (const { name, volumes: has } of stored)
    for (const { volumeId } of has) assert.ok(known.has(volumeId), `${name} has a volume that is not there`)
}

/** Sleeping states, snapshots, points and bases are those that rows name, each of them whole. */
async function assertMemory(house: TestHouse, stored: readonly Instance[], kept: readonly Snapshot[]): Promise<void> {
  const { paths } = house
  for (const { id, sleep } of stored) {
    assert.deepEqual(namesIn(paths.instanceSleepDir(id)), sleep === undefined ? [] : [sleep.generation])
    if (sleep === undefined) continue
    const dir = paths.instanceSleep(id, sleep.generation)
    const manifest = await readManifest(dir)
    assert.equal(manifest.base, sleep.base)
    await checkState(dir, manifest)
  }
  const withMemory = kept.filter(({ base }) => base !== undefined)
  const snapshotDirs = withMemory.map(({ id, generation }) => paths.snapshotDir(id, generation))
  assert.deepEqual(namesIn(paths.snapshotsDir), snapshotDirs.map((dir) => basename(dir)).sort())
  for (const dir of snapshotDirs) await checkState(dir, await readManifest(dir))
  assert.deepEqual(namesIn(paths.pointsDir), [])
  const bases = [...stored.flatMap(({ vm, sleep }) => [vm?.machine?.base, sleep?.base]), ...kept.map(({ base }) => base)]
  const wanted = new Set(bases.filter((base) => base?.startsWith('base/')).map((base) => String(base).slice('base/'.length)))
  assert.deepEqual(namesIn(paths.basesDir), [...wanted].sort())
}

const namesIn = (dir: string): string[] => (existsSync(dir) ? readdirSync(dir).sort() : [])
