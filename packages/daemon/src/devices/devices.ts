/**
 * Devices of the host, for instances to have: whole PCI functions, and parts of GPUs that can be divided.
 *
 *   registered ─► an instance's, from its create to its delete ─► taken from its driver while the VM lives ─► given back
 *
 * What is taken or made for a VM is on record before it is, and until it has been given back: a daemon that dies in between leaves to the
 * next one what it needs to put the host in order. Nothing else on the host is ever touched.
 */
import { randomUUID } from 'node:crypto'
import { AppError } from '@dormouse/api/errors.ts'
import { matchesTags } from '@dormouse/api/names.ts'
import type { Resources } from '@dormouse/api/resources.ts'
import type { Events } from '../events/events.ts'
import type { Sysfs } from '../host/sysfs.ts'
import { createId } from '../lib/create-id.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { Database } from '../store/database.ts'
import { type Binding, type Device, DeviceRows, type Vgpu } from '../store/devices.ts'
import type { HeldDevice, Instance, InstanceGpu, InstanceId } from '../store/instance-record.ts'
import { assertUnusedByHost } from './host-use.ts'
import { isBridge, isGpu, isSameCard, listPci, type PciFunction, parsePciAddress, readGroup, readPci, strangerIn, VFIO } from './pci.ts'
import type { PciIds } from './pci-ids.ts'
import { disownGroup, giveFunctionBack, ownGroup, placeOf, takeFunction } from './vfio.ts'
import { listVgpuParents, makeVgpu, removeVgpu, type VgpuParent } from './vgpus.ts'

export type { Device } from '../store/devices.ts'

export interface DevicesUses {
  readonly db: Database
  readonly events: Pick<Events, 'record'>
  readonly sysfs: Sysfs
  readonly pciIds: PciIds
  readonly log: Logger
  /** Drivers are exchanged by root alone. */
  readonly isRoot: boolean
}

export interface RegisterDevice {
  readonly pciAddress: string
  readonly name?: string
  readonly tags?: Readonly<Record<string, string>>
}

/** A device with what is true of it now. */
export interface SeenDevice extends Device {
  readonly isBoundToVfio: boolean
  readonly holder?: { readonly instanceId: InstanceId; readonly instanceName: string }
}

/** One that could be registered. */
export interface AvailableFunction extends PciFunction {
  readonly iommuGroup: number
  readonly vendorName?: string
  readonly deviceName?: string
}

/** What an instance is to have. */
export interface WantedDevices {
  /** Names or ids. */
  readonly devices?: readonly string[]
  readonly profile?: string
}

export interface PlannedDevices {
  readonly devices: readonly HeldDevice[]
  /** Throws `conflict` when another instance has one of them by now. Call it in the transaction that records who has them. */
  assertFree(): void
}

type Owner = Pick<Instance, 'id' | 'devices' | 'gpu' | 'uid'>

/** As many as a machine has ports for. */
const MAX_DEVICES = 8

export class Devices {
  readonly #uses: DevicesUses
  readonly #rows: DeviceRows

  constructor(uses: DevicesUses) {
    this.#uses = uses
    this.#rows = new DeviceRows(uses.db)
  }

  // Registering

  /** Newest first. */
  async list(filter: { readonly tags?: Readonly<Record<string, string>> } = {}): Promise<SeenDevice[]> {
    const { tags = {} } = filter
    return this.#look(this.#rows.list().filter((device) => matchesTags(device.tags, tags)))
  }

  /** By id, then by name. Throws `not_found`. */
  async get(text: string): Promise<SeenDevice> {
    const [seen] = await this.#look([this.#resolve(text, 'not_found')])
    return seen ?? raise(notRegistered(text, 'not_found'))
  }

  /** What an IOMMU stands before and is not registered yet, bridges apart; by address. */
  async listAvailable(): Promise<AvailableFunction[]> {
    const { sysfs, pciIds } = this.#uses
    const found = (await listPci(sysfs)).flatMap((one): AvailableFunction[] => {
      const { iommuGroup } = one
      return iommuGroup === undefined || isBridge(one) || this.#rows.findByAddress(one.address) ? [] : [{ ...one, iommuGroup }]
    })
    const namesOf = await pciIds.namesOf(found)
    return found.map((one) => {
      const { vendor, device } = namesOf(one)
      return { ...one, ...(vendor === undefined ? {} : { vendorName: vendor }), ...(device === undefined ? {} : { deviceName: device }) }
    })
  }

  /**
   * Makes it known; nothing of the host changes by it. Throws `invalid_pci_address`, `device_not_found`, and `conflict` when it is registered
   * already, its name is taken, or it cannot be given away: then the sentence names what is in the way.
   */
  async register({ pciAddress, name, tags = {} }: RegisterDevice): Promise<SeenDevice> {
    const { db, events, log } = this.#uses
    const address = parsePciAddress(pciAddress)
    if (address === undefined) {
      throw new AppError('invalid_pci_address', `${JSON.stringify(pciAddress)} is no PCI address such as 0000:65:00.0`, {
        hint: 'List the addresses of this host with: dormouse device available',
      })
    }
    if (name !== undefined && !NAME.test(name)) {
      throw new AppError('invalid_name', `${JSON.stringify(name.slice(0, 128))} cannot be the name of a device`, {
        hint: 'Letters, digits, dots, dashes and underscores, two to 128 of them; the first is a letter or a digit',
      })
    }
    // Its own place in the API is taken.
    if (name === 'available') throw new AppError('invalid_name', 'A device cannot be named available', { hint: 'Take another name' })
    const found = await this.#givable(address)
    const device: Device = {
      id: createId(),
      name: name ?? `pci-${address.replaceAll(/[:.]/g, '-')}`,
      address,
      type: isGpu(found) ? 'gpu' : 'pci',
      vendorId: found.vendorId,
      deviceId: found.deviceId,
      iommuGroup: found.iommuGroup,
      tags,
      createdAtMs: Date.now(),
    }
    db.transaction(() => {
      const same = this.#rows.findByAddress(address)
      if (same) throw new AppError('conflict', `The device ${address} is registered already, as ${same.name}`, { detail: { id: same.id } })
      const namesake = this.#rows.findByName(device.name)
      if (namesake) throw new AppError('conflict', `The name ${device.name} is taken by the device ${namesake.address}`)
      this.#rows.insert(device)
      events.record({ kind: 'device.created', subject: device.id, data: { name: device.name, pci_address: address } })
    })
    log.info({ device: device.id, name: device.name, address }, 'device registered')
    return { ...device, isBoundToVfio: found.driver === VFIO }
  }

  /** Throws `in_use`, naming who has it. */
  delete(text: string): void {
    const { db, events, log } = this.#uses
    const device = db.transaction(
      () => {
        const found = this.#resolve(text, 'not_found')
        const holder = this.#rows.holders().get(found.id)
        if (holder !== undefined) {
          throw new AppError('in_use', `The instance ${holder.instanceName} has the device ${found.name}`, {
            hint: `Delete the instance first: dormouse rm ${holder.instanceName}`,
            detail: { instance: holder.instanceId },
          })
        }
        this.#rows.delete(found.id)
        events.record({ kind: 'device.deleted', subject: found.id, data: { name: found.name } })
        return found
      },
      { evenWhenFull: true },
    )
    log.info({ device: device.id, name: device.name, address: device.address }, 'device unregistered')
  }

  // Having them

  /** Looks whether all of it can be had, before anything is done for it. Throws what is wrong with it, or in the way. */
  async plan({ devices = [], profile }: WantedDevices): Promise<PlannedDevices> {
    if (devices.length === 0 && profile === undefined) return { devices: [], assertFree: () => undefined }
    this.#assertRoot()
    if (devices.length > MAX_DEVICES) throw new AppError('invalid_request', `An instance takes at most ${MAX_DEVICES} devices`)
    const wanted = devices.map((text) => this.#resolve(text))
    const twice = wanted.find(({ id }, index) => wanted.findIndex((other) => other.id === id) !== index)
    if (twice !== undefined) throw new AppError('invalid_request', `\`devices\` names ${twice.name} twice`)
    const groups = await this.#groupsOf(wanted)
    if (profile !== undefined) await this.#place(profile)
    return {
      devices: wanted.map(({ id, name, address }) => ({ id, name, address })),
      assertFree: () => this.#assertUnheld(wanted, groups),
    }
  }

  /** For one that has them already and is about to run: can they be had now? Throws what is in the way. */
  async assertReady({ id, devices = [], gpu }: Omit<Owner, 'uid'>): Promise<void> {
    if (devices.length === 0 && gpu === undefined) return
    this.#assertRoot()
    if (devices.length > 0) await this.#groupsOf(devices)
    // What an earlier life could not give back makes room for this one's.
    if (gpu !== undefined && !this.isHolding(id)) await this.#place(gpu.profile)
  }

  /**
   * Takes the instance's devices from their drivers, makes its part of a GPU, and lets its VMM's user open both; before its VM starts. What
   * the part is called comes back. When it throws, `detach` is the undo.
   */
  async attach(owner: Owner, step: Step): Promise<InstanceGpu | undefined> {
    const { id, devices = [], gpu } = owner
    // What an earlier life could not give back.
    if (this.isHolding(id)) await this.detach(id, step)
    if (devices.length > 0) await this.#takeDevices(owner, devices, step)
    return gpu === undefined ? undefined : this.#makePart(owner, gpu.profile, step)
  }

  /** Is anything of the host another's than its own for it? */
  isHolding(id: InstanceId): boolean {
    return this.#rows.bindings(id).length > 0 || this.#rows.vgpus().some(({ instanceId }) => instanceId === id)
  }

  /**
   * All that was taken or made for the instance is given back. Its VM must be gone. Repeat is harmless. What cannot be given back in time
   * stays on record, and the rest is done all the same.
   */
  async detach(id: InstanceId, step: Step): Promise<void> {
    const { sysfs } = this.#uses
    const bindings = this.#rows.bindings(id)
    const failures: unknown[] = []
    for (const group of new Set(bindings.map(({ iommuGroup }) => iommuGroup))) {
      await disownGroup(sysfs, group).catch((error: unknown) => failures.push(error))
    }
    for (const binding of bindings) await this.#giveBack(binding, step).catch((error: unknown) => failures.push(error))
    for (const vgpu of this.#rows.vgpus()) {
      if (vgpu.instanceId === id) await this.#removePart(vgpu, step).catch((error: unknown) => failures.push(error))
    }
    if (failures.length > 0) throw failures[0]
  }

  /** What was taken for instances that there are no more. Once, before the first attach. */
  async recover(isKnown: (id: InstanceId) => boolean, step: Step): Promise<void> {
    const owners = new Set([...this.#rows.bindings(), ...this.#rows.vgpus()].map(({ instanceId }) => instanceId))
    for (const id of owners) {
      if (isKnown(id)) continue
      await this.detach(id, step).catch((err: unknown) => this.#uses.log.error({ err, instance: id }, 'a device could not be given back'))
    }
  }

  /** What `/resources` says of GPUs: their parts where they are divided, else those that are registered; undefined when there are none. */
  async gpus(): Promise<NonNullable<Resources['gpu']> | undefined> {
    const parents = await listVgpuParents(this.#uses.sysfs)
    if (parents.length > 0) return dividedGpus(parents)
    const gpus = (await this.list()).filter(({ type }) => type === 'gpu').reverse()
    if (gpus.length === 0) return undefined
    return {
      mode: 'passthrough',
      total_slots: gpus.length,
      used_slots: gpus.filter(({ holder }) => holder !== undefined).length,
      devices: gpus.map(({ name, holder }) => ({ name, available: holder === undefined })),
    }
  }

  // Below

  #assertRoot(): void {
    if (this.#uses.isRoot) return
    throw new AppError('not_supported', 'Devices can be given to instances only by a daemon that is root', { hint: 'Start it as root' })
  }

  /** Throws `code`: an instance that asks for one is there, what it asks for is not. */
  #resolve(text: string, code: 'not_found' | 'device_not_found' = 'device_not_found'): Device {
    return this.#rows.find(text) ?? this.#rows.findByName(text) ?? raise(notRegistered(text, code))
  }

  async #look(devices: readonly Device[]): Promise<SeenDevice[]> {
    const holders = this.#rows.holders()
    return Promise.all(
      devices.map(async (device) => {
        const now = await readPci(this.#uses.sysfs, device.address)
        const holder = holders.get(device.id)
        return {
          ...device,
          iommuGroup: now?.iommuGroup ?? device.iommuGroup,
          isBoundToVfio: now?.driver === VFIO,
          ...(holder === undefined ? {} : { holder }),
        }
      }),
    )
  }

  /** The function at that address, once it is seen that it can be given away. */
  async #givable(address: string): Promise<PciFunction & { readonly iommuGroup: number }> {
    const { sysfs } = this.#uses
    const found = await readPci(sysfs, address)
    if (found === undefined) throw new AppError('device_not_found', `The host has no PCI device ${address}`)
    if (isBridge(found)) throw new AppError('conflict', `The device ${address} is a bridge of the host: it can be given to no one`)
    if (found.hasVirtualFunctions) {
      throw new AppError('conflict', `The device ${address} has virtual functions, which would go with its driver`, {
        hint: 'Register one of these, or turn them off: write 0 to its sriov_numvfs',
      })
    }
    const { iommuGroup } = found
    if (iommuGroup === undefined) {
      throw new AppError('conflict', `The device ${address} is in no IOMMU group: it would reach all of the host's memory`, {
        hint: 'Turn the IOMMU on, in the firmware and on the kernel’s command line: dormouse doctor says what the host has',
      })
    }
    const group = await readGroup(sysfs, iommuGroup)
    const isRegistered = (member: string): boolean => this.#rows.findByAddress(member) !== undefined
    const stranger = strangerIn(group, address, isRegistered)
    if (stranger !== undefined) {
      throw new AppError(
        'conflict',
        `The device ${address} shares the IOMMU group ${iommuGroup} with ${stranger.address}, which the host drives with ${stranger.driver}`,
        {
          hint: `A group goes to one instance as a whole: take that one from its driver first (driverctl, or its driver/unbind in /sys/bus/pci/devices/${stranger.address})`,
          detail: { iommu_group: iommuGroup, member: stranger.address, driver: stranger.driver },
        },
      )
    }
    for (const { address: member, driver } of takenWith(group, address, isRegistered)) {
      if (driver !== VFIO) await assertUnusedByHost(sysfs, member)
    }
    return { ...found, iommuGroup }
  }

  /** The group of each registered device, as it is now; those that are wanted can be given away. */
  async #groupsOf(wanted: readonly Pick<Device, 'id' | 'address' | 'name'>[]): Promise<ReadonlyMap<string, number>> {
    const groups = new Map((await this.#look(this.#rows.list())).map(({ id, iommuGroup }) => [id, iommuGroup]))
    for (const { id, address, name } of wanted) {
      const found = await this.#givable(address)
      const device = this.#rows.find(id)
      if (device === undefined || device.vendorId !== found.vendorId || device.deviceId !== found.deviceId) {
        throw new AppError('conflict', `At ${address} is another device than the one that was registered as ${name}`, {
          hint: `Register what is there now: dormouse device rm ${name}, dormouse device create ${address}`,
        })
      }
      groups.set(id, found.iommuGroup)
    }
    return groups
  }

  #assertUnheld(wanted: readonly Device[], groups: ReadonlyMap<string, number>): void {
    const holders = this.#rows.holders()
    for (const { id, name } of wanted) {
      if (this.#rows.find(id) === undefined) throw notRegistered(name)
      const holder = holders.get(id)
      if (holder !== undefined) {
        throw new AppError('conflict', `The device ${name} is attached to the instance ${holder.instanceName}`, {
          hint: `One instance has a device from its create to its delete: dormouse rm ${holder.instanceName}`,
          detail: { instance: holder.instanceId },
        })
      }
      for (const [other, { instanceId, instanceName }] of holders) {
        if (groups.get(other) !== groups.get(id)) continue
        throw new AppError(
          'conflict',
          `The device ${name} shares the IOMMU group ${groups.get(id)} with ${this.#rows.find(other)?.name}, which the instance ${instanceName} has`,
          { hint: 'A group goes to one instance as a whole', detail: { instance: instanceId } },
        )
      }
    }
  }

  async #takeDevices({ id, uid }: Owner, devices: readonly HeldDevice[], step: Step): Promise<void> {
    const { sysfs, db } = this.#uses
    const groups = await this.#groupsOf(devices)
    const isRegistered = (member: string): boolean => this.#rows.findByAddress(member) !== undefined
    const taken = new Map<string, PciFunction & { readonly iommuGroup: number }>()
    for (const { id: device, address } of devices) {
      const iommuGroup = Number(groups.get(device))
      for (const one of takenWith(await readGroup(sysfs, iommuGroup), address, isRegistered)) taken.set(one.address, { ...one, iommuGroup })
    }
    const places = await Promise.all([...taken.values()].map(async (one) => ({ ...one, ...(await placeOf(sysfs, one)) })))
    db.transaction(() => {
      const others = this.#rows.bindings().filter(({ instanceId }) => instanceId !== id)
      const clash = others.find(({ address, iommuGroup }) => places.some((one) => one.address === address || one.iommuGroup === iommuGroup))
      // Groups may be others after a reboot than they were when it was recorded who has what.
      if (clash !== undefined) {
        throw new AppError('conflict', `The IOMMU group ${clash.iommuGroup} is taken for another instance, with ${clash.address}`, {
          hint: 'A group goes to one instance as a whole: stop that one first',
          detail: { instance: clash.instanceId },
        })
      }
      for (const { address, iommuGroup, driver, override } of places) {
        const place = { ...(driver === undefined ? {} : { driver }), ...(override === undefined ? {} : { override }) }
        this.#rows.bind({ ...place, address, iommuGroup, instanceId: id })
      }
    })
    for (const address of taken.keys()) await takeFunction(sysfs, address, step)
    if (uid === undefined) return
    for (const group of new Set([...taken.values()].map(({ iommuGroup }) => iommuGroup))) await ownGroup(sysfs, group, { uid, gid: uid })
  }

  async #giveBack(binding: Binding, step: Step): Promise<void> {
    const { sysfs, db, log } = this.#uses
    const { address, instanceId } = binding
    const trouble = await giveFunctionBack(sysfs, binding, step)
    if (trouble !== undefined) log.error({ address, instance: instanceId }, `a device of the host stays without its driver: ${trouble}`)
    db.transaction(() => this.#rows.unbind(address), { evenWhenFull: true })
  }

  /** Where one of that profile can be made now. Throws `insufficient_resources` when nowhere. */
  async #place(profile: string): Promise<{ readonly parent: VgpuParent; readonly typeId: string; readonly profile: string }> {
    const held = this.#rows.holders()
    // One that an instance has as a whole is not divided, also while it is stopped.
    const parents = (await listVgpuParents(this.#uses.sysfs)).filter(
      ({ address }) => !held.has(this.#rows.findByAddress(address)?.id ?? ''),
    )
    const isIt = (type: VgpuParent['types'][number]): boolean => type.profile === profile || type.id === profile
    for (const parent of parents) {
      const type = parent.types.find((one) => isIt(one) && one.available > 0)
      if (type !== undefined) return { parent, typeId: type.id, profile: type.profile }
    }
    const { profiles = [] } = dividedGpus(parents)
    // A virtual function that is in use does not say what else it could be.
    const isKnown = parents.some(({ kind, types, used }) => types.some(isIt) || (kind === 'vf' && used > 0))
    if (isKnown) {
      throw new AppError('insufficient_resources', `No GPU of the host has room for one more ${profile}`, {
        hint: 'Stop an instance that has one, or take another profile',
        detail: { profile, ...(profiles.length > 0 && { available: profiles.filter((one) => one.available > 0).map(({ name }) => name) }) },
      })
    }
    if (parents.length === 0) {
      throw new AppError('not_supported', 'No GPU of the host can be divided, so that there is no `gpu.profile` to be had', {
        hint: 'A whole GPU is a device: dormouse device available',
      })
    }
    throw new AppError('invalid_request', `No GPU of the host has the profile ${JSON.stringify(profile)}`, {
      hint: `It has ${profiles.map(({ name }) => name).join(', ')}`,
    })
  }

  async #makePart({ id, uid }: Owner, wanted: string, step: Step): Promise<InstanceGpu> {
    const { sysfs, db } = this.#uses
    const { parent, typeId, profile } = await this.#place(wanted)
    const own = parent.kind === 'mdev' ? { uuid: randomUUID() } : {}
    const vgpu: Vgpu = { instanceId: id, profile, parent: parent.address, typeId, ...own }
    db.transaction(() => this.#rows.addVgpu(vgpu))
    const group = await makeVgpu(sysfs, vgpu, step)
    if (uid !== undefined) await ownGroup(sysfs, group, { uid, gid: uid })
    return { profile: wanted, ...(vgpu.uuid === undefined ? { address: vgpu.parent } : { mdevUuid: vgpu.uuid }) }
  }

  async #removePart(vgpu: Vgpu, step: Step): Promise<void> {
    const { sysfs, db } = this.#uses
    await removeVgpu(sysfs, vgpu, step)
    db.transaction(() => this.#rows.removeVgpu(vgpu.instanceId), { evenWhenFull: true })
  }
}

// As for names of instances.
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$/

function raise(error: Error): never {
  throw error
}

const notRegistered = (text: string, code: 'not_found' | 'device_not_found' = 'device_not_found'): AppError =>
  new AppError(code, `There is no device ${JSON.stringify(text.slice(0, 128))}`, {
    hint: 'List them with: dormouse device ls',
  })

/** What has to leave its driver for one of a group to be given away: itself, and of the others those that have one. Pure. */
const takenWith = (group: readonly PciFunction[], address: string, isRegistered: (address: string) => boolean): PciFunction[] =>
  group.filter(
    (member) =>
      member.address === address ||
      (member.driver !== undefined && !isBridge(member) && (isSameCard(member.address, address) || isRegistered(member.address))),
  )

/** How many parts there are, and of which profile how many more there can be. Pure. */
function dividedGpus(parents: readonly VgpuParent[]): NonNullable<Resources['gpu']> {
  const profiles = new Map<string, { name: string; framebuffer_mb: number; available: number }>()
  for (const { profile, framebufferMb, available } of parents.flatMap(({ types }) => types)) {
    const known = profiles.get(profile)
    profiles.set(profile, { name: profile, framebuffer_mb: framebufferMb, available: (known?.available ?? 0) + available })
  }
  const used = parents.reduce((sum, one) => sum + one.used, 0)
  const free = parents.reduce((sum, { types }) => sum + Math.max(0, ...types.map(({ available }) => available)), 0)
  return { mode: 'vgpu', total_slots: used + free, used_slots: used, profiles: [...profiles.values()] }
}
