/**
 * For tests: a host with devices, as a tree of files that is read like the kernel's own, and what the kernel does when it is written to:
 * drivers let go and take, mediated devices come and go. What must never happen and did is a violation.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, relative } from 'node:path'
import type { Sysfs } from '../host/sysfs.ts'
import type { Step } from '../lib/step.ts'

export interface FakeFunction {
  readonly address: string
  readonly vendor: string
  readonly device: string
  /** Six hexadecimal digits. */
  readonly classCode: string
  readonly group?: number
  /** The driver that takes it when it is asked to look for one. */
  readonly driver?: string
  /** A network interface of it, and whether it is up. */
  readonly net?: { readonly name: string; readonly isUp: boolean }
  /** Of a GPU that is divided into mediated devices: how many of each type, all types sharing them. */
  readonly mdevTypes?: readonly { readonly id: string; readonly name: string; readonly description?: string; readonly available: number }[]
  /** How many virtual functions it has. */
  readonly virtualFunctions?: number
  /** Of a virtual function: what it can become, by number. */
  readonly vfTypes?: Readonly<Record<string, string>>
}

type Fault = 'fail' | 'hang'

export class FakeSysfs implements Sysfs, Disposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'dm-sysfs-'))
  readonly root = join(this.dir, 'sys')
  readonly dev = join(this.dir, 'dev')
  readonly proc = join(this.dir, 'proc')
  /** Who owns which device node, by its IOMMU group. */
  readonly owners = new Map<string, number>()
  readonly violations: string[] = []
  /** Names of disks that something in the kernel holds. */
  readonly claimed = new Set<string>()
  /** What was written, in order: the end of the path, and the text. */
  readonly writes: string[] = []
  /** Does a VMM have it open? An address, or the UUID of a mediated device. */
  isOpen: (what: string) => boolean = () => false
  readonly #functions = new Map<string, FakeFunction>()
  readonly #mdevs = new Map<string, { readonly parent: string; readonly type: string; readonly group: number }>()
  readonly #faults: { readonly pattern: RegExp; readonly fault: Fault; readonly resolve: () => void }[] = []
  #nextGroup = 500

  constructor(functions: readonly FakeFunction[] = [], { hasVfio = true } = {}) {
    for (const dir of ['bus/pci/devices', 'bus/pci/drivers', 'kernel/iommu_groups', 'bus/mdev/devices'])
      mkdirSync(join(this.root, dir), { recursive: true })
    mkdirSync(join(this.dev, 'vfio'), { recursive: true })
    mkdirSync(join(this.proc, 'self'), { recursive: true })
    writeFileSync(join(this.root, 'bus/pci/drivers_probe'), '')
    if (hasVfio) this.#makeDriver('vfio-pci')
    for (const one of functions) this.plug(one)
  }

  [Symbol.dispose](): void {
    rmSync(this.dir, { recursive: true, force: true })
  }

  plug(one: FakeFunction): void {
    const { address, vendor, device, classCode, group, driver, net, mdevTypes, virtualFunctions, vfTypes } = one
    this.#functions.set(address, one)
    const dir = join(this.root, 'devices/pci0000:00', address)
    mkdirSync(dir, { recursive: true })
    const put = (file: string, text: string): void => writeFileSync(join(dir, file), `${text}\n`)
    put('vendor', `0x${vendor}`)
    put('device', `0x${device}`)
    put('class', `0x${classCode}`)
    put('driver_override', '(null)')
    if (virtualFunctions !== undefined) put('sriov_numvfs', `${virtualFunctions}`)
    link(dir, join(this.root, 'bus/pci/devices', address))
    if (group !== undefined) {
      const groupDir = join(this.root, 'kernel/iommu_groups', `${group}`)
      mkdirSync(join(groupDir, 'devices'), { recursive: true })
      link(groupDir, join(dir, 'iommu_group'))
      link(dir, join(groupDir, 'devices', address))
    }
    if (driver !== undefined) {
      this.#makeDriver(driver)
      this.#bind(address, driver)
    }
    if (net !== undefined) {
      mkdirSync(join(dir, 'net', net.name), { recursive: true })
      put(`net/${net.name}/flags`, net.isUp ? '0x1003' : '0x1002')
    }
    if (mdevTypes !== undefined) {
      mkdirSync(join(this.root, 'class/mdev_bus'), { recursive: true })
      link(dir, join(this.root, 'class/mdev_bus', address))
      for (const { id, name, description, available } of mdevTypes) {
        mkdirSync(join(dir, 'mdev_supported_types', id), { recursive: true })
        put(`mdev_supported_types/${id}/name`, name)
        if (description !== undefined) put(`mdev_supported_types/${id}/description`, description)
        put(`mdev_supported_types/${id}/available_instances`, `${available}`)
        put(`mdev_supported_types/${id}/create`, '')
      }
    }
    if (vfTypes !== undefined) {
      mkdirSync(join(dir, 'nvidia'), { recursive: true })
      put('nvidia/current_vgpu_type', '0')
      this.#listVfTypes(address)
    }
  }

  /** It is pulled out. */
  unplug(address: string): void {
    this.#functions.delete(address)
    rmSync(join(this.root, 'bus/pci/devices', address), { force: true })
    for (const group of readdirSync(join(this.root, 'kernel/iommu_groups')))
      rmSync(join(this.root, 'kernel/iommu_groups', group, 'devices', address), { force: true })
    rmSync(this.#dirOf(address), { recursive: true, force: true })
  }

  mount(deviceNumber: string, where: string, below: string): void {
    const disk = this.addDisk(below, 'nvme0n1')
    mkdirSync(join(this.root, 'dev/block'), { recursive: true })
    link(disk, join(this.root, 'dev/block', deviceNumber))
    writeFileSync(join(this.proc, 'self/mountinfo'), `22 1 ${deviceNumber} / ${where} rw,relatime - ext4 /dev/nvme0n1 rw\n`)
  }

  /** A disk of the device, with its node; `at` says where in sysfs when it is not below the device. Gives its directory. */
  addDisk(below: string, name: string, at?: string): string {
    const disk = at === undefined ? join(this.#dirOf(below), 'nvme/nvme0', name) : join(this.root, at, name)
    mkdirSync(disk, { recursive: true })
    mkdirSync(join(this.root, 'class/block'), { recursive: true })
    link(disk, join(this.root, 'class/block', name))
    writeFileSync(join(this.dev, name), '')
    return disk
  }

  async isClaimed(node: string): Promise<boolean> {
    return this.claimed.has(basename(node))
  }

  driverOf(address: string): string | undefined {
    try {
      return basename(readlinkSync(join(this.#dirOf(address), 'driver')))
    } catch {
      return undefined
    }
  }

  overrideOf(address: string): string {
    return readFileSync(join(this.#dirOf(address), 'driver_override'), 'utf8').trim()
  }

  get mdevs(): string[] {
    return [...this.#mdevs.keys()]
  }

  vfTypeOf(address: string): string {
    return readFileSync(join(this.#dirOf(address), 'nvidia/current_vgpu_type'), 'utf8').trim()
  }

  /** A driver is taken out of the kernel. */
  dropDriver(name: string): void {
    for (const [address, { driver, ...one }] of this.#functions) if (driver === name) this.#functions.set(address, one)
    rmSync(join(this.root, 'bus/pci/drivers', name), { recursive: true })
  }

  /** The next write to a file that fits fails, or hangs until its step's limit. Resolves when it is there. */
  injectFault(pattern: RegExp, fault: Fault = 'fail'): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#faults.push({ pattern, fault, resolve })
    return promise
  }

  async write(file: string, text: string, step: Pick<Step, 'signal'>): Promise<void> {
    step.signal.throwIfAborted()
    const at = this.#faults.findIndex(({ pattern }) => pattern.test(file))
    const [injected] = at < 0 ? [] : this.#faults.splice(at, 1)
    injected?.resolve()
    if (injected?.fault === 'hang') await aborted(step.signal)
    if (injected !== undefined) throw new Error(`Injected fault at ${basename(file)}`)
    this.writes.push(`${relative(this.root, file)} ${text.trim()}`)
    this.#act(file, text.trim())
  }

  async own(file: string, { uid }: { readonly uid: number }): Promise<void> {
    this.owners.set(basename(file), uid)
  }

  async loadModule(name: string): Promise<void> {
    throw new Error(`There is no module ${name}`)
  }

  #act(file: string, text: string): void {
    const name = basename(file)
    const dir = dirname(file)
    const acts: Readonly<Record<string, () => void>> = {
      driver_override: () => writeFileSync(file, `${text || '(null)'}\n`),
      drivers_probe: () => this.#probe(text),
      unbind: () => this.#unbind(text),
      bind: () => this.#bind(text, basename(dir)),
      create: () => this.#makeMdev(basename(dirname(dirname(dir))), basename(dir), text),
      remove: () => this.#removeMdev(basename(dir)),
      current_vgpu_type: () => this.#becomeVf(basename(dirname(dir)), text),
    }
    const act = acts[name]
    if (act === undefined) throw new Error(`No one writes to ${file}`)
    act()
  }

  #probe(address: string): void {
    if (this.driverOf(address) !== undefined) return
    const override = this.overrideOf(address)
    const driver = override === '(null)' ? this.#functions.get(address)?.driver : override
    if (driver !== undefined) this.#bind(address, driver)
  }

  #bind(address: string, driver: string): void {
    if (this.driverOf(address) !== undefined) throw new Error('EBUSY')
    const dir = join(this.root, 'bus/pci/drivers', driver)
    link(dir, join(this.#dirOf(address), 'driver'))
    const { group } = this.#functions.get(address) ?? {}
    if (driver === 'vfio-pci' && group !== undefined) writeFileSync(join(this.dev, 'vfio', `${group}`), '')
  }

  #unbind(address: string): void {
    if (this.driverOf(address) === 'vfio-pci' && this.isOpen(address))
      this.violations.push(`${address} was taken from a VMM that has it open`)
    rmSync(join(this.#dirOf(address), 'driver'), { force: true })
    const { group } = this.#functions.get(address) ?? {}
    if (
      group === undefined ||
      [...this.#functions.values()].some((one) => one.group === group && this.driverOf(one.address) === 'vfio-pci')
    )
      return
    rmSync(join(this.dev, 'vfio', `${group}`), { force: true })
    this.owners.delete(`${group}`)
  }

  #makeMdev(parent: string, type: string, uuid: string): void {
    const left = this.#left(parent, type)
    if (left === 0) throw new Error('ENOSPC')
    this.#count(parent, -1)
    const group = this.#nextGroup++
    this.#mdevs.set(uuid, { parent, type, group })
    const dir = join(this.#dirOf(parent), uuid)
    const groupDir = join(this.root, 'kernel/iommu_groups', `${group}`)
    mkdirSync(dir)
    mkdirSync(groupDir, { recursive: true })
    link(groupDir, join(dir, 'iommu_group'))
    link(dir, join(this.root, 'bus/mdev/devices', uuid))
    writeFileSync(join(this.dev, 'vfio', `${group}`), '')
  }

  #removeMdev(uuid: string): void {
    const mdev = this.#mdevs.get(uuid)
    if (mdev === undefined) throw new Error('ENOENT')
    if (this.isOpen(uuid)) this.violations.push(`the mediated device ${uuid} was taken from a VMM that has it open`)
    this.#mdevs.delete(uuid)
    this.#count(mdev.parent, 1)
    rmSync(join(this.root, 'bus/mdev/devices', uuid))
    rmSync(join(this.#dirOf(mdev.parent), uuid), { recursive: true })
    rmSync(join(this.dev, 'vfio', `${mdev.group}`))
    this.owners.delete(`${mdev.group}`)
  }

  #left(parent: string, type: string): number {
    return Number(readFileSync(join(this.#dirOf(parent), 'mdev_supported_types', type, 'available_instances'), 'utf8'))
  }

  #count(parent: string, by: number): void {
    for (const { id } of this.#functions.get(parent)?.mdevTypes ?? []) {
      const file = join(this.#dirOf(parent), 'mdev_supported_types', id, 'available_instances')
      writeFileSync(file, `${this.#left(parent, id) + by}\n`)
    }
  }

  #becomeVf(address: string, type: string): void {
    const { vfTypes = {}, group } = this.#functions.get(address) ?? {}
    if (type !== '0' && (!(type in vfTypes) || this.vfTypeOf(address) !== '0')) throw new Error('EINVAL')
    if (type === '0' && this.isOpen(address)) this.violations.push(`${address} was taken from a VMM that has it open`)
    writeFileSync(join(this.#dirOf(address), 'nvidia/current_vgpu_type'), `${type}\n`)
    if (type !== '0') writeFileSync(join(this.dev, 'vfio', `${group}`), '')
    else rmSync(join(this.dev, 'vfio', `${group}`), { force: true })
    this.#listVfTypes(address)
  }

  #listVfTypes(address: string): void {
    const { vfTypes = {} } = this.#functions.get(address) ?? {}
    const isFree = this.vfTypeOf(address) === '0'
    const lines = isFree ? Object.entries(vfTypes).map(([id, name]) => `${id.padEnd(6)}: ${name}`) : []
    writeFileSync(join(this.#dirOf(address), 'nvidia/creatable_vgpu_types'), ['ID    : vGPU Name', ...lines, ''].join('\n'))
  }

  #makeDriver(name: string): void {
    mkdirSync(join(this.root, 'bus/pci/drivers', name), { recursive: true })
  }

  #dirOf(address: string): string {
    return join(this.root, 'devices/pci0000:00', address)
  }
}

/** As sysfs has them: relative. */
const link = (target: string, at: string): void => symlinkSync(relative(dirname(at), target), at)

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}
