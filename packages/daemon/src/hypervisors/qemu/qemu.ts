/**
 * QEMU behind the driver contract, one driver for each board.
 *
 *   start ─► golden boot at hand? ─yes─► shim + QEMU on its base ─► load device state ─► runs, parked, drivers bound to empty slots
 *                    └─no, or a fresh boot is wanted─► shim + QEMU ─► boots to the same parked point
 */
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import { assertPortsFree } from '../../host/assert-ports-free.ts'
import { readBootId, usageOf } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import { checkState, readManifest } from '../../memory/capture-files.ts'
import type { GoldenBoot, GoldenShape } from '../../memory/memory.ts'
import type { Capture, Hypervisor, HypervisorName, HypervisorProbe, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import { NETWORK_SOCKET } from '../network-helper.ts'
import { sweepRunDir } from '../run-dir.ts'
import { readExit, Shim } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import type { UserNicSpec, VmSpec } from '../vm-spec.ts'
import { type Board, MICROVM, Q35 } from './boards.ts'
import type { Machine } from './command-line.ts'
import { assertSane, bytesOf } from './dimms.ts'
import { FIXED_SLOTS } from './disk-nodes.ts'
import { captureFactsOf, shapeOf, unfitness } from './golden-shape.ts'
import { launch, networkKindOf, networkOf, WakeFailed } from './launch.ts'
import { captureGolden } from './parked-machine.ts'
import { canPrepareFor } from './prepared-machine.ts'
import { type HostAnswers, QemuHost, type QemuUses } from './qemu-host.ts'
import { type AddedMemoryUses, QemuVm } from './qemu-vm.ts'
import { canRehearseFor } from './rehearsed-machine.ts'
import { ORIGINS, type Origin, ZERO_SUM } from './vm-origin.ts'
import { type Fitting, WaitingMachines } from './waiting-machines.ts'

export { Pool } from './pool.ts'
export type { PoolPlace, QemuUses } from './qemu-host.ts'
export type { WaitingMachine } from './waiting-machine.ts'

/** `qemu` (q35) and `qemu-microvm`, sharing what they find out about the host. */
export function createQemuDrivers(uses: QemuUses): QemuHypervisor[] {
  const host = new QemuHost(uses)
  return [new QemuHypervisor(Q35, uses, host), new QemuHypervisor(MICROVM, uses, host)]
}

/**
 * Finds out about the host before the first start has to wait for it, and drops golden boots that no start will ask for again. Only
 * for the daemon that holds the data directory. Never rejects.
 */
export async function dropStaleGoldenBoots(
  { isStale }: { readonly isStale: (facts: GoldenShape['facts']) => Promise<boolean> },
  { memory, log }: Pick<QemuUses, 'memory' | 'log'>,
): Promise<void> {
  try {
    await memory.sweepGoldenBoots(isStale)
  } catch (error) {
    // A probe or a start will say it to someone who can do something about it.
    log.debug({ err: error }, 'old golden boots were not looked through')
  }
}

export class QemuHypervisor implements Hypervisor {
  readonly name: HypervisorName
  readonly capabilities: ReadonlySet<Capability>
  readonly volumeSlots: number
  readonly #board: Board
  readonly #uses: QemuUses
  readonly #host: QemuHost
  readonly #waiting: WaitingMachines

  constructor(board: Board, uses: QemuUses, host: QemuHost) {
    this.name = board.hypervisor
    this.volumeSlots = board.diskSlots - FIXED_SLOTS
    this.#board = board
    this.capabilities = new Set([
      'pause',
      'standby',
      'fork',
      'snapshots',
      'disk_hotplug',
      'disk_limit',
      'disk_limit_live',
      'disk_layers',
      'fresh_boot',
      ...(board.takesDimms ? (['memory_hotplug'] as const) : []),
      ...(board.portPlace === undefined ? [] : (['gpu'] as const)),
    ])
    this.#uses = uses
    this.#host = host
    this.#waiting = new WaitingMachines(board, uses, {
      golden: (machine, answers, step) => this.#golden(machine, answers, step),
      fitting: (spec, capture) => this.#fitting(spec, capture),
      addedOf: (handle) => this.#addedOf(handle),
    })
  }

  async probe(_step: Step): Promise<HypervisorProbe> {
    try {
      const { version, acceleration, outOfReach } = await this.#host.answers()
      const memory = outOfReach === undefined ? {} : { memoryOutOfReach: outOfReach }
      const probe = { available: true, version, acceleration: acceleration.kind, ...memory }
      return acceleration.reason === undefined ? probe : { ...probe, reason: acceleration.reason }
    } catch (error) {
      return { available: false, reason: error instanceof Error ? error.message : String(error) }
    }
  }

  /** True for a golden boot of this board that would be made differently now. */
  async isStale(facts: GoldenShape['facts']): Promise<boolean> {
    const host = await this.#host.answers()
    const now = shapeOf(
      this.#machine(host, { vcpus: 1, memoryMib: 1, hasTap: facts.network === 'tap' }, facts.hotplug !== undefined),
      host,
    ).facts
    const names = Object.keys({ ...facts, ...now })
    return facts.board === now.board && names.some((name) => name !== 'vcpus' && facts[name] !== now[name])
  }

  get waiting(): number {
    return this.#uses.pool?.machines.count((machine) => machine.handle.hypervisor === this.name) ?? 0
  }

  waitingBytes(): number {
    const own = this.#uses.pool?.machines.map(({ handle }) => usageOf(handle.vmm)?.privateBytes ?? 0) ?? []
    return own.reduce((sum, bytes) => sum + bytes, 0)
  }

  async releaseWaiting(untilMs: number | undefined): Promise<number> {
    const machines = this.#uses.pool?.machines
    if (machines === undefined) return 0
    const own = untilMs === undefined ? 0 : this.waitingBytes()
    await machines.release(untilMs)
    return own
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    await assertPortsFree(portsOf(spec))
    const host = await this.#host.answers()
    if (spec.hotplugMib !== undefined) assertInReach(host)
    const machine = this.#machine(host, likeOf(spec), spec.hotplugMib !== undefined)
    using _start = this.#uses.pool?.machines.start()
    using golden = bootsItself(spec) || this.#uses.goldenBoots === false ? undefined : await this.#golden(machine, host, step)
    const kind = golden !== undefined && canRehearseFor(spec) ? this.#waiting.startKind(spec, machine, host, golden) : undefined
    const waited = await this.#waiting.take(kind, spec, step)
    if (waited !== undefined) return waited
    return await this.#withAdded(spec, await this.#wakeOrBoot(spec, machine, host, golden, step), step)
  }

  /** Added once it runs: a golden boot has none of it. */
  async #withAdded({ hotplugMib = 0 }: VmSpec, vm: QemuVm, step: Step): Promise<Vm> {
    if (hotplugMib === 0) return vm
    try {
      await vm.setHotplug(hotplugMib * 2 ** 20, async () => undefined, step)
      return vm
    } catch (error) {
      await vm.kill()
      throw error
    }
  }

  async #wakeOrBoot(spec: VmSpec, machine: Machine, host: HostAnswers, golden: GoldenBoot | undefined, step: Step): Promise<QemuVm> {
    try {
      return await (golden === undefined
        ? this.#boot(spec, machine, host, step)
        : this.#run(spec, machine, host, { entry: 'wake', golden }, step))
    } catch (error) {
      if (golden === undefined || step.signal.aborted || !(error instanceof WakeFailed)) throw error
      step.log.warn({ err: error, golden: golden.key }, 'a golden boot could not be woken, booting from the start')
      const vm = await this.#boot(spec, machine, host, step)
      // The VM runs without it, so it was to blame and not this VM's disks: no later start shall trip over it.
      await this.#uses.pool?.machines.forget(({ base }) => base === `golden/${golden.key}`)
      await golden.discard()
      return vm
    }
  }

  async restore(spec: VmSpec, capture: Capture, step: Step): Promise<Vm> {
    await assertPortsFree(portsOf(spec))
    if (spec.hostDevices !== undefined) throw new AppError('not_supported', 'What was in a device of the host is in no sleeping state')
    const { host, machine, manifest } = await this.#fitting(spec, capture)
    using _start = this.#uses.pool?.machines.start()
    const waited = await this.#waiting.take(canPrepareFor(spec) ? this.#waiting.restoreKind(spec, capture) : undefined, spec, step)
    if (waited !== undefined) return waited
    using base = await this.#uses.memory.holdBase(capture, manifest.baseSum, step)
    return await this.#run(spec, machine, host, { entry: 'restore', capture, manifest, base }, step)
  }

  expectRestore(spec: VmSpec, capture: Capture): void {
    if (canPrepareFor(spec)) this.#uses.pool?.machines.expect(this.#waiting.restoreKind(spec, capture))
  }

  async unexpect(id: string): Promise<void> {
    await this.#uses.pool?.machines.forget(({ owner }) => owner === id)
  }

  async assertFits(spec: VmSpec, capture: Capture): Promise<void> {
    await this.#fitting(spec, capture)
  }

  /** The machine that the capture is woken on, once it is seen that it can be. */
  async #fitting(spec: VmSpec, { dir }: Pick<Capture, 'dir'>): Promise<Fitting> {
    const host = await this.#host.answers()
    const manifest = await readManifest(dir)
    // A guest that came up without vhost may use what vhost does not offer.
    const vhost = manifest.facts.vhost !== undefined
    const machine = this.#machine(host, { ...likeOf(spec), vhost }, manifest.facts.hotplug !== undefined)
    const why =
      manifest.memoryBytes === machine.memoryMib * 2 ** 20
        ? unfitness(manifest.facts, captureFactsOf(machine, host, networkKindOf(spec)))
        : 'the instance has another size of memory now'
    if (why !== undefined) throw new AppError('snapshot_unusable', `The sleeping state cannot be woken here: ${why}`)
    await checkState(dir, manifest)
    const { dimms = [] } = manifest
    assertSane(dimms)
    if (dimms.length > 0) assertInReach(host)
    // It counts at admission, so a VM that was taken over may not have said so of itself.
    if (bytesOf(dimms) !== (spec.hotplugMib ?? 0) * 2 ** 20) {
      throw new AppError('snapshot_unusable', 'The sleeping state has another size of added memory than the instance')
    }
    return { host, machine, manifest }
  }

  async #boot(spec: VmSpec, machine: Machine, host: HostAnswers, step: Step): Promise<QemuVm> {
    using base = await this.#uses.memory.holdBase({ base: 'zero' }, ZERO_SUM, step)
    return await this.#run(spec, machine, host, { entry: 'boot', base }, step)
  }

  async #run(spec: VmSpec, machine: Machine, host: HostAnswers, origin: Origin, step: Step): Promise<QemuVm> {
    const { shim, handle } = await launch(this.#uses, { spec, machine, host, origin }, step)
    return new QemuVm(handle, ORIGINS[origin.entry], shim, networkOf(spec.runDir, spec.nic?.backend === 'user'), this.#addedOf(handle))
  }

  async reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined> {
    if (handle.bootId !== readBootId()) return undefined
    const shim = await Shim.adopt(handle.runDir, handle.shim, handle.vmm, step)
    if (shim === undefined) return undefined
    const hasNetwork = await readdir(handle.runDir).then((names) => names.includes(NETWORK_SOCKET))
    return new QemuVm(handle, 'adopted', shim, networkOf(handle.runDir, hasNetwork), this.#addedOf(handle))
  }

  lastExit(runDir: string): Promise<VmExit | undefined> {
    return readExit(runDir)
  }

  sweep(runDir: string): Promise<void> {
    return sweepRunDir(runDir, this.#uses.cgroups)
  }

  #addedOf({ runDir, machine }: VmHandle): AddedMemoryUses {
    return {
      dir: this.#uses.memory.scratchDir,
      limit: async (bytes) => {
        if (machine === undefined) return
        if (bytes > 0) assertInReach(await this.#host.answers())
        const { vcpus, acceleration } = machine.facts
        const limits = cgroupLimitsOf({
          vcpus: Number(vcpus),
          memoryMib: (machine.memoryBytes + bytes) / 2 ** 20,
          acceleration: acceleration === 'kvm' ? 'kvm' : 'tcg',
        })
        await this.#uses.cgroups?.make(path.basename(runDir), limits)
      },
    }
  }

  #machine(host: HostAnswers, { vcpus, memoryMib, hasTap, vhost = true }: Like, hotplug: boolean): Machine {
    if (hotplug && !this.#board.takesDimms)
      throw new AppError('not_supported', `Memory cannot be added to a VM of the hypervisor ${this.name}`, { hint: 'Use qemu' })
    const { kernelPath, initrdPath } = this.#uses
    return {
      board: this.#board,
      acceleration: host.acceleration.kind,
      vcpus,
      memoryMib,
      kernelPath,
      initrdPath,
      tscKhz: host.tscKhz,
      ...(hasTap ? { hasTap } : {}),
      ...(hasTap && vhost && host.vhost ? { vhost } : {}),
      ...(hotplug ? { hotplug } : {}),
    }
  }

  async #golden(machine: Machine, host: HostAnswers, step: Step): Promise<GoldenBoot | undefined> {
    try {
      return await this.#uses.memory.goldenBoot(
        shapeOf(machine, host),
        (memory, file, own) => captureGolden(this.#uses, machine, host.acceleration.groups, memory, file, own),
        step,
      )
    } catch (error) {
      if (step.signal.aborted) throw error
      step.log.warn({ err: error }, 'no golden boot could be made, booting from the start')
      return undefined
    }
  }
}

/** What of a VM makes its machine; `vhost`: where the host has it. */
interface Like {
  readonly vcpus: number
  readonly memoryMib: number
  readonly hasTap: boolean
  readonly vhost?: boolean
}

const likeOf = ({ vcpus, memoryMib, nic }: VmSpec): Like => ({ vcpus, memoryMib, hasTap: nic?.backend === 'tap' })

/** Where VMs may not be looked into, each maps a copy of its base that its shim has too. Of memory that comes later it has none. */
function assertInReach({ outOfReach }: HostAnswers): void {
  if (outOfReach === undefined) return
  throw new AppError('not_supported', `Memory cannot be added to VMs on this host: their memory is out of reach (${outOfReach})`, {
    hint: 'See what would mend it with: dormouse doctor',
  })
}

/**
 * With a kernel of its own, or with devices of the host: a golden boot was parked without them. Nor would it be of use then, as all of the
 * memory is made the VM's own as soon as a device may reach it (docs/decisions/0116).
 */
const bootsItself = ({ freshBoot, hostDevices }: VmSpec): boolean => freshBoot === true || hostDevices !== undefined

const portsOf = ({ nic }: VmSpec): UserNicSpec['ports'] => (nic?.backend === 'user' ? nic.ports : [])
