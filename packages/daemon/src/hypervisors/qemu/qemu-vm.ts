import { rm } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { usageOf } from '../../host/process-identity.ts'
import { connectTo } from '../../host/unix-socket.ts'
import type { Step } from '../../lib/step.ts'
import type { CaptureUnderWay, PortForward, Vm, VmExit, VmHandle, VmUsage } from '../hypervisor.ts'
import type { NetworkHelper } from '../network-helper.ts'
import type { Shim } from '../shim.ts'
import { Qmp } from './qmp.ts'

export const QMP_SOCKET = 'qmp.sock'
export const AGENT_SOCKET = 'agent.sock'

/** One VM under its shim. */
export class QemuVm implements Vm {
  readonly handle: VmHandle
  readonly origin: Vm['origin']
  readonly exited: Promise<VmExit>
  readonly #shim: Shim
  readonly #network: NetworkHelper | undefined
  #guest: Socket | undefined

  constructor(handle: VmHandle, origin: Vm['origin'], shim: Shim, network: NetworkHelper | undefined) {
    this.handle = handle
    this.origin = origin
    this.#shim = shim
    this.#network = network
    this.exited = shim.ended
    void shim.ended.then(() => this.#guest?.destroy())
  }

  async pause(step: Step): Promise<void> {
    await this.#execute('stop', step)
  }

  async resume(step: Step): Promise<void> {
    await this.#execute('cont', step)
  }

  async capture(_into: string, _step: Step): Promise<CaptureUnderWay> {
    throw new AppError('not_supported', 'This hypervisor cannot capture a running VM yet')
  }

  async requestShutdown(step: Step): Promise<void> {
    await this.#execute('system_powerdown', step)
  }

  async kill(): Promise<VmExit> {
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

  async usage(): Promise<VmUsage | undefined> {
    const used = usageOf(this.handle.vmm)
    if (used === undefined) return undefined
    const traffic = await this.#network?.traffic()
    return {
      cpuSeconds: used.cpuSeconds,
      memoryRssBytes: used.rssBytes,
      memoryVmsBytes: used.vmsBytes,
      networkRxBytes: traffic?.toGuestBytes ?? 0,
      networkTxBytes: traffic?.fromGuestBytes ?? 0,
    }
  }

  /** QEMU serves one control connection at a time, so none is kept: whoever adopts the VM next must not wait for us. */
  async #execute(command: string, step: Step): Promise<unknown> {
    using qmp = await Qmp.connect(path.join(this.handle.runDir, QMP_SOCKET), step)
    return await qmp.execute(command, undefined, step)
  }
}
