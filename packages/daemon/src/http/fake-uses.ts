/** Stand-ins for the rooms below, in memory, so that the server is tested without them. */
import { PassThrough } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Image, Push } from '@dormouse/api/images.ts'
import { matchesTags } from '@dormouse/api/names.ts'
import { Audit } from '../audit/audit.ts'
import type { AutoStandbyStatus } from '../auto-standby/auto-standby.ts'
import { Devices } from '../devices/devices.ts'
import { PciIds } from '../devices/pci-ids.ts'
import { noSysfs } from '../host/sysfs.ts'
import { type RegistryCode, RegistryError } from '../images/registry/registry-error.ts'
import type { CreateInstance, Instance, InstanceId } from '../instances/instance.ts'
import type { LogBatch } from '../instances/log-lines.ts'
import type { Reclaimed, ReclaimRequest } from '../instances/memory-reclaim.ts'
import { createId } from '../lib/create-id.ts'
import { silentLogger } from '../log.ts'
import { FakeScheduledSnapshots } from '../schedules/fake-scheduled-snapshots.ts'
import { Schedules } from '../schedules/schedules.ts'
import type { Snapshot } from '../snapshots/snapshots.ts'
import { Database } from '../store/database.ts'
import type { RecordedEvent } from '../store/events.ts'
import { TokenRows } from '../store/tokens.ts'
import type { Volume } from '../volumes/volumes.ts'
import type {
  AutoStandbyDoor,
  CopyAsked,
  CopyEntryDoor,
  ExecAsked,
  GuestDoor,
  GuestExecDoor,
  ImagesDoor,
  InstancesDoor,
  RegistryDoor,
  ServerUses,
  SnapshotsDoor,
  VolumesDoor,
} from './uses.ts'

export class FakeExec implements GuestExecDoor {
  readonly asked: ExecAsked
  readonly stdin = new PassThrough()
  readonly stdout = new PassThrough()
  readonly stderr = new PassThrough()
  readonly heard: string[] = []
  readonly exit: Promise<{ code: number; message: string }>
  readonly #end: (exit: { code: number; message: string }) => void
  /** The guest is lost: how the command ends is not known. */
  readonly lose: (why: Error) => void

  constructor(asked: ExecAsked) {
    this.asked = asked
    const { promise, resolve, reject } = Promise.withResolvers<{ code: number; message: string }>()
    this.exit = promise
    this.#end = resolve
    this.lose = reject
  }

  resize(rows: number, cols: number): void {
    this.heard.push(`resize ${rows}x${cols}`)
  }
  signal(name: string): void {
    this.heard.push(name)
  }
  kill(): void {
    this.heard.push('kill')
    this.end(137, 'killed by signal 9 (SIGKILL)')
  }
  end(code: number, message = ''): void {
    this.stdout.end()
    this.stderr.end()
    this.#end({ code, message })
  }
}

class FakeGuest implements GuestDoor {
  readonly execs: FakeExec[] = []
  readonly files = new Map<string, Buffer>()
  /** What a started command does; a test sets it. */
  run: (exec: FakeExec) => void = (exec) => exec.end(0)
  /** Why no command can be started; a test sets it. */
  startError: Error | undefined
  copied: CopyAsked[] = []
  entries: CopyEntryDoor[] = []

  async exec(asked: ExecAsked): Promise<FakeExec> {
    if (this.startError) throw this.startError
    if (asked.command[0] === 'absent') throw new AppError('not_found', 'absent: command not found')
    const exec = new FakeExec(asked)
    this.execs.push(exec)
    setImmediate(() => this.run(exec))
    return exec
  }

  async stat(path: string) {
    if (path === '/dir') return { exists: true, is_dir: true, is_file: false, is_symlink: false, mode: 0o755, size: 4096 }
    const file = this.files.get(path)
    if (!file) return { exists: false, is_dir: false, is_file: false, is_symlink: false, mode: 0, size: 0 }
    return { exists: true, is_dir: false, is_file: true, is_symlink: false, mode: 0o644, size: file.length }
  }

  async copyTo(asked: CopyAsked, source: AsyncIterable<Uint8Array>) {
    const chunks: Uint8Array[] = []
    for await (const chunk of source) chunks.push(chunk)
    if (asked.path === '/full') throw new AppError('insufficient_resources', 'The disk of the guest is full')
    this.copied.push(asked)
    this.files.set(asked.path, Buffer.concat(chunks))
    return { bytesWritten: Buffer.concat(chunks).length }
  }

  async *copyFrom(path: string): AsyncGenerator<CopyEntryDoor> {
    if (path === '/absent') throw new AppError('path_not_found', 'There is no /absent in the guest')
    yield* this.entries
  }
}

class FakeInstances implements InstancesDoor {
  readonly rows: Instance[] = []
  readonly oneGuest = new FakeGuest()
  readonly kept = new FakeSnapshots()
  readonly volumes = new FakeVolumes()
  lines: string[] = ['one', 'two']
  readonly followed = Promise.withResolvers<void>()
  readonly waiting = Promise.withResolvers<void>()

  add(change: Partial<Instance> & { name: string }): Instance {
    const atMs = change.createdAtMs ?? Date.now()
    const instance: Instance = {
      id: createId() as InstanceId,
      createdAtMs: atMs,
      image: 'alpine',
      imageDigest: `sha256:${'0'.repeat(64)}`,
      platform: 'linux/amd64',
      hypervisor: 'fake',
      vcpus: 2,
      memoryBytes: 2 ** 30,
      hotplugBytes: 0,
      overlayBytes: 10 * 2 ** 30,
      network: { enabled: true, ports: [] },
      env: {},
      tags: {},
      skipGuestAgent: false,
      skipKernelHeaders: false,
      state: 'Running',
      disk: [],
      volumes: [],
      phases: { current: change.state ?? 'Running', sinceMs: atMs, durations: {} },
      ...change,
    }
    this.rows.unshift(instance)
    return instance
  }

  #change(id: InstanceId, change: Partial<Instance>): Instance {
    const at = this.rows.findIndex((row) => row.id === id)
    const changed = { ...this.get(id), ...change }
    this.rows[at] = changed
    return changed
  }

  async create(request: CreateInstance): Promise<Instance> {
    if (this.rows.some((row) => row.name === request.name))
      throw new AppError('name_conflict', `There is an instance ${request.name} already`)
    const { network, volumes: _, devices: _devices, egress: _egress, ...rest } = request
    const ports = (network?.ports ?? []).map((port) => ({ protocol: 'tcp' as const, hostIp: '0.0.0.0', ...port }))
    return this.add({ ...rest, state: 'Initializing', network: { enabled: network?.enabled ?? true, ports } })
  }
  list({ state, tags }: Parameters<InstancesDoor['list']>[0]) {
    return this.rows.filter((row) => (state === undefined || row.state === state) && matchesTags(row.tags, tags ?? {}))
  }
  resolve(text: string): Instance {
    const found = this.rows.filter((row) => row.id === text || row.name === text || (text.length >= 4 && row.id.startsWith(text)))
    if (found.length > 1) throw new AppError('ambiguous', `${text} could be ${found.length} instances`)
    if (!found[0]) throw new AppError('not_found', `There is no instance ${JSON.stringify(text)}`)
    return found[0]
  }
  get(id: InstanceId): Instance {
    return this.resolve(id)
  }
  async start(id: InstanceId) {
    return this.#change(id, { state: 'Running' })
  }
  async stop(id: InstanceId) {
    return this.#change(id, { state: 'Stopped', exitCode: 0, exitMessage: 'ended' })
  }
  async standby(id: InstanceId) {
    return this.#change(id, { state: 'Standby', sleep: { generation: 'one', base: 'zero' } })
  }
  async restore(id: InstanceId) {
    return this.#change(id, { state: 'Running' })
  }
  async fork(id: InstanceId, { name, target = 'Running' }: Parameters<InstancesDoor['fork']>[1]) {
    const { id: _, ...source } = this.get(id)
    return this.add({ ...source, name, state: target })
  }
  async forkSnapshot({ instance }: Snapshot, { name, target = 'Running' }: Parameters<InstancesDoor['forkSnapshot']>[1]) {
    const { id: _, ...source } = instance
    return this.add({ ...source, name, state: target })
  }
  async snapshot(id: InstanceId, request: Parameters<InstancesDoor['snapshot']>[1]) {
    const { compression, ...rest } = request
    const fixed = { id: createId(), createdAtMs: Date.now(), disk: [], bytes: 4096, compressionState: 'none' } as const
    const snapshot: Snapshot = { ...fixed, ...rest, instance: this.get(id), ...(compression && compression !== 'off' && { compression }) }
    this.kept.rows.unshift(snapshot)
    return snapshot
  }
  async restoreSnapshot(id: InstanceId, _: Snapshot, target: 'Stopped' | 'Standby' | 'Running' = 'Running') {
    return this.#change(id, { state: target })
  }
  async update(id: InstanceId, change: Parameters<InstancesDoor['update']>[1]) {
    const { network: _, expiresAtMs, ...rest } = change
    return this.#change(id, { ...rest, ...(typeof expiresAtMs === 'number' && { expiresAtMs }) })
  }
  async delete(id: InstanceId) {
    this.rows.splice(this.rows.indexOf(this.get(id)), 1)
  }
  async attachVolume(id: InstanceId, { volume, ...mount }: Parameters<InstancesDoor['attachVolume']>[1]) {
    const { id: volumeId, name: volumeName, bytes } = this.volumes.resolve(volume)
    return this.#change(id, { volumes: [{ volumeId, volumeName, bytes, slot: 0, disk: [], ...mount }] })
  }
  async detachVolume(id: InstanceId) {
    return this.#change(id, { volumes: [] })
  }
  async growVolume(volume: string, bytes: number) {
    return { ...this.volumes.resolve(volume), bytes }
  }
  async wait(id: InstanceId, { state, timeoutMs, signal }: Parameters<InstancesDoor['wait']>[1]) {
    if (this.get(id).state !== state) {
      this.waiting.resolve()
      const limit = AbortSignal.any([AbortSignal.timeout(timeoutMs), ...(signal ? [signal] : [])])
      await new Promise((resolve) => limit.addEventListener('abort', resolve, { once: true }))
      return { state: this.get(id).state, timedOut: true, reason: 'the time was up' }
    }
    return { state, timedOut: false }
  }
  async reclaimMemory({ dryRun }: ReclaimRequest): Promise<Reclaimed> {
    return { plannedBytes: 0, appliedBytes: dryRun ? 0 : 4096, actions: [] }
  }

  readonly room = { diskBytes: async () => this.rows.reduce((sum, { overlayBytes }) => sum + overlayBytes, 0) }
  async stats(id: InstanceId) {
    const figures = { cpuSeconds: 1.5, memoryRssBytes: 1024, memoryVmsBytes: 2048, networkRxBytes: 1, networkTxBytes: 2 }
    return { instance: this.get(id), ...figures }
  }
  async *#lines(options: Parameters<InstancesDoor['logs']>[1]): AsyncGenerator<LogBatch> {
    yield { lines: options.tail === 0 ? [] : this.lines.slice(-options.tail), place: 'log-0' }
    if (!options.follow) return
    await new Promise((resolve) => options.signal.addEventListener('abort', resolve, { once: true }))
    this.followed.resolve()
  }
  async logs(id: InstanceId, options: Parameters<InstancesDoor['logs']>[1]) {
    this.get(id)
    return this.#lines(options)
  }
  async guest(id: InstanceId): Promise<GuestDoor> {
    const { state, name } = this.get(id)
    if (state !== 'Running') throw new AppError('invalid_state', `The instance ${name} is ${state}: it must be Running`)
    return this.oneGuest
  }
}

class FakeSnapshots implements SnapshotsDoor {
  readonly rows: Snapshot[] = []

  list({ sourceId, kind, name, tags }: Parameters<SnapshotsDoor['list']>[0]) {
    return this.rows.filter(
      (row) =>
        (sourceId === undefined || row.instance.id === sourceId) &&
        (kind === undefined || row.kind === kind) &&
        (name === undefined || row.name === name) &&
        matchesTags(row.tags, tags ?? {}),
    )
  }
  get(id: string): Snapshot {
    const found = this.rows.find((row) => row.id === id)
    if (!found) throw new AppError('not_found', `There is no snapshot ${id}`)
    return found
  }
  hold(id: string) {
    return { snapshot: this.get(id), [Symbol.dispose]: () => undefined }
  }
  async delete(id: string) {
    this.rows.splice(this.rows.indexOf(this.get(id)), 1)
  }
}

class FakeVolumes implements VolumesDoor {
  readonly rows: Volume[] = []
  uploaded = 0

  list({ tags }: Parameters<VolumesDoor['list']>[0]) {
    return this.rows.filter((row) => matchesTags(row.tags, tags ?? {}))
  }
  resolve(text: string): Volume {
    const found = this.rows.find(({ id, name }) => id === text || name === text)
    if (!found) throw new AppError('not_found', `There is no volume ${text}`)
    return found
  }
  holders() {
    return []
  }
  async create({ id = createId(), tags = {}, ...request }: Parameters<VolumesDoor['create']>[0]) {
    if (this.rows.some((row) => row.id === id)) throw new AppError('conflict', `There is a volume ${id} already`)
    const volume: Volume = { ...request, id, tags, createdAtMs: Date.now(), disk: [] }
    this.rows.unshift(volume)
    return volume
  }
  async createFromArchive(request: Parameters<VolumesDoor['create']>[0], source: AsyncIterable<Uint8Array>) {
    for await (const chunk of source) this.uploaded += chunk.length
    return this.create(request)
  }
  async delete(id: string) {
    this.rows.splice(this.rows.indexOf(this.resolve(id)), 1)
  }
  demandBytes(): number {
    return this.rows.reduce((sum, { bytes }) => sum + bytes, 0)
  }
}

class FakeImages implements ImagesDoor {
  readonly rows = new Map<string, Image>()
  uploaded = 0

  add(name: string, createdAt = new Date().toISOString()): Image {
    const image: Image = {
      name,
      digest: `sha256:${'1'.repeat(64)}`,
      status: 'ready',
      created_at: createdAt,
      size_bytes: 1,
      error: null,
      queue_position: null,
    }
    this.rows.set(name, image)
    return image
  }
  list({ tags }: Parameters<ImagesDoor['list']>[0]) {
    return [...this.rows.values()].filter((image) => matchesTags(image.tags ?? {}, tags ?? {})).reverse()
  }
  getImage(name: string): Image {
    const image = this.rows.get(name)
    if (!image) throw new AppError('not_found', `There is no image ${name}`)
    return image
  }
  leadsToLoopback(name: string): boolean {
    return name.startsWith('localhost:')
  }
  async pull({ name }: { name: string }): Promise<Image> {
    if (name.includes('limited')) throw new AppError('rate_limited', 'The registry asks for patience', { retryAfterSeconds: 7 })
    return this.add(name)
  }
  async importUpload(source: AsyncIterable<Uint8Array>, { name = 'imported' }: { name?: string }): Promise<Image> {
    for await (const chunk of source) this.uploaded += chunk.length
    return this.add(name)
  }
  tag(name: string, target: string): Image {
    return { ...this.getImage(name), ...this.add(target) }
  }
  remove(name: string): void {
    this.getImage(name)
    this.rows.delete(name)
  }
  prune() {
    return { deleted: [...this.rows.keys()], freed_bytes: 0 }
  }
  async progress(name: string) {
    const image = this.getImage(name)
    return (async function* () {
      yield { name, status: 'pulling' as const, done_bytes: 1, total_bytes: 2 }
      yield { name, status: image.status }
    })()
  }
  async usageByKind() {
    return { layersBytes: 2, rootfsBytes: 40 }
  }

  readonly pushed: Push[] = []
  async push({ image, target }: { image: string; target: string }): Promise<Push> {
    const { digest, name, status } = this.getImage(image)
    if (status !== 'ready') throw new AppError('image_not_ready', `The image ${name} is not ready`)
    const push: Push = { id: createId(), image: name, digest, target, status: 'queued', created_at: new Date().toISOString() }
    this.pushed.unshift(push)
    return push
  }
  pushes() {
    return this.pushed
  }
  getPush(id: string): Push {
    const push = this.pushed.find((one) => one.id === id)
    if (!push) throw new AppError('not_found', `There is no push ${id}`)
    return push
  }
}

class FakeAutoStandby implements AutoStandbyDoor {
  /** What is told; a test sets it. */
  told: AutoStandbyStatus = {
    isSupported: true,
    policy: undefined,
    isEligible: false,
    status: 'disabled',
    reason: 'policy_missing',
    active: 0,
    trackingMode: 'made up',
  }
  readonly asked: string[] = []
  readonly sessions = new Map<string, number>()

  async status(id: string) {
    this.asked.push(`status ${id}`)
    return this.told
  }
  async hold(id: string) {
    this.asked.push(`hold ${id}`)
    return this.told
  }
  beginSession(id: string): Disposable {
    const change = (by: number): void => void this.sessions.set(id, (this.sessions.get(id) ?? 0) + by)
    change(1)
    let isOver = false
    return {
      [Symbol.dispose]: () => {
        if (!isOver) change(-1)
        isOver = true
      },
    }
  }
}

/** One without anything in it. */
const emptyRegistry: RegistryDoor = {
  repositories: () => [],
  tags: () => refuse('NAME_UNKNOWN'),
  manifest: () => refuse('MANIFEST_UNKNOWN'),
  findBlob: async () => undefined,
  beginUpload: async () => refuse('UNSUPPORTED'),
  upload: () => refuse('BLOB_UPLOAD_UNKNOWN'),
  mount: async () => false,
  putManifest: async () => refuse('UNSUPPORTED'),
  deleteManifest: async () => refuse('MANIFEST_UNKNOWN'),
  deleteBlob: async () => refuse('BLOB_UNKNOWN'),
}

function refuse(code: RegistryCode): never {
  throw new RegistryError(code, 'There is nothing here')
}

export interface FakeUses extends ServerUses {
  readonly instances: FakeInstances
  readonly images: FakeImages
  readonly autoStandby: FakeAutoStandby
}

export function fakeUses(events: readonly RecordedEvent[] = []): FakeUses {
  const instances = new FakeInstances()
  const db = Database.open(':memory:')
  return {
    instances,
    snapshots: instances.kept,
    volumes: instances.volumes,
    // The real rooms: they need no more than rows, and a host that has no devices.
    devices: new Devices({
      db: Database.open(':memory:'),
      events: { record: () => undefined },
      sysfs: noSysfs,
      pciIds: new PciIds([]),
      log: silentLogger,
      isRoot: true,
    }),
    schedules: new Schedules({
      db,
      events: { record: () => undefined },
      instances: { find: (id) => instances.rows.find((row) => row.id === id) },
      snapshots: new FakeScheduledSnapshots(),
      log: silentLogger,
    }),
    autoStandby: new FakeAutoStandby(),
    supervision: { of: () => ({}) },
    images: new FakeImages(),
    garbage: {
      usage: async () => ({ totalBytes: 2 ** 40, freeBytes: 2 ** 39, kinds: [], measuredAtMs: Date.now() }),
      collect: async ({ kinds }) => kinds.map((kind) => ({ kind, names: [], bytes: 0 })),
    },
    registry: emptyRegistry,
    events: {
      latestId: () => events.at(-1)?.id ?? 0,
      async *subscribe({ after = 0, signal }) {
        yield events.filter((event) => event.id > after)
        if (signal && !signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
      },
    },
    host: {
      network: { model: 'nat' },
      facts: { cpus: 2, cpuModel: 'made up', memoryBytes: 2 ** 34, kernel: '6.1', architecture: 'x86_64', isRoot: false },
      defaultHypervisor: 'qemu',
      hypervisors: [
        {
          name: 'qemu',
          capabilities: new Set(['pause', 'standby']),
          probe: async () => ({ available: true, version: '7.2', acceleration: 'tcg', reason: 'KVM did not boot a guest' }),
        },
      ],
      ratios: { cpu: 4, memory: 1, disk: 1, network: 2, diskIo: 2 },
      diskIoBps: 2 ** 30,
      cgroups: { version: 'v2', controllers: ['cpu', 'memory', 'pids'] },
      pressure: () => ({ availableBytes: 2 ** 33, isTight: false }),
      link: () => ({ bytesPerSecond: undefined, source: 'unknown' }),
      disk: async () => ({ totalBytes: 2 ** 40, freeBytes: 2 ** 39 }),
    },
    secret: Buffer.from('a secret that is long enough'),
    tokens: new TokenRows(db),
    audit: new Audit({ db, log: silentLogger, config: { keep: 1000, maxAgeMs: 3_600_000 } }),
    allowedOrigins: [],
    version: '0.1.0',
    log: silentLogger,
  }
}
