import { readdir, readlink, rm, writeFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import { captureMemory } from '../captured-memory.ts'
import type { CaptureUnderWay, Inbound, Pivot, PortForward, Vm, VmExit, VmHandle, VmUsage } from '../hypervisor.ts'
import { removeOwnDir } from '../own-dir.ts'
import type { Shim } from '../shim.ts'
import type { DiskRole } from '../vm-spec.ts'
import { vmmUsage } from '../vmm-usage.ts'
import { connectToAgent } from '../vsock-guest.ts'
import { saveMachine } from './capture-state.ts'
import { API_SOCKET, Control } from './control.ts'
import { PluggedDisks } from './disk-hotplug.ts'
import { formatSaved } from './saved-state.ts'

/** One VM under its shim. */
export class CloudHypervisorVm implements Vm {
  readonly handle: VmHandle
  readonly origin: Vm['origin']
  readonly exited: Promise<VmExit>
  readonly diskHotplug: PluggedDisks
  readonly #shim: Shim
  readonly #control: Control
  #guest: Socket | undefined
  #isGone = false
  /** Its guest has no connection that it had before it was put to sleep. */
  #isFresh: boolean

  constructor(handle: VmHandle, origin: Vm['origin'], shim: Shim) {
    this.handle = handle
    this.origin = origin
    this.#shim = shim
    this.#control = new Control(() => handle.runDir)
    this.exited = shim.ended
    this.diskHotplug = new PluggedDisks(this.#control, shim, String(handle.machine?.facts.vmm))
    this.#isFresh = origin === 'boot'
    void shim.ended.then(() => {
      this.#isGone = true
      this.#guest?.destroy()
    })
  }

  pause(step: Step): Promise<void> {
    return this.#control.pause(step)
  }

  resume(step: Step): Promise<void> {
    return this.#control.resume(step)
  }

  async capture(into: string, step: Step): Promise<CaptureUnderWay> {
    const { machine, runDir, shim } = this.handle
    if (machine === undefined) throw new AppError('internal_error', 'It is not known what the VM is made of')
    const saved = await saveMachine(this.#control, runDir, Number(machine.facts.vcpus), step)
    await writeFile(await savePlaceOf(shim.pid), formatSaved(saved))
    return captureMemory(this.#shim, machine, into, step)
  }

  preparePivot(): Promise<Pivot> {
    return Promise.reject(new AppError('not_supported', 'Cloud Hypervisor cannot give a disk another layer while its guest runs'))
  }

  /** Its disks are of one file each. */
  async flatten(role: DiskRole): Promise<readonly string[]> {
    throw new AppError('not_supported', `The disk ${role} has one layer only, and Cloud Hypervisor takes no others`)
  }

  requestShutdown(step: Step): Promise<void> {
    return this.#control.powerButton(step)
  }

  async kill(): Promise<VmExit> {
    const exit = await this.#shim.kill()
    // A shim that was itself killed leaves what it made. The exit record stays for who asks later.
    const { runDir } = this.handle
    await Promise.all([API_SOCKET, 'shim.sock'].map((name) => rm(path.join(runDir, name), { force: true })))
    await removeOwnDir(runDir)
    return exit
  }

  async connectGuest(step: Step): Promise<Duplex> {
    this.#guest?.destroy()
    try {
      const connect = (): Promise<Socket> => connectToAgent(this.handle.runDir, () => this.#isGone, step)
      // A guest that has just been woken may take a connection and drop it with those that it had. Once it has taken one, it has dropped them.
      if (!this.#isFresh) (await connect()).destroy()
      this.#isFresh = true
      this.#guest = await connect()
      return this.#guest
    } catch (cause) {
      if (cause instanceof AppError) throw cause
      throw new AppError('guest_unavailable', 'The VM does not take connections to its guest', { cause })
    }
  }

  async setPorts(ports: readonly PortForward[]): Promise<void> {
    if (ports.length > 0) throw new AppError('not_supported', 'The instance has no network to publish ports of')
  }

  async inbound(): Promise<Inbound> {
    return { active: 0 }
  }

  /** Its network is behind a TAP, whose rates are not the driver's affair. */
  async setBandwidth(): Promise<void> {}

  setDiskRate(): Promise<void> {
    return Promise.reject(new AppError('not_supported', 'Cloud Hypervisor cannot change how much the disks of a VM move'))
  }

  async setHotplug(bytes: number): Promise<void> {
    if (bytes > 0) throw new AppError('not_supported', 'Memory cannot be added to a VM of Cloud Hypervisor')
  }

  async hotplugBytes(): Promise<number> {
    return 0
  }

  async usage(): Promise<VmUsage | undefined> {
    return vmmUsage(this.handle.vmm)
  }
}

/** Where its shim looks for the device state: a memfd that it has kept, the only one of that name. A daemon that adopted it was not told its number. */
async function savePlaceOf(pid: number): Promise<string> {
  const dir = `/proc/${pid}/fd`
  for (const name of await readdir(dir)) {
    const file = path.join(dir, name)
    if ((await readlink(file).catch(() => '')).startsWith('/memfd:dormouse-state')) return file
  }
  throw new AppError('internal_error', 'The shim of the VM has no place for its device state')
}
