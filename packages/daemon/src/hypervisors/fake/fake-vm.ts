import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import type { CaptureUnderWay, PortForward, Vm, VmExit, VmHandle, VmUsage } from '../hypervisor.ts'
import type { FakeHost, FakeMachine } from './fake-host.ts'

/** A machine as one daemon holds it. */
export class FakeVm implements Vm {
  readonly origin: Vm['origin']
  readonly #machine: FakeMachine
  readonly #host: FakeHost

  constructor(machine: FakeMachine, origin: Vm['origin'], host: FakeHost) {
    this.#machine = machine
    this.#host = host
    this.origin = origin
  }

  get handle(): VmHandle {
    return this.#machine.handle
  }
  get exited(): Promise<VmExit> {
    return this.#machine.exited
  }

  async pause(): Promise<void> {
    this.#machine.isPaused = true
  }

  async resume(): Promise<void> {
    this.#machine.isPaused = false
  }

  async capture(_into: string, _step: Step): Promise<CaptureUnderWay> {
    throw new AppError('not_supported', 'The fake hypervisor cannot capture')
  }

  async requestShutdown(step: Step): Promise<void> {
    await this.#host.reach('request_shutdown', step)
    this.#machine.guest.powerButton()
  }

  async kill(): Promise<VmExit> {
    await this.#host.reach('kill')
    await this.#machine.end({ kind: 'signaled', signal: 'SIGKILL', atMs: Date.now() })
    return this.#machine.exited
  }

  async connectGuest(step: Step): Promise<Duplex> {
    await this.#host.reach('connect_guest', step)
    return this.#machine.connect()
  }

  async setPorts(ports: readonly PortForward[], step: Step): Promise<void> {
    await this.#host.reach('set_ports', step)
    this.#machine.openPorts(ports)
  }

  async usage(): Promise<VmUsage | undefined> {
    if (this.#machine.exit !== undefined) return undefined
    const seconds = (Date.now() - this.#machine.handle.startedAtMs) / 1000
    const bytes = this.#machine.spec.memoryMib * 2 ** 20
    return { cpuSeconds: seconds / 100, memoryRssBytes: Math.floor(bytes / 4), memoryVmsBytes: bytes, networkRxBytes: 0, networkTxBytes: 0 }
  }
}
