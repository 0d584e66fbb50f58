import type { Database } from './database.ts'
import type { InstanceId } from './instance-record.ts'

/** A device of the host that may be given to instances. */
export interface Device {
  readonly id: string
  readonly name: string
  /** `0000:65:00.0`. */
  readonly address: string
  readonly type: 'gpu' | 'pci'
  readonly vendorId: string
  readonly deviceId: string
  readonly iommuGroup: number
  readonly tags: Readonly<Record<string, string>>
  readonly createdAtMs: number
}

/** A PCI function that was taken from its driver for an instance, and what it is given back to. */
export interface Binding {
  readonly address: string
  readonly instanceId: InstanceId
  readonly iommuGroup: number
  /** None: it had none. */
  readonly driver?: string
  /** What its `driver_override` said. */
  readonly override?: string
}

/** A part of a GPU that was made for an instance. */
export interface Vgpu {
  readonly instanceId: InstanceId
  readonly profile: string
  /** The PCI function that it is a part of. */
  readonly parent: string
  /** What the driver calls the profile. */
  readonly typeId: string
  /** A mediated device; absent: the function itself becomes it. */
  readonly uuid?: string
}

type Row = Record<string, string | number | null>

/** The rows of `devices`, who has them, and what of the host is another's than its own for an instance that runs. */
export class DeviceRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  insert({ id, name, address, type, vendorId, deviceId, iommuGroup, tags, createdAtMs }: Device): void {
    this.#db
      .prepare(
        `INSERT INTO devices (id, name, pci_address, type, vendor_id, device_id, iommu_group, tags, created_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      )
      .run(id, name, address, type, vendorId, deviceId, iommuGroup, JSON.stringify(tags), createdAtMs)
  }

  delete(id: string): void {
    this.#db.prepare('DELETE FROM devices WHERE id = ?').run(id)
  }

  find(id: string): Device | undefined {
    return this.#one('id', id)
  }

  findByName(name: string): Device | undefined {
    return this.#one('name', name)
  }

  findByAddress(address: string): Device | undefined {
    return this.#one('pci_address', address)
  }

  /** Newest first. */
  list(): Device[] {
    return this.#db
      .prepare('SELECT * FROM devices ORDER BY created_at_ms DESC, id DESC')
      .all()
      .map((row) => deviceOf(row as Row))
  }

  /** Which instance has which device, by the device's id. */
  holders(): ReadonlyMap<string, { readonly instanceId: InstanceId; readonly instanceName: string }> {
    const rows = this.#db
      .prepare(
        `SELECT instances.id, instances.name, json_extract(held.value, '$.id') AS device
         FROM instances, json_each(instances.devices) AS held`,
      )
      .all()
    return new Map(rows.map(({ device, id, name }) => [String(device), { instanceId: id as InstanceId, instanceName: String(name) }]))
  }

  bind({ address, instanceId, iommuGroup, driver, override }: Binding): void {
    this.#db
      .prepare('INSERT INTO device_bindings (pci_address, instance_id, iommu_group, driver, override) VALUES (?, ?, ?, ?, ?)')
      .run(address, instanceId, iommuGroup, driver ?? null, override ?? null)
  }

  unbind(address: string): void {
    this.#db.prepare('DELETE FROM device_bindings WHERE pci_address = ?').run(address)
  }

  /** Of one instance, or of all. */
  bindings(id?: InstanceId): Binding[] {
    return this.#db
      .prepare('SELECT * FROM device_bindings WHERE ?1 IS NULL OR instance_id = ?1 ORDER BY pci_address')
      .all(id ?? null)
      .map((row) => ({
        address: String(row.pci_address),
        instanceId: row.instance_id as InstanceId,
        iommuGroup: Number(row.iommu_group),
        ...(typeof row.driver === 'string' ? { driver: row.driver } : {}),
        ...(typeof row.override === 'string' ? { override: row.override } : {}),
      }))
  }

  addVgpu({ instanceId, profile, parent, typeId, uuid }: Vgpu): void {
    this.#db
      .prepare('INSERT INTO vgpus (instance_id, profile, parent, type_id, uuid) VALUES (?, ?, ?, ?, ?)')
      .run(instanceId, profile, parent, typeId, uuid ?? null)
  }

  removeVgpu(id: InstanceId): void {
    this.#db.prepare('DELETE FROM vgpus WHERE instance_id = ?').run(id)
  }

  vgpus(): Vgpu[] {
    return this.#db
      .prepare('SELECT * FROM vgpus ORDER BY instance_id')
      .all()
      .map((row) => ({
        instanceId: row.instance_id as InstanceId,
        profile: String(row.profile),
        parent: String(row.parent),
        typeId: String(row.type_id),
        ...(typeof row.uuid === 'string' ? { uuid: row.uuid } : {}),
      }))
  }

  #one(column: 'id' | 'name' | 'pci_address', value: string): Device | undefined {
    const row = this.#db.prepare(`SELECT * FROM devices WHERE ${column} = ?`).get(value)
    return row === undefined ? undefined : deviceOf(row as Row)
  }
}

const deviceOf = (row: Row): Device => ({
  id: String(row.id),
  name: String(row.name),
  address: String(row.pci_address),
  type: row.type === 'gpu' ? 'gpu' : 'pci',
  vendorId: String(row.vendor_id),
  deviceId: String(row.device_id),
  iommuGroup: Number(row.iommu_group),
  tags: JSON.parse(String(row.tags)) as Record<string, string>,
  createdAtMs: Number(row.created_at_ms),
})
