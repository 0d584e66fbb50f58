import { appendFileSync } from 'node:fs'
import { type Duplex, duplexPair } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { FakeGuest } from '../../guest/fake-guest.ts'
import { readBootId } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import type { PortForward, SnapshotFiles, Vm, VmExit, VmHandle, VmUsage } from '../hypervisor.ts'
import type { VmSpec } from '../vm-spec.ts'
import { type FakeHost, writeExitRecord } from './fake.ts'

let lastTick = 0

/** What runs: a guest, its open ports, its exit. Belongs to the host, not to a driver. */
export class FakeMachine {
  readonly spec: VmSpec
  readonly handle: VmHandle
  readonly exited: Promise<VmExit>
  readonly guest: FakeGuest
  ports: readonly PortForward[] = []
  exit: VmExit | undefined
  isPaused = false
  /** Both ends: that of the daemon is not told when the other is destroyed. */
  #line: readonly Duplex[] = []
  readonly #host: FakeHost
  readonly #settle: (exit: VmExit) => void
  #ending: Promise<void> | undefined

  constructor(spec: VmSpec, host: FakeHost) {
    this.spec = spec
    this.#host = host
    const identity = { pid: process.pid, startTicks: `fake-${++lastTick}` }
    this.handle = { hypervisor: 'fake', runDir: spec.runDir, shim: identity, vmm: identity, bootId: readBootId(), startedAtMs: Date.now() }
    const { promise, resolve } = Promise.withResolvers<VmExit>()
    this.exited = promise
    this.#settle = resolve
    this.guest = new FakeGuest({
      onJournal: (fact) => this.#write(spec.logs.journal, `${JSON.stringify(fact)}\n`),
      onLog: (text) => this.#write(spec.logs.app, text),
      onPowerOff: () => void this.end({ kind: 'exited', code: 0, atMs: Date.now() }),
    })
  }

  get runDir(): string {
    return this.spec.runDir
  }

  async boot(): Promise<void> {
    this.#write(this.spec.logs.vmm, `fake machine ${this.spec.id} is up\n`)
  }

  /** Throws `port_in_use`, leaving its ports as they were. */
  openPorts(ports: readonly PortForward[]): void {
    for (const machine of this.#host.running()) {
      if (machine === this) continue
      const taken = ports.find((port) =>
        machine.ports.some((other) => other.protocol === port.protocol && other.hostPort === port.hostPort),
      )
      if (taken) throw new AppError('port_in_use', `The host port ${taken.hostPort} is open already`)
    }
    this.ports = ports
  }

  connect(): Duplex {
    if (this.exit !== undefined) throw new AppError('guest_unavailable', 'The machine is gone')
    this.hangUp()
    const [ours, theirs] = duplexPair()
    this.#line = [ours, theirs]
    if (!this.#host.muteGuests) this.guest.attach(theirs)
    return ours
  }

  /** The line to the guest is cut. The machine goes on. */
  hangUp(): void {
    for (const end of this.#line) end.destroy()
    this.#line = []
  }

  /** The machine is gone, its exit on record. Repeat is harmless: the first way it ended stays. */
  end(exit: VmExit): Promise<void> {
    this.#ending ??= this.#end(exit)
    return this.#ending
  }

  async #end(exit: VmExit): Promise<void> {
    this.exit = exit
    this.ports = []
    this.guest.crash()
    this.hangUp()
    await writeExitRecord(this.runDir, exit)
    this.#settle(exit)
  }

  #write(file: string, text: string): void {
    try {
      appendFileSync(file, text)
    } catch {
      // Its instance's directory is gone; a shim would have held the file open.
    }
  }
}

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

  async capture(_into: string, _step: Step): Promise<SnapshotFiles> {
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
