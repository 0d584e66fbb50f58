import { access, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import { DELTA, describeState, STATE, writeManifest } from '../../memory/capture-files.ts'
import type {
  Bandwidth,
  Capture,
  CaptureUnderWay,
  DiskHotplug,
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
import type { DiskRole, DiskSpec } from '../vm-spec.ts'
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

  async pause(step: Step): Promise<void> {
    await this.#host.reach('pause', step)
    this.#machine.pause()
  }

  async resume(step: Step): Promise<void> {
    await this.#host.reach('resume', step)
    this.#machine.resume()
  }

  async capture(into: string, step: Step): Promise<CaptureUnderWay> {
    // Who waits for an answer of a VM that ends is hung up on.
    const ended = this.#machine.exited.then(() => Promise.reject(new Error('The VM has ended')))
    await Promise.race([this.#host.reach('capture', step), ended])
    if (!this.#machine.isPaused) this.#host.violations.push(`${this.#machine.spec.id} was captured while it ran`)
    const state = JSON.stringify(this.#machine.guest.snapshot())
    const stored = this.#store(into, state, step)
    stored.catch(() => undefined)
    return { bytes: state.length, stored }
  }

  async #store(into: string, text: string, step: Step): Promise<Capture> {
    await this.#host.reach('store', step)
    const { machine } = this.#machine.handle
    if (machine === undefined) throw new Error('A fake machine has a record')
    await writeFile(join(into, STATE), text)
    const { base, baseSum, memoryBytes, facts } = machine
    const createdAt = new Date().toISOString()
    const bytes = this.#host.deltaBytes
    if (bytes > 0) await writeFile(join(into, DELTA), text)
    const delta = bytes > 0 ? { delta: { bytes, pages: Math.ceil(bytes / 4096), sum: '0'.repeat(16) } } : {}
    await writeManifest(into, { version: 1, facts, memoryBytes, base, baseSum, state: await describeState(into), ...delta, createdAt })
    return { dir: into, base }
  }

  async preparePivot(role: DiskRole, layer: { readonly path: string }, step: Step): Promise<Pivot> {
    const machine = this.#machine
    await this.#host.reach('prepare_pivot', step)
    const chain = (): readonly string[] => machine.chains.get(role) ?? []
    if (chain().length === 0) throw new AppError('not_found', `The VM has no disk ${role}`)
    await access(layer.path)
    return {
      commit: async (step) => {
        await this.#host.reach('commit_pivot', step)
        if (!machine.isPaused) this.#host.violations.push(`a disk of ${machine.spec.id} was pivoted while it ran`)
        if (chain()[0] !== layer.path) machine.chains.set(role, [layer.path, ...chain()])
      },
      discard: async () => chain()[0] !== layer.path,
    }
  }

  async flatten(role: DiskRole, step: Step): Promise<readonly string[]> {
    await this.#host.reach('flatten', step)
    const chain = this.#machine.chains.get(role) ?? []
    const left = [...chain.slice(0, 1), ...chain.slice(1).slice(-1)]
    this.#machine.chains.set(role, left)
    return left.map((path) => basename(path))
  }

  get diskHotplug(): DiskHotplug {
    const { chains } = this.#machine
    return {
      insertDisk: async ({ role, path, backing = [] }: DiskSpec, step) => {
        await this.#host.reach('insert_disk', step)
        chains.set(role, [path, ...backing.map((layer) => layer.path)])
        for (const layer of chains.get(role) ?? []) await access(layer)
      },
      ejectDisk: async (role, step) => {
        await this.#host.reach('eject_disk', step)
        if (this.#machine.guest.mounts.has(role)) this.#host.violations.push(`${role} was taken from a guest that has it mounted`)
        chains.delete(role)
      },
      growDisk: async (role, bytes, step) => {
        await this.#host.reach('grow_disk', step)
        this.#machine.sizes.set(role, bytes)
      },
    }
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

  async setBandwidth(bandwidth: Bandwidth, step: Step): Promise<void> {
    await this.#host.reach('set_bandwidth', step)
    this.#machine.bandwidth = bandwidth
  }

  async inbound(_ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    await this.#host.reach('inbound', step)
    return this.#machine.inbound
  }

  async setDiskRate(bytesPerSecond: number | undefined, step: Step): Promise<void> {
    await this.#host.reach('set_disk_rate', step)
    this.#machine.diskIoBps = bytesPerSecond
    this.#machine.budgeted = new Set(this.#machine.chains.keys())
  }

  async setHotplug(bytes: number, evacuate: Evacuate, step: Step): Promise<void> {
    await this.#host.reach('set_hotplug', step)
    const less = (this.#machine.hotplugBytes ?? 0) - bytes
    if (less > 0) await evacuate({ address: 2 ** 32, bytes: less }, step)
    if (this.#machine.hotplugBytes === undefined && bytes > 0)
      throw new AppError('invalid_state', 'It was started without room for more memory')
    if (this.#machine.hotplugBytes !== undefined) this.#machine.hotplugBytes = bytes
  }

  async hotplugBytes(): Promise<number> {
    return this.#machine.hotplugBytes ?? 0
  }

  async usage(): Promise<VmUsage | undefined> {
    if (this.#machine.exit !== undefined) return undefined
    const seconds = (Date.now() - this.#machine.handle.startedAtMs) / 1000
    const bytes = this.#machine.spec.memoryMib * 2 ** 20
    const memory = { memoryRssBytes: Math.floor(bytes / 4), memoryVmsBytes: bytes, memoryPrivateBytes: this.#machine.privateBytes }
    return { cpuSeconds: seconds / 100, ...memory, networkRxBytes: 0, networkTxBytes: 0 }
  }
}
