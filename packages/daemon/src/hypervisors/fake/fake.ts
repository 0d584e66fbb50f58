/**
 * A driver without a VMM: it keeps the whole contract, down to what outlives the daemon, and carries `npm run dev` and the fast
 * tests. Its machines live in a `FakeHost`, which stands for the host: a daemon that ends leaves them there, the next one finds
 * them again. Faults are injected by the name of the call.
 */
import { access, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { AppError } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import type { Step } from '../../lib/step.ts'
import type { Hypervisor, HypervisorProbe, SnapshotFiles, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import type { VmSpec } from '../vm-spec.ts'
import { FakeMachine, FakeVm } from './fake-vm.ts'

/** Calls that can be made to fail, or to hang until their step's limit. */
export type FaultPoint = 'start' | 'start_late' | 'reconnect' | 'connect_guest' | 'request_shutdown' | 'kill' | 'set_ports' | 'sweep'
export type Fault = 'fail' | 'hang'

/** What a host holds: machines and the ports they have open. Outlives drivers and daemons of this process. */
export class FakeHost {
  readonly machines = new Map<string, FakeMachine>()
  /** What must never happen and did: two machines on one disk, one directory, one port. */
  readonly violations: string[] = []
  /** Connections to guests are taken and never answered. */
  muteGuests = false
  readonly #faults = new Map<FaultPoint, Fault>()

  /** The next call of `point` fails or hangs, once. */
  injectFault(point: FaultPoint, fault: Fault = 'fail'): void {
    this.#faults.set(point, fault)
  }

  clearFaults(): void {
    this.#faults.clear()
  }

  /** Passes, or does what was injected. */
  async reach(point: FaultPoint, step?: Pick<Step, 'signal'>): Promise<void> {
    const fault = this.#faults.get(point)
    if (fault === undefined) return
    this.#faults.delete(point)
    if (fault === 'hang' && step !== undefined) await aborted(step.signal)
    throw new Error(`Injected fault at ${point}`)
  }

  /** Every machine that runs. */
  running(): FakeMachine[] {
    return [...this.machines.values()].filter(({ exit }) => exit === undefined)
  }
}

export const FAKE_EXIT_RECORD = 'exit.json'

export class FakeHypervisor implements Hypervisor {
  readonly name = 'fake'
  readonly capabilities: ReadonlySet<Capability> = new Set()
  readonly #host: FakeHost

  constructor(host: FakeHost = new FakeHost()) {
    this.#host = host
  }

  async probe(): Promise<HypervisorProbe> {
    return { available: true, version: 'fake', acceleration: 'tcg', reason: 'it runs no machine: it is for development' }
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    await this.#host.reach('start', step)
    step.signal.throwIfAborted()
    if (this.#host.machines.get(spec.runDir)?.exit === undefined && this.#host.machines.has(spec.runDir)) {
      throw new AppError('conflict', `A machine still runs in ${spec.runDir}`)
    }
    const rival = this.#host.running().find((machine) => shareDisk(machine.spec, spec))
    if (rival) this.#host.violations.push(`${spec.id} was started while ${rival.spec.id} runs on the same disk`)
    for (const { path } of spec.disks) await access(path)
    await rm(spec.runDir, { recursive: true, force: true })
    await mkdir(spec.runDir, { mode: 0o711 })
    const machine = new FakeMachine(spec, this.#host)
    try {
      machine.openPorts(spec.nic?.ports ?? [])
      await machine.boot()
      this.#host.machines.set(spec.runDir, machine)
      await this.#host.reach('start_late', step)
    } catch (error) {
      await machine.end({ kind: 'signaled', signal: 'SIGKILL', atMs: Date.now() })
      await this.#remove(spec.runDir)
      throw error
    }
    return new FakeVm(machine, 'boot', this.#host)
  }

  async restore(_spec: VmSpec, _files: SnapshotFiles, _step: Step): Promise<Vm> {
    throw new AppError('not_supported', 'The fake hypervisor cannot restore')
  }

  async reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined> {
    await this.#host.reach('reconnect', step)
    const machine = this.#host.machines.get(handle.runDir)
    if (!machine || machine.exit !== undefined || !isDeepStrictEqual(machine.handle, handle)) return undefined
    return new FakeVm(machine, 'adopted', this.#host)
  }

  async lastExit(runDir: string): Promise<VmExit | undefined> {
    try {
      return JSON.parse(await readFile(join(runDir, FAKE_EXIT_RECORD), 'utf8')) as VmExit
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

/** Writes the exit where `lastExit` of the next daemon finds it, unless the directory is gone. */
export const writeExitRecord = (runDir: string, exit: VmExit): Promise<void> =>
  writeFile(join(runDir, FAKE_EXIT_RECORD), JSON.stringify(exit)).catch(() => undefined)

const shareDisk = (a: VmSpec, b: VmSpec): boolean => {
  const writable = ({ disks }: VmSpec) => disks.filter(({ readOnly }) => !readOnly).map(({ path }) => path)
  return writable(a).some((path) => writable(b).includes(path))
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}
