import { type HostPort, overlaps } from '../host/host-ports.ts'
import type { PortForward } from '../hypervisors/hypervisor.ts'
import type { Database } from './database.ts'
import type { Instance, InstanceId, ListInstances } from './instance-record.ts'

type Value = string | number | null
type Row = Record<string, Value>

/** The columns that `update` may write, each with how it is read from a record. Ports have a table of their own. */
const COLUMNS: Readonly<Record<string, (instance: Instance) => Value>> = {
  name: (i) => i.name,
  created_at_ms: (i) => i.createdAtMs,
  image: (i) => i.image,
  image_digest: (i) => i.imageDigest,
  platform: (i) => i.platform,
  hypervisor: (i) => i.hypervisor,
  vcpus: (i) => i.vcpus,
  memory_bytes: (i) => i.memoryBytes,
  hotplug_bytes: (i) => i.hotplugBytes,
  overlay_bytes: (i) => i.overlayBytes,
  disk_io_bps: (i) => i.diskIoBps ?? null,
  bandwidth_download: (i) => i.network.bandwidthDownload ?? null,
  bandwidth_upload: (i) => i.network.bandwidthUpload ?? null,
  egress: (i) => json(i.egress),
  network_enabled: (i) => Number(i.network.enabled),
  entrypoint: (i) => json(i.entrypoint),
  cmd: (i) => json(i.cmd),
  env: (i) => json(i.env),
  tags: (i) => json(i.tags),
  snapshot_policy: (i) => json(i.snapshotPolicy),
  auto_standby: (i) => json(i.autoStandby),
  skip_guest_agent: (i) => Number(i.skipGuestAgent),
  skip_kernel_headers: (i) => Number(i.skipKernelHeaders),
  fresh_boot: (i) => Number(i.freshBoot ?? false),
  expires_at_ms: (i) => i.expiresAtMs ?? null,
  mac: (i) => i.network.mac ?? null,
  ip: (i) => i.network.ip ?? null,
  uid: (i) => i.uid ?? null,
  state: (i) => i.state,
  state_error: (i) => i.stateError ?? null,
  operation: (i) => i.operation ?? null,
  vm: (i) => json(i.vm),
  started_at_ms: (i) => i.startedAtMs ?? null,
  stopped_at_ms: (i) => i.stoppedAtMs ?? null,
  exit_code: (i) => i.exitCode ?? null,
  exit_message: (i) => i.exitMessage ?? null,
  disk: (i) => json(i.disk),
  volumes: (i) => json(i.volumes),
  devices: (i) => json(i.devices ?? []),
  gpu: (i) => json(i.gpu),
  sleep: (i) => json(i.sleep),
  phase_durations: (i) => json(i.phases.durations),
  phase_since_ms: (i) => i.phases.sinceMs,
  health_check: (i) => json(i.healthCheck),
  restart_policy: (i) => json(i.restartPolicy),
  restarts: (i) => json(i.restarts),
}
const NAMES = Object.keys(COLUMNS)
const READERS = Object.values(COLUMNS)

const INSERT = `INSERT INTO instances (id, ${NAMES.join(', ')}) VALUES (?${', ?'.repeat(NAMES.length)})`
const UPDATE = `UPDATE instances SET ${NAMES.map((name) => `${name} = ?`).join(', ')} WHERE id = ?`
const SELECT = `SELECT id, ${NAMES.join(', ')} FROM instances`

/**
 * The rows of `instances` and their published ports. Nothing here decides; it reads and writes. All of them are also held in memory
 * (no one else writes the file), as records that are replaced and never changed: who is given the same object is given the same facts.
 */
export class InstanceRows {
  readonly #db: Database
  readonly #byId = new Map<string, Instance>()
  readonly #byName = new Map<string, Instance>()
  /** Newest first; undefined when one has come or gone since. */
  #newestFirst: readonly Instance[] | undefined

  constructor(db: Database) {
    this.#db = db
    const ports = new Map<string, PortForward[]>()
    for (const row of db.prepare('SELECT * FROM published_ports ORDER BY instance_id, position').all() as Row[]) {
      const owner = String(row.instance_id)
      ports.set(owner, [...(ports.get(owner) ?? []), portOf(row)])
    }
    for (const row of db.prepare(SELECT).all() as Row[]) this.#keep(instanceOf(row, ports.get(String(row.id)) ?? []))
  }

  insert(instance: Instance): void {
    this.#db.transaction(() => {
      this.#db.prepare(INSERT).run(instance.id, ...READERS.map((read) => read(instance)))
      this.#insertPorts(instance)
      this.#hold(instance)
    })
  }

  /** Writes the whole record over the stored one. */
  update(instance: Instance): void {
    this.#db.transaction(() => {
      this.#db.prepare(UPDATE).run(...READERS.map((read) => read(instance)), instance.id)
      if (this.#byId.get(instance.id)?.network.ports !== instance.network.ports) {
        this.#db.prepare('DELETE FROM published_ports WHERE instance_id = ?').run(instance.id)
        this.#insertPorts(instance)
      }
      this.#hold(instance)
    })
  }

  delete(id: InstanceId): void {
    this.#db.transaction(() => {
      this.#db.prepare('DELETE FROM instances WHERE id = ?').run(id)
      this.#db.afterCommit(() => {
        this.#freeName(id)
        this.#byId.delete(id)
        this.#newestFirst = undefined
      })
    })
  }

  find(id: string): Instance | undefined {
    return this.#byId.get(id)
  }

  findByName(name: string): Instance | undefined {
    return this.#byName.get(name)
  }

  /** At most two: enough to know that a prefix is ambiguous. */
  findByIdPrefix(prefix: string): Instance[] {
    // Ids are lower-case letters and digits, so '{' comes after all that can follow.
    return this.#db
      .prepare('SELECT id FROM instances WHERE id >= ? AND id < ? LIMIT 2')
      .all(prefix, `${prefix}{`)
      .map((row) => this.#byId.get(String(row.id)))
      .filter((instance) => instance !== undefined)
  }

  /** Newest first. */
  list(filter: ListInstances = {}): readonly Instance[] {
    this.#newestFirst ??= [...this.#byId.values()].sort((a, b) => b.createdAtMs - a.createdAtMs || (a.id < b.id ? 1 : -1))
    const wanted = Object.entries(filter.tags ?? {})
    if (filter.state === undefined && wanted.length === 0) return this.#newestFirst
    return this.#newestFirst.filter(
      ({ state, tags }) =>
        (filter.state === undefined || state === filter.state) &&
        wanted.every(([key, value]) => Object.hasOwn(tags, key) && tags[key] === value),
    )
  }

  /** Whose the host port is: name and id of the instance that publishes it, or one that overlaps with it. */
  findPortOwner(port: HostPort): { id: string; name: string } | undefined {
    const row = this.#db
      .prepare(`
        SELECT host_ip, instances.id, instances.name FROM published_ports JOIN instances ON instances.id = published_ports.instance_id
        WHERE protocol = ? AND host_port = ?
      `)
      .all(port.protocol, port.hostPort)
      .find(({ host_ip }) => overlaps(port, { ...port, hostIp: String(host_ip) }))
    return row === undefined ? undefined : { id: String(row.id), name: String(row.name) }
  }

  /** The lowest user id of the range that no instance has; undefined when all are taken. */
  findFreeUid(base: number, count: number): number | undefined {
    const taken = this.#db.prepare('SELECT uid FROM instances WHERE uid >= ? AND uid < ? ORDER BY uid').all(base, base + count)
    let free = base
    for (const row of taken) {
      if (Number(row.uid) !== free) break
      free++
    }
    return free < base + count ? free : undefined
  }

  /** What the instances take: processors and memory while a VM runs, may run or is about to, disk in every state. */
  demand(): { vcpus: number; memoryBytes: number; overlayBytes: number; diskIoBps: number } {
    const row = this.#db
      .prepare(`
        SELECT coalesce(sum(vcpus) FILTER (WHERE is_live), 0) AS vcpus,
          coalesce(sum(memory_bytes + hotplug_bytes) FILTER (WHERE is_live), 0) AS memory_bytes,
          coalesce(sum(disk_io_bps) FILTER (WHERE is_live), 0) AS disk_io_bps,
          coalesce(sum(overlay_bytes), 0) AS overlay_bytes
        FROM (SELECT *, state NOT IN ('Stopped', 'Standby', 'Unknown') OR vm IS NOT NULL AS is_live FROM instances)
      `)
      .get()
    return {
      vcpus: Number(row?.vcpus),
      memoryBytes: Number(row?.memory_bytes),
      overlayBytes: Number(row?.overlay_bytes),
      diskIoBps: Number(row?.disk_io_bps),
    }
  }

  findExpired(nowMs: number): InstanceId[] {
    return this.#db
      .prepare('SELECT id FROM instances WHERE expires_at_ms <= ?')
      .all(nowMs)
      .map((row) => row.id as InstanceId)
  }

  hasImage(digest: string): boolean {
    return this.#db.prepare('SELECT 1 FROM instances WHERE image_digest = ? LIMIT 1').get(digest) !== undefined
  }

  #insertPorts({ id, network }: Instance): void {
    const insert = this.#db.prepare(
      'INSERT INTO published_ports (instance_id, position, protocol, host_ip, host_port, guest_port) VALUES (?, ?, ?, ?, ?, ?)',
    )
    network.ports.forEach((port, position) => {
      insert.run(id, position, port.protocol, port.hostIp, port.hostPort, port.guestPort)
    })
  }

  /** Once the change is durable, it is also what is read. */
  #hold(instance: Instance): void {
    this.#db.afterCommit(() => {
      this.#freeName(instance.id)
      this.#keep(instance)
      this.#newestFirst = undefined
    })
  }

  #keep(instance: Instance): void {
    this.#byId.set(instance.id, instance)
    this.#byName.set(instance.name, instance)
  }

  /** Unless another one, written in the same transaction, has taken it already. */
  #freeName(id: string): void {
    const known = this.#byId.get(id)
    if (known !== undefined && this.#byName.get(known.name) === known) this.#byName.delete(known.name)
  }
}

function instanceOf(row: Row, ports: readonly PortForward[]): Instance {
  const state = row.state as Instance['state']
  const autoStandby = parse<NonNullable<Instance['autoStandby']>>(row.auto_standby)
  const vm = parse<NonNullable<Instance['vm']>>(row.vm)
  const sleep = parse<NonNullable<Instance['sleep']>>(row.sleep)
  const devices = parse<NonNullable<Instance['devices']>>(row.devices) ?? []
  const gpu = parse<NonNullable<Instance['gpu']>>(row.gpu)
  const healthCheck = parse<NonNullable<Instance['healthCheck']>>(row.health_check)
  const restartPolicy = parse<NonNullable<Instance['restartPolicy']>>(row.restart_policy)
  const egress = parse<NonNullable<Instance['egress']>>(row.egress)
  const restarts = parse<NonNullable<Instance['restarts']>>(row.restarts)
  return {
    id: row.id as InstanceId,
    name: String(row.name),
    createdAtMs: Number(row.created_at_ms),
    image: String(row.image),
    imageDigest: String(row.image_digest),
    platform: String(row.platform),
    hypervisor: row.hypervisor as Instance['hypervisor'],
    vcpus: Number(row.vcpus),
    memoryBytes: Number(row.memory_bytes),
    hotplugBytes: Number(row.hotplug_bytes),
    overlayBytes: Number(row.overlay_bytes),
    network: {
      enabled: row.network_enabled === 1,
      ports,
      ...text('mac', row.mac),
      ...text('ip', row.ip),
      ...number('bandwidthDownload', row.bandwidth_download),
      ...number('bandwidthUpload', row.bandwidth_upload),
    },
    env: parse<Record<string, string>>(row.env) ?? {},
    tags: parse<Record<string, string>>(row.tags) ?? {},
    skipGuestAgent: row.skip_guest_agent === 1,
    skipKernelHeaders: row.skip_kernel_headers === 1,
    state,
    disk: parse<string[]>(row.disk) ?? [],
    volumes: parse<Instance['volumes']>(row.volumes) ?? [],
    phases: {
      current: state,
      sinceMs: Number(row.phase_since_ms),
      durations: parse<Instance['phases']['durations']>(row.phase_durations) ?? {},
    },
    ...(egress === undefined ? {} : { egress }),
    ...(row.fresh_boot === 1 ? { freshBoot: true } : {}),
    ...(row.entrypoint === null ? {} : { entrypoint: parse<string[]>(row.entrypoint) ?? [] }),
    ...(row.cmd === null ? {} : { cmd: parse<string[]>(row.cmd) ?? [] }),
    ...(row.snapshot_policy === null ? {} : { snapshotPolicy: parse<Record<string, unknown>>(row.snapshot_policy) ?? {} }),
    ...(autoStandby === undefined ? {} : { autoStandby }),
    ...(vm === undefined ? {} : { vm }),
    ...(sleep === undefined ? {} : { sleep }),
    ...(devices.length === 0 ? {} : { devices }),
    ...(gpu === undefined ? {} : { gpu }),
    ...(healthCheck === undefined ? {} : { healthCheck }),
    ...(restartPolicy === undefined ? {} : { restartPolicy }),
    ...(restarts === undefined ? {} : { restarts }),
    ...(row.operation === null ? {} : { operation: row.operation as NonNullable<Instance['operation']> }),
    ...text('stateError', row.state_error),
    ...text('exitMessage', row.exit_message),
    ...number('diskIoBps', row.disk_io_bps),
    ...number('expiresAtMs', row.expires_at_ms),
    ...number('uid', row.uid),
    ...number('startedAtMs', row.started_at_ms),
    ...number('stoppedAtMs', row.stopped_at_ms),
    ...number('exitCode', row.exit_code),
  }
}

const portOf = (row: Row): PortForward => ({
  protocol: row.protocol as PortForward['protocol'],
  hostIp: String(row.host_ip),
  hostPort: Number(row.host_port),
  guestPort: Number(row.guest_port),
})

const json = (value: unknown): string | null => (value === undefined ? null : JSON.stringify(value))
const parse = <T>(value: Value | undefined): T | undefined =>
  typeof value === 'string' ? (value === '{}' ? ({} as T) : (JSON.parse(value) as T)) : undefined
const text = <K extends string>(key: K, value: Value | undefined): { [key in K]?: string } =>
  (typeof value === 'string' ? { [key]: value } : {}) as { [key in K]?: string }
const number = <K extends string>(key: K, value: Value | undefined): { [key in K]?: number } =>
  (typeof value === 'number' ? { [key]: value } : {}) as { [key in K]?: number }
