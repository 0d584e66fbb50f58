/**
 * A driver without a VMM: it keeps the whole contract, down to what outlives the daemon, and carries `npm run dev` and the fast
 * tests. Its machines live in a `FakeHost`, which stands for the host: a daemon that ends leaves them there, the next one finds
 * them again. Faults are injected by the name of the call.
 */
import { access, mkdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { AppError } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import type { FakeGuestState } from '../../guest/fake-guest.ts'
import type { Step } from '../../lib/step.ts'
import { checkState, DELTA, readManifest, STATE } from '../../memory/capture-files.ts'
import type { Capture, Hypervisor, HypervisorName, HypervisorProbe, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import type { VmSpec } from '../vm-spec.ts'
import { EXIT_RECORD, FakeHost, FakeMachine, type FakeOrigin } from './fake-host.ts'
import { FakeVm } from './fake-vm.ts'

export { FakeHost, type FaultPoint } from './fake-host.ts'

export interface FakeManners {
  /** What it cannot do, as some drivers cannot. */
  readonly lacks?: readonly Capability[]
  /** Of several on one host each has its own. */
  readonly name?: HypervisorName
  readonly mostVcpus?: number
}

export class FakeHypervisor implements Hypervisor {
  readonly name: HypervisorName
  readonly capabilities: ReadonlySet<Capability>
  readonly volumeSlots = 3
  readonly mostVcpus?: number
  readonly #host: FakeHost

  constructor(host: FakeHost = new FakeHost(), { lacks = [], name = 'fake', mostVcpus }: FakeManners = {}) {
    if (mostVcpus !== undefined) this.mostVcpus = mostVcpus
    this.name = name
    this.#host = host
    this.capabilities = new Set(ALL.filter((one) => !lacks.includes(one)))
  }

  async probe(): Promise<HypervisorProbe> {
    return { available: true, version: 'fake', acceleration: 'tcg', reason: 'it runs no VM: it is for development' }
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    await this.#host.reach('start', step)
    return this.#run(spec, step)
  }

  async restore(spec: VmSpec, capture: Capture, step: Step): Promise<Vm> {
    await this.#host.reach('restore', step)
    await this.assertFits(spec, capture)
    const manifest = await readManifest(capture.dir)
    if (manifest.delta !== undefined) await access(join(capture.dir, DELTA))
    const guest = JSON.parse(await readFile(join(capture.dir, STATE), 'utf8')) as FakeGuestState
    return this.#run(spec, step, {
      name: `${manifest.createdAt} ${manifest.state.sha256}`,
      disk: spec.disks.find(({ readOnly }) => !readOnly)?.path ?? '',
      guest,
      on: { base: capture.base, baseSum: manifest.baseSum },
    })
  }

  async assertFits(_spec: VmSpec, capture: Capture): Promise<void> {
    await checkState(capture.dir, await readManifest(capture.dir))
  }

  async #run(spec: VmSpec, step: Step, origin?: FakeOrigin): Promise<Vm> {
    step.signal.throwIfAborted()
    if (this.#host.machines.get(spec.runDir)?.exit === undefined && this.#host.machines.has(spec.runDir)) {
      throw new AppError('conflict', `A VM still runs in ${spec.runDir}`)
    }
    const machine = new FakeMachine(spec, this.#host, origin)
    const isChain = spec.disks.some(({ format, backing = [] }) => format !== 'raw' || backing.length > 0)
    if (isChain && !this.capabilities.has('disk_layers'))
      this.#host.violations.push(`${spec.id} was started with layers that it cannot have`)
    const rival = this.#host.running().find((other) => getInEachOthersWay(other, machine))
    if (rival) this.#host.violations.push(`${spec.id} was started while ${rival.spec.id} runs on the same disk`)
    await Promise.all([...machine.chains.values()].flat().map((path) => access(path)))
    await mkdir(spec.runDir, { mode: 0o711 }).catch(async () => {
      await rm(spec.runDir, { recursive: true, force: true })
      await mkdir(spec.runDir, { mode: 0o711 })
    })
    try {
      machine.openPorts(spec.nic?.backend === 'user' ? spec.nic.ports : [])
      await machine.boot()
      this.#host.machines.set(spec.runDir, machine)
      await this.#host.reach('start_late', step)
    } catch (error) {
      await machine.end({ kind: 'signaled', signal: 'SIGKILL', atMs: Date.now() })
      await this.#remove(spec.runDir)
      throw error
    }
    return new FakeVm(machine, origin === undefined ? 'boot' : 'restore', this.#host)
  }

  async reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined> {
    await this.#host.reach('reconnect', step)
    const machine = this.#host.machines.get(handle.runDir)
    if (!machine || machine.exit !== undefined || !isDeepStrictEqual(machine.handle, handle)) return undefined
    return new FakeVm(machine, 'adopted', this.#host)
  }

  async lastExit(runDir: string): Promise<VmExit | undefined> {
    try {
      return JSON.parse(await readFile(join(runDir, EXIT_RECORD), 'utf8')) as VmExit
    } catch {
      return undefined
    }
  }

  async sweep(runDir: string): Promise<void> {
    await this.#host.reach('sweep')
    await this.#host.machines.get(runDir)?.end({ kind: 'signaled', signal: 'SIGKILL', atMs: Date.now() })
    await this.#remove(runDir)
  }

  async #remove(runDir: string): Promise<void> {
    this.#host.machines.delete(runDir)
    await rm(runDir, { recursive: true, force: true })
  }
}

/** One writes what the other reads or writes. */
const getInEachOthersWay = (a: FakeMachine, b: FakeMachine): boolean => {
  const layers = ({ chains }: FakeMachine) => [...chains.values()].flat()
  return a.tops.some((path) => layers(b).includes(path)) || b.tops.some((path) => layers(a).includes(path))
}

const ALL: readonly Capability[] = [
  'pause',
  'standby',
  'fork',
  'snapshots',
  'disk_hotplug',
  'disk_limit',
  'disk_limit_live',
  'disk_layers',
  'fresh_boot',
  'memory_hotplug',
  'gpu',
]
