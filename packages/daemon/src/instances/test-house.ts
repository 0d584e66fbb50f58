/** For tests: instances on a fake host, with a directory of their own and one ready image, through any number of daemons' lives. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { configOf } from '../config/config.ts'
import { Disks } from '../disks/disks.ts'
import { isPlain } from '../disks/layer.ts'
import { Events } from '../events/events.ts'
import { pollUntil } from '../host/poll-until.ts'
import { FakeHost, FakeHypervisor } from '../hypervisors/fake/fake.ts'
import type { ReadyImage } from '../images/images.ts'
import { createLogger, type LogLevel } from '../log.ts'
import { checkState, readManifest } from '../memory/capture-files.ts'
import type { LayeredMemory } from '../memory/memory.ts'
import { Paths } from '../paths.ts'
import { Snapshots } from '../snapshots/snapshots.ts'
import { Database } from '../store/database.ts'
import { DiskLayers } from '../store/disk-layers.ts'
import { InstanceRows } from '../store/instances.ts'
import type { InstanceId } from './instance.ts'
import type { CrashPoint } from './instance-work.ts'
import { Instances } from './instances.ts'

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

/** A fake VM's memory is a JSON value. */
const NO_LAYERS: LayeredMemory = {
  consolidate: () => Promise.reject(new Error('a fake VM has no layers')),
  sweepBases: async () => undefined,
  verify: async ({ dir }) => checkState(dir, await readManifest(dir)),
}

/** A template of this size is quick to make, and small. */
export const TEST_OVERLAY = 32 * 2 ** 20

export interface TestHouseOptions {
  readonly settings?: Readonly<Record<string, string>>
  readonly logLevel?: LogLevel
}

export class TestHouse implements AsyncDisposable {
  readonly host = new FakeHost()
  readonly dir = mkdtempSync(join(tmpdir(), 'dm-'))
  readonly paths = new Paths({ dataDir: join(this.dir, 'data'), runDir: join(this.dir, 'run') })
  readonly log
  #options: TestHouseOptions
  #life: { db: Database; instances: Instances; events: Events; isDead: boolean } | undefined

  constructor(options: TestHouseOptions = {}) {
    this.#options = options
    this.log = createLogger({ level: options.logLevel ?? 'silent' })
    for (const dir of [this.paths.instancesDir, this.paths.disksDir, this.paths.vmsDir]) mkdirSync(dir, { recursive: true })
  }

  get instances(): Instances {
    return this.#alive.instances
  }
  get events(): Events {
    return this.#alive.events
  }
  get snapshots(): Snapshots {
    const { db, events } = this.#alive
    const disks = new Disks({ paths: this.paths, layers: new DiskLayers(db) })
    return new Snapshots({ db, events, disks, memory: NO_LAYERS, paths: this.paths })
  }

  /**
   * Begins a daemon's life. `crashAt` (`operation:step`) makes it die there, `crashAtStep` at the n-th step of any: it then
   * does nothing more, as after SIGKILL.
   */
  async begin(options: { crashAt?: string; crashAtStep?: number; onCrash?: () => void } = {}): Promise<Instances> {
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
    const db = Database.open(this.paths.database)
    const events = new Events({ db })
    const life = { db, events, isDead: false }
    let reached = 0
    const crashPoint: CrashPoint = async (operation, step) => {
      if (!life.isDead && (`${operation}:${step}` === options.crashAt || reached++ === options.crashAtStep)) {
        life.isDead = true
        options.onCrash?.()
      }
      // A dead daemon gets no further; what it had open is cut below, by `crash`.
      if (life.isDead) await new Promise(() => undefined)
    }
    const instances = new Instances({
      db,
      events,
      images: {
        byDigest: (digest) => (digest === TEST_IMAGE.digest ? TEST_IMAGE : undefined),
        readyImage: (name) => (name === 'test' ? TEST_IMAGE : undefined),
        pull: async ({ name }) => {
          throw new AppError('not_found', `There is no image ${name}`)
        },
        whenReady: async () => TEST_IMAGE,
        usage: async () => TEST_IMAGE.sizeBytes,
      },
      disks: new Disks({ paths: this.paths, layers: new DiskLayers(db) }),
      paths: this.paths,
      log: this.log,
      config,
      host: { cpus: 2, memoryBytes: 2 ** 34, isRoot: false, architecture: 'x86_64' },
      hypervisors: new Map([['fake', new FakeHypervisor(this.host)]]),
      memory: NO_LAYERS,
      settings: { modules: undefined, dns: [], freshBoot: false },
      crashPoint,
    })
    this.#life = Object.assign(life, { instances })
    await instances.recover()
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
    life.db.close()
  }

  /** The daemon ends as on SIGTERM. */
  async end(graceMs = 5000): Promise<void> {
    const life = this.#alive
    await life.instances.close(graceMs)
    this.#life = undefined
    life.db.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#life) await this.end(0)
    rmSync(this.dir, { recursive: true, force: true })
  }

  get #alive() {
    if (!this.#life) throw new Error('No daemon lives in this house')
    return this.#life
  }
}

/** Resolves when no instance has work under way or is on its way somewhere. */
export async function settled(instances: Instances): Promise<void> {
  const isMoving = () => instances.isBusy() || instances.list().some(({ state, operation }) => MOVING.has(state) || operation !== undefined)
  await pollUntil('the instances to settle', () => !isMoving(), { signal: AbortSignal.timeout(10_000) }, { everyMs: 1, upToMs: 5 })
}

const MOVING = new Set(['Created', 'Initializing', 'Shutdown', 'Paused'])

/** What must be true of a house at rest: facts and records say the same, and nothing is left over. */
export async function assertInOrder(house: TestHouse): Promise<void> {
  const stored = house.instances.list()
  const running = house.host.running()
  assert.deepEqual(house.host.violations, [])
  const live = stored.filter(({ state }) => state !== 'Stopped' && state !== 'Unknown')
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
    assert.equal(instance.operation, undefined, `${instance.name} is still in ${instance.operation}`)
    if (instance.state === 'Stopped') assert.equal(instance.vm, undefined)
    for (const layer of instance.disk) assert.ok(existsSync(house.paths.disk(layer)), `the disk of ${instance.name} is gone`)
    if (isPlain(instance.disk)) assert.equal(statSync(house.paths.disk(String(instance.disk[0]))).size, instance.overlayBytes)
  }
  // No disk, directory, socket or port left over.
  assert.deepEqual(readdirSync(house.paths.instancesDir).sort(), stored.map(({ id }) => id).sort())
  assert.deepEqual(readdirSync(house.paths.disksDir).sort(), [...new Set(stored.flatMap(({ disk }) => disk))].sort())
  const known = [...live, ...unknown].map(({ id }) => basename(house.paths.vmRunDir(id)))
  for (const name of readdirSync(house.paths.vmsDir)) assert.ok(known.includes(name), `the run directory ${name} is left over`)
  const open = running.flatMap(({ ports }) => ports.map(({ hostPort }) => hostPort))
  const wanted = [...live, ...unknown].flatMap(({ network }) => network.ports.map(({ hostPort }) => hostPort))
  for (const port of open) assert.ok(wanted.includes(port), `the port ${port} is left open`)
  for (const { network, name } of live)
    for (const { hostPort } of network.ports) assert.ok(open.includes(hostPort), `the port ${hostPort} of ${name} is closed`)
}
