import { randomBytes } from 'node:crypto'
import { open, rm } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { connectTo } from '../../host/unix-socket.ts'
import type { Step } from '../../lib/step.ts'
import { SCRATCH } from '../../memory/memory.ts'
import { captureMemory } from '../captured-memory.ts'
import type {
  Bandwidth,
  CaptureUnderWay,
  Evacuate,
  IgnoredConnections,
  Inbound,
  Pivot,
  PortForward,
  Vm,
  VmExit,
  VmHandle,
  VmUsage,
} from '../hypervisor.ts'
import type { NetworkHelper } from '../network-helper.ts'
import type { Shim } from '../shim.ts'
import type { DiskRole } from '../vm-spec.ts'
import { vmmUsage } from '../vmm-usage.ts'
import { SAVE_FILE } from './command-line.ts'
import { assertBlocks, bytesOf, dimmFd, dimmSet, dimmsOf, planDimms, plug, unplug } from './dimms.ts'
import { QemuDiskHotplug } from './disk-hotplug.ts'
import { flattenLive } from './flatten-live.ts'
import { QemuPivot } from './pivot.ts'
import { Qmp } from './qmp.ts'
import { throttleAll } from './throttle.ts'

export const QMP_SOCKET = 'qmp.sock'
export const AGENT_SOCKET = 'agent.sock'

export interface AddedMemoryUses {
  /** Where files of added memory are made, before they lose their names. */
  readonly dir: string
  /** Lets it have so many bytes beyond what it began with. Throws `not_supported` where it cannot have any. */
  limit(bytes: number): Promise<void>
}

const hasRoom = (machine: VmHandle['machine']): boolean => machine?.facts.hotplug !== undefined

/** One VM under its shim. */
export class QemuVm implements Vm {
  readonly handle: VmHandle
  readonly origin: Vm['origin']
  readonly exited: Promise<VmExit>
  readonly diskHotplug: QemuDiskHotplug
  readonly #shim: Shim
  readonly #network: NetworkHelper | undefined
  /** Layers of pivots that were neither committed nor discarded, by their sets. */
  readonly #prepared = new Set<number>()
  readonly #added: AddedMemoryUses
  #guest: Socket | undefined
  #held: Qmp | undefined

  constructor(handle: VmHandle, origin: Vm['origin'], shim: Shim, network: NetworkHelper | undefined, added: AddedMemoryUses) {
    this.handle = handle
    this.origin = origin
    this.#shim = shim
    this.#network = network
    this.#added = added
    this.exited = shim.ended
    this.diskHotplug = new QemuDiskHotplug((step) => {
      // The shim speaks to QEMU itself.
      this.#letGo()
      const give = async (file: string, access: 'ro' | 'rw', set: number): Promise<void> => void (await shim.give(file, access, set, step))
      return { give, speak: (work, own) => this.#speak(work, own), prepared: this.#prepared }
    })
    void shim.ended.then(() => this.#guest?.destroy())
  }

  /** The control connection is kept while it is paused: no one else has business with it then, and each step of a capture is short. */
  async pause(step: Step): Promise<void> {
    if (this.#held === undefined || this.#held.isClosed) this.#held = await Qmp.connect(path.join(this.handle.runDir, QMP_SOCKET), step)
    await this.#execute('stop', step)
  }

  async resume(step: Step): Promise<void> {
    await this.#execute('cont', step)
    const [stoppedAtMs, resumedAtMs] = [this.#held?.lastAtMs('STOP'), this.#held?.lastAtMs('RESUME')]
    if (stoppedAtMs !== undefined && resumedAtMs !== undefined) {
      step.log.debug({ ms: Math.round((resumedAtMs - stoppedAtMs) * 100) / 100 }, 'VM stood still')
    }
    this.#letGo()
  }

  async capture(into: string, step: Step): Promise<CaptureUnderWay> {
    const { machine } = this.handle
    if (machine === undefined)
      throw new AppError('not_supported', 'This VM was started by an older version: stop and start the instance first')
    // Without live:false it lets go of the disks, and cannot be called again.
    await this.#execute('xen-save-devices-state', step, { filename: SAVE_FILE, live: false })
    const dimms = hasRoom(machine) ? await this.#speak((qmp) => dimmsOf(qmp, step), step) : []
    // The shim reads them beside the rest, within the pause.
    return captureMemory(this.#shim, machine, into, step, dimms)
  }

  async preparePivot(role: DiskRole, layer: { readonly path: string; readonly limitBytes?: number }, step: Step): Promise<Pivot> {
    // The shim speaks to QEMU itself.
    this.#letGo()
    const give = async (set: number): Promise<void> => void (await this.#shim.give(layer.path, 'rw', set, step))
    const { limitBytes } = layer
    const uses = { give, speak: <T>(work: (qmp: Qmp) => Promise<T>, own: Step) => this.#speak(work, own), prepared: this.#prepared }
    return QemuPivot.prepare(uses, role, limitBytes === undefined ? {} : { limitBytes }, step)
  }

  flatten(role: DiskRole, step: Step): Promise<readonly string[]> {
    return this.#speak((qmp) => flattenLive(qmp, role, this.#prepared, step), step)
  }

  async requestShutdown(step: Step): Promise<void> {
    await this.#execute('system_powerdown', step)
  }

  async kill(): Promise<VmExit> {
    this.#letGo()
    const exit = await this.#shim.kill()
    // A shim that was itself killed leaves its sockets. The exit record stays for who asks later.
    await Promise.all(
      [QMP_SOCKET, AGENT_SOCKET, 'net.sock', 'shim.sock'].map((name) => rm(path.join(this.handle.runDir, name), { force: true })),
    )
    return exit
  }

  async connectGuest(step: Step): Promise<Duplex> {
    // QEMU serves one at a time and would leave the second waiting for the first to go.
    this.#guest?.destroy()
    try {
      const socket = await connectTo(path.join(this.handle.runDir, AGENT_SOCKET), step)
      this.#guest = socket
      return socket
    } catch (cause) {
      if (cause instanceof AppError) throw cause
      throw new AppError('guest_unavailable', 'The VM does not take connections to its guest', { cause })
    }
  }

  async setPorts(ports: readonly PortForward[], step: Step): Promise<void> {
    if (this.#network !== undefined) return this.#network.setPorts(ports, step)
    if (ports.length > 0) throw new AppError('not_supported', 'The instance has no network to publish ports of')
  }

  async inbound(ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    return this.#network === undefined ? { active: 0 } : this.#network.inbound(ignored, step)
  }

  async setBandwidth(bandwidth: Bandwidth, step: Step): Promise<void> {
    await this.#network?.setBandwidth(bandwidth, step)
  }

  setDiskRate(bytesPerSecond: number | undefined, step: Step): Promise<void> {
    return this.#speak((qmp) => throttleAll(qmp, bytesPerSecond, step), step)
  }

  async hotplugBytes(step: Step): Promise<number> {
    return hasRoom(this.handle.machine) ? bytesOf(await this.#speak((qmp) => dimmsOf(qmp, step), step)) : 0
  }

  async setHotplug(bytes: number, evacuate: Evacuate, step: Step): Promise<void> {
    if (!hasRoom(this.handle.machine)) {
      if (bytes === 0) return
      throw new AppError('invalid_state', 'It was started without room for more memory', {
        hint: 'Stop it, set its hotplug_size, and start it: from then on it can be changed while it runs',
      })
    }
    assertBlocks(bytes)
    const dimms = await this.#speak((qmp) => dimmsOf(qmp, step), step)
    const { more, gone, slot } = planDimms(dimms, bytes)
    await this.#added.limit(Math.max(bytes, bytesOf(dimms)))
    if (more > 0) {
      if (slot === undefined)
        throw new AppError('conflict', 'It has been given memory too often: take all of it back first, with a hotplug_size of 0')
      await this.#plug(slot, more, step)
    }
    for (const dimm of gone) {
      await evacuate(dimm, step)
      await this.#speak(async (qmp) => {
        await unplug(qmp, dimm.slot, step)
        // One that it has from the start is a descriptor that it was born with.
        if (dimm.fd !== dimmFd(dimm.slot)) await qmp.execute('remove-fd', { 'fdset-id': dimmSet(dimm.slot) }, step)
      }, step)
    }
    await this.#added.limit(bytes)
  }

  async #plug(slot: number, bytes: number, step: Step): Promise<void> {
    const file = path.join(this.#added.dir, `${SCRATCH}${randomBytes(8).toString('hex')}`)
    const remove = () => this.#speak((qmp) => qmp.execute('remove-fd', { 'fdset-id': dimmSet(slot) }, step), step).catch(() => undefined)
    try {
      // Anyone may open it who has it: QEMU does, as a user of its own. No one else comes this far.
      await using memory = await open(file, 'wx', 0o666)
      await memory.chmod(0o666)
      await memory.truncate(bytes)
      // A daemon that died while it asked for one back may have left its set.
      await remove()
      this.#letGo()
      const fd = await this.#shim.give(file, 'rw', dimmSet(slot), step)
      await this.#speak((qmp) => plug(qmp, { slot, bytes, fd }, step), step)
    } catch (error) {
      await remove()
      throw error
    } finally {
      await rm(file, { force: true })
    }
  }

  async usage(): Promise<VmUsage | undefined> {
    const traffic = await this.#network?.traffic()
    return vmmUsage(this.handle.vmm, { received: traffic?.toGuestBytes ?? 0, sent: traffic?.fromGuestBytes ?? 0 })
  }

  #execute(command: string, step: Step, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    return this.#speak((qmp) => qmp.execute(command, args, step), step)
  }

  /** QEMU serves one control connection at a time, so none is kept while it runs: whoever adopts the VM next must not wait for us. */
  async #speak<T>(work: (qmp: Qmp) => Promise<T>, step: Step): Promise<T> {
    if (this.#held !== undefined && !this.#held.isClosed) return await work(this.#held)
    using qmp = await Qmp.connect(path.join(this.handle.runDir, QMP_SOCKET), step)
    return await work(qmp)
  }

  #letGo(): void {
    this.#held?.[Symbol.dispose]()
    this.#held = undefined
  }
}
