import { rm } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import { captureMemory } from '../captured-memory.ts'
import type { Bandwidth, CaptureUnderWay, Inbound, Pivot, PortForward, Vm, VmExit, VmHandle, VmUsage } from '../hypervisor.ts'
import { connectToOwn, removeOwnDir } from '../own-dir.ts'
import type { Shim } from '../shim.ts'
import type { DiskRole } from '../vm-spec.ts'
import { VmmApi, VmmRefusal } from '../vmm-api.ts'
import { vmmUsage } from '../vmm-usage.ts'
import { connectToAgent } from '../vsock-guest.ts'
import { FirecrackerDiskHotplug } from './disk-hotplug.ts'
import { describeRequest, isSaved, saveStateRequest, shutdownRequest, stateRequest } from './requests.ts'

export const API_SOCKET = 'api.sock'

export const apiOf = (runDir: string): VmmApi => new VmmApi((step) => connectToOwn(runDir, API_SOCKET, step))

/** One VM under its shim. */
export class FirecrackerVm implements Vm {
  readonly handle: VmHandle
  readonly origin: Vm['origin']
  readonly exited: Promise<VmExit>
  readonly diskHotplug: FirecrackerDiskHotplug
  readonly #shim: Shim
  readonly #api: VmmApi
  #guest: Socket | undefined
  #hasEnded = false
  /** Its state was saved since it last ran. */
  #isSaved = false
  /** Settles when it runs again; absent while it runs, as far as is known here. */
  #pause: PromiseWithResolvers<void> | undefined

  constructor(handle: VmHandle, origin: Vm['origin'], shim: Shim) {
    this.handle = handle
    this.origin = origin
    this.#shim = shim
    this.#api = apiOf(handle.runDir)
    this.exited = shim.ended
    this.diskHotplug = new FirecrackerDiskHotplug(shim, this.#api)
    if (origin === 'restore') {
      this.#pause = Promise.withResolvers()
      this.#isSaved = true
    }
    void shim.ended.then(() => {
      this.#hasEnded = true
      this.#guest?.destroy()
      this.#pause?.resolve()
    })
  }

  async pause(step: Step): Promise<void> {
    this.#pause ??= Promise.withResolvers()
    if (await this.#isRunning(step)) {
      this.#isSaved = false
      await this.#api.ask(stateRequest('Paused'), step)
    }
    await this.#quiesce(step)
  }

  /**
   * Its devices go on while its processors stand still, and what they still do must be done before a state is saved: the memory is read
   * after it. Each question is answered in turn with their work, so behind the second one nothing is left of what was there at the first,
   * and nothing new comes by its network.
   */
  async #quiesce(step: Step): Promise<void> {
    if (this.#hasTap) await this.#shim.shutTap(step)
    this.#guest?.destroy()
    this.#guest = undefined
    for (let turn = 0; turn < 2; turn++) await this.#api.ask(describeRequest, step)
  }

  async resume(step: Step): Promise<void> {
    // One that runs must not be told to: each time its vsock waits for its guest to have seen a reset.
    if (!(await this.#isRunning(step))) {
      // That reset comes with a saved state alone: without it no one could reach the guest any more (firecracker#6100).
      if (!this.#isSaved) await this.#saveState(step)
      await this.#api.ask(stateRequest('Resumed'), step)
    }
    if (this.#hasTap) await this.#shim.openTap(step)
    this.#pause?.resolve()
    this.#pause = undefined
  }

  /** Of one that was found: a daemon may have died before it had opened its network again, or while it stood still. */
  async takeUp(step: Step): Promise<void> {
    if (!(await this.#isRunning(step))) this.#pause ??= Promise.withResolvers()
    else if (this.#hasTap) await this.#shim.openTap(step)
  }

  get #hasTap(): boolean {
    return this.handle.machine?.facts.network === 'tap'
  }

  async capture(into: string, step: Step): Promise<CaptureUnderWay> {
    const { machine } = this.handle
    if (machine === undefined) throw new AppError('internal_error', 'Nothing is known of the memory of this VM')
    await this.#saveState(step)
    return captureMemory(this.#shim, machine, into, step)
  }

  preparePivot(role: DiskRole): Promise<Pivot> {
    return Promise.reject(new AppError('not_supported', `The disk ${role} cannot be changed under a Firecracker that runs`))
  }

  flatten(role: DiskRole): Promise<readonly string[]> {
    return Promise.reject(new AppError('not_supported', `The disk ${role} of a Firecracker is one file`))
  }

  async requestShutdown(step: Step): Promise<void> {
    await this.#api.ask(shutdownRequest, step)
  }

  async kill(): Promise<VmExit> {
    const exit = await this.#shim.kill()
    // A shim that was itself killed leaves them. The exit record stays for who asks later.
    const { runDir } = this.handle
    await Promise.all([removeOwnDir(runDir), rm(path.join(runDir, 'shim.sock'), { force: true })])
    return exit
  }

  async connectGuest(step: Step): Promise<Duplex> {
    this.#guest?.destroy()
    await this.#running(step)
    const connect = () => connectToAgent(this.handle.runDir, () => this.#hasEnded, step)
    if (this.#takesTooEarly) (await connect()).destroy()
    this.#guest = await connect()
    return this.#guest
  }

  /**
   * Its vsock hands a connection to a guest that has been woken and not seen yet that all were reset: it takes the connection, and then drops it
   * with the others. Once one was taken the guest has seen it. 1.16 waits for that.
   */
  get #takesTooEarly(): boolean {
    return String(this.handle.machine?.facts.vmm).startsWith('Firecracker 1.15.')
  }

  /** Who connects to one that is paused is told nothing, and would have to give up. */
  async #running(step: Step): Promise<void> {
    if (this.#pause === undefined) return
    const { promise, reject } = Promise.withResolvers<never>()
    const giveUp = () => reject(new AppError('guest_unavailable', 'The VM is paused', { cause: step.signal.reason }))
    if (step.signal.aborted) giveUp()
    else step.signal.addEventListener('abort', giveUp, { once: true })
    try {
      await Promise.race([this.#pause.promise, promise])
    } finally {
      step.signal.removeEventListener('abort', giveUp)
    }
  }

  async setPorts(ports: readonly PortForward[]): Promise<void> {
    if (ports.length > 0) throw new AppError('not_supported', 'The instance has no network to publish ports of')
  }

  async inbound(): Promise<Inbound> {
    return { active: 0 }
  }

  /** Its TAP is not the driver's affair. */
  async setBandwidth(_bandwidth: Bandwidth): Promise<void> {}

  setDiskRate(): Promise<void> {
    return Promise.reject(new AppError('not_supported', 'A disk that Firecracker holds back goes on while its VM is paused'))
  }

  setHotplug(): Promise<void> {
    return Promise.reject(new AppError('not_supported', 'Memory cannot be added to a Firecracker whose memory has layers'))
  }

  async hotplugBytes(): Promise<number> {
    return 0
  }

  async usage(): Promise<VmUsage | undefined> {
    return vmmUsage(this.handle.vmm)
  }

  async #isRunning(step: Step): Promise<boolean> {
    const answer = await this.#api.ask(describeRequest, step)
    return typeof answer === 'object' && answer !== null && 'state' in answer && answer.state === 'Running'
  }

  /** Every connection of the guest is cut by it, also when it runs on: it is told so then. */
  async #saveState(step: Step): Promise<void> {
    await this.#quiesce(step)
    await saveState(this.#api, step)
    await this.#shim.cutStreams(step)
    this.#isSaved = true
  }
}

/** Throws when it was not written as a whole. */
async function saveState(api: VmmApi, step: Step): Promise<void> {
  try {
    await api.ask(saveStateRequest(), step)
  } catch (error) {
    if (error instanceof VmmRefusal && isSaved(error.message)) return
    throw error
  }
  throw new AppError('internal_error', 'Firecracker has written memory to where none could be written')
}
