/**
 * QEMU behind the driver contract, one driver for each board.
 *
 *   start ─► golden boot at hand? ─yes─► shim + QEMU on its base ─► load device state ─► runs, parked, drivers not loaded yet
 *                    └─no, or a fresh boot is wanted─► shim + QEMU ─► boots to the same parked point
 */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { copyFile, type FileHandle, mkdir, open, readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import type { Logger } from 'pino'
import { measureTscKhz, readHostFacts } from '../../host/host-facts.ts'
import { isAlive, killProcess, readBootId } from '../../host/process-identity.ts'
import { runCommand } from '../../host/run-command.ts'
import { connectTo } from '../../host/unix-socket.ts'
import type { Step } from '../../lib/step.ts'
import type { GoldenBoot, GoldenShape, Memory } from '../../memory/memory.ts'
import { assertPortsFree } from '../assert-ports-free.ts'
import { findShims } from '../find-shims.ts'
import type { Hypervisor, HypervisorName, HypervisorProbe, SnapshotFiles, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import { NETWORK_SOCKET, NetworkHelper, portWord } from '../network-helper.ts'
import { type Descriptor, readExit, Shim, type ShimPlan } from '../shim.ts'
import type { VmSpec } from '../vm-spec.ts'
import { type Acceleration, decideAcceleration } from './acceleration.ts'
import { type Board, MICROVM, Q35 } from './boards.ts'
import {
  commandLine,
  cpuModel,
  type Entry,
  FD,
  kernelCommandLine,
  type Machine,
  SAVE_FILE,
  STATE_URI,
  type Wiring,
} from './command-line.ts'
import { AGENT_SOCKET, QemuVm, QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'

export interface QemuUses {
  readonly memory: Memory
  readonly log: Logger
  readonly shimPath: string
  readonly networkHelperPath: string
  readonly kernelPath: string
  readonly initrdPath: string
  /** Where golden boots and the KVM probe run while they are made, each in a directory of its own. */
  readonly workDir: string
  /** Where the answer of the KVM probe is kept. */
  readonly probeFile: string
  /** Whom golden boots run as; absent when the daemon is not root. */
  readonly goldenUser?: { readonly uid: number; readonly gid: number }
  /** Resolves when the guest behind a fresh stream says that it is parked. */
  readonly awaitParked: (stream: Duplex, step: Step) => Promise<void>
  /** A switch for those who want a kernel address layout of its own for every VM. */
  readonly goldenBoots?: boolean
  /** For tests. */
  readonly kvmDevice?: string
}

/** `qemu` (q35) and `qemu-microvm`, sharing what they find out about the host. */
export function createQemuDrivers(uses: QemuUses): QemuHypervisor[] {
  const host = new QemuHost(uses)
  return [new QemuHypervisor(Q35, uses, host), new QemuHypervisor(MICROVM, uses, host)]
}

interface HostAnswers {
  readonly version: string
  readonly acceleration: Acceleration
  readonly tscKhz: number
  readonly kernelHash: string
  readonly initrdHash: string
}

/** What is asked of the host once and then known. A failure is not kept: what was missing may be installed. */
class QemuHost {
  readonly #uses: QemuUses
  #answers: Promise<HostAnswers> | undefined

  constructor(uses: QemuUses) {
    this.#uses = uses
  }

  answers(): Promise<HostAnswers> {
    this.#answers ??= this.#ask().catch((error) => {
      this.#answers = undefined
      throw error
    })
    return this.#answers
  }

  async #ask(): Promise<HostAnswers> {
    const uses = this.#uses
    // Many may wait for it, so it runs under a limit of its own.
    const step = { signal: AbortSignal.timeout(60_000), log: uses.log }
    const [version, tscKhz, kernelHash, initrdHash] = await Promise.all([
      readVersion(step),
      measureTscKhz(uses.shimPath, step),
      hashFile(uses.kernelPath),
      hashFile(uses.initrdPath),
    ])
    const { kernel, cpuModel: cpu } = readHostFacts()
    const answers = { version, tscKhz, kernelHash, initrdHash }
    const acceleration = await decideAcceleration(
      {
        device: uses.kvmDevice ?? '/dev/kvm',
        file: uses.probeFile,
        facts: { kernel, cpu, version, guestKernel: kernelHash, initrd: initrdHash },
        tryBoot: (groups, step) => tryKvm(uses, { ...answers, acceleration: { kind: 'kvm', groups } }, step),
        ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
      },
      step,
    )
    uses.log.info({ version, acceleration: acceleration.kind, reason: acceleration.reason }, 'QEMU is ready')
    return { ...answers, acceleration }
  }
}

export class QemuHypervisor implements Hypervisor {
  readonly name: HypervisorName
  readonly capabilities: ReadonlySet<Capability> = new Set(['pause'])
  readonly #board: Board
  readonly #uses: QemuUses
  readonly #host: QemuHost

  constructor(board: Board, uses: QemuUses, host: QemuHost) {
    this.name = board.hypervisor
    this.#board = board
    this.#uses = uses
    this.#host = host
  }

  async probe(_step: Step): Promise<HypervisorProbe> {
    try {
      const { version, acceleration } = await this.#host.answers()
      const probe = { available: true, version, acceleration: acceleration.kind }
      return acceleration.reason === undefined ? probe : { ...probe, reason: acceleration.reason }
    } catch (error) {
      return { available: false, reason: error instanceof Error ? error.message : String(error) }
    }
  }

  /** True for a golden boot that this host would not make again; for Memory's sweep. */
  async isStale(facts: GoldenShape['facts']): Promise<boolean> {
    const now = shapeOf(this.#machine(await this.#host.answers(), 1, 1), await this.#host.answers()).facts
    return facts.board === now.board && Object.entries(now).some(([name, value]) => name !== 'vcpus' && facts[name] !== value)
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    const ports = spec.nic?.ports ?? []
    await assertPortsFree(ports)
    const host = await this.#host.answers()
    const machine = this.#machine(host, spec.vcpus, spec.memoryMib)
    using golden = spec.freshBoot || this.#uses.goldenBoots === false ? undefined : await this.#golden(machine, host, step)

    await using undo = new AsyncDisposableStack()
    await makeRunDir(spec.runDir)
    undo.defer(() => rm(spec.runDir, { recursive: true, force: true }))
    const shim = await Shim.launch(this.#plan(spec, machine, host, golden), step)
    undo.defer(() => void shim[Symbol.dispose]())
    undo.defer(async () => void (await shim.kill()))
    try {
      using qmp = await Qmp.connect(path.join(spec.runDir, QMP_SOCKET), step)
      if (golden !== undefined) {
        await qmp.execute('migrate-incoming', { uri: STATE_URI }, step)
        // Not only loaded: it runs.
        await qmp.event('RESUME', step)
      }
      const handle = {
        hypervisor: this.name,
        runDir: spec.runDir,
        shim: shim.identity,
        vmm: shim.vmm,
        bootId: readBootId(),
        startedAtMs: Date.now(),
      }
      const vm = new QemuVm(handle, golden === undefined ? 'boot' : 'golden', shim, networkOf(spec.runDir, spec.nic !== undefined))
      undo.move()
      return vm
    } catch (cause) {
      if (errorCodeOf(cause) === 'timed_out') throw cause
      await Promise.race([shim.ended, sleep(1000, undefined, { ref: false })])
      throw new AppError('internal_error', `QEMU did not start the machine: ${await lastLine(spec.logs.vmm)}`, {
        cause,
        hint: 'The VMM log says more: dormouse logs --source vmm',
      })
    }
  }

  restore(_spec: VmSpec, _files: SnapshotFiles, _step: Step): Promise<Vm> {
    return Promise.reject(new AppError('not_supported', 'This hypervisor cannot restore a machine yet'))
  }

  async reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined> {
    if (handle.bootId !== readBootId()) return undefined
    const shim = await Shim.adopt(handle.runDir, handle.shim, handle.vmm, step)
    if (shim === undefined) return undefined
    const hasNetwork = await readdir(handle.runDir).then((names) => names.includes(NETWORK_SOCKET))
    return new QemuVm(handle, 'adopted', shim, networkOf(handle.runDir, hasNetwork))
  }

  lastExit(runDir: string): Promise<VmExit | undefined> {
    return readExit(runDir)
  }

  async sweep(runDir: string): Promise<void> {
    const limit = { signal: AbortSignal.timeout(10_000) }
    // The VMM and the network helper die with their shim.
    for (const shim of await findShims(runDir)) if (isAlive(shim)) await killProcess(shim, limit)
    await rm(runDir, { recursive: true, force: true })
  }

  #machine(host: HostAnswers, vcpus: number, memoryMib: number): Machine {
    const { kernelPath, initrdPath } = this.#uses
    return { board: this.#board, acceleration: host.acceleration.kind, vcpus, memoryMib, kernelPath, initrdPath, tscKhz: host.tscKhz }
  }

  async #golden(machine: Machine, host: HostAnswers, step: Step): Promise<GoldenBoot | undefined> {
    try {
      return await this.#uses.memory.goldenBoot(
        shapeOf(machine, host),
        (memory, file, own) => captureGolden(this.#uses, machine, host, memory, file, own),
        step,
      )
    } catch (error) {
      if (step.signal.aborted) throw error
      step.log.warn({ err: error }, 'no golden boot could be made, booting from the start')
      return undefined
    }
  }

  #plan(spec: VmSpec, machine: Machine, host: HostAnswers, golden: GoldenBoot | undefined): ShimPlan {
    const entry: Entry = golden === undefined ? 'boot' : 'wake'
    const { app, vmm, journal, maxBytes } = spec.logs
    const wiring: Wiring = { id: spec.id, entry, disks: spec.disks, ...(spec.nic === undefined ? {} : { nic: { mac: spec.nic.mac } }) }
    return {
      shimPath: this.#uses.shimPath,
      runDir: spec.runDir,
      ...(spec.user === undefined ? {} : { user: spec.user }),
      groups: host.acceleration.groups,
      logs: [
        { name: 'app', file: app, maxBytes },
        { name: 'vmm', file: vmm, maxBytes },
        { name: 'journal', file: journal, maxBytes: Math.min(maxBytes, JOURNAL_BYTES), isCapped: true },
      ],
      isolateNetwork: true,
      vmm: {
        argv: commandLine(machine, wiring),
        descriptors: [
          ...COMMON_DESCRIPTORS,
          { number: FD.SAVE, kind: 'blank' },
          ...(golden === undefined
            ? []
            : [
                { number: FD.MEMORY, kind: 'daemon', fd: golden.base.fd } as const,
                { number: FD.STATE, kind: 'read', file: golden.stateFile } as const,
              ]),
          ...(spec.nic === undefined ? [] : [{ number: FD.NIC, kind: 'pair', name: 'nic' } as const]),
          ...spec.disks.map(
            (disk, index): Descriptor => ({ number: FD.DISKS + index, kind: disk.readOnly ? 'read' : 'write', file: disk.path }),
          ),
        ],
      },
      ...(spec.nic === undefined ? {} : { helper: this.#networkHelper(spec.nic.ports.map(portWord)) }),
    }
  }

  #networkHelper(ports: readonly string[]): ShimPlan['helper'] {
    return {
      argv: [this.#uses.networkHelperPath, ...ports],
      descriptors: [
        { number: NET_FD.NIC, kind: 'pair', name: 'nic' },
        { number: NET_FD.CONTROL, kind: 'listen', name: NETWORK_SOCKET },
        { number: NET_FD.PORTS, kind: 'blank' },
      ],
    }
  }
}

/** The descriptors that shim/net.c expects. */
const NET_FD = { NIC: 3, CONTROL: 4, PORTS: 5 } as const
/** A journal has a handful of lines; a guest that writes more is not believed anyway. */
const JOURNAL_BYTES = 256 * 1024

const COMMON_DESCRIPTORS: readonly Descriptor[] = [
  { number: FD.QMP, kind: 'listen', name: QMP_SOCKET },
  { number: FD.AGENT, kind: 'listen', name: AGENT_SOCKET },
  { number: FD.APP, kind: 'log', name: 'app' },
  { number: FD.JOURNAL, kind: 'log', name: 'journal' },
  { number: FD.CONSOLE, kind: 'log', name: 'vmm' },
]

const networkOf = (runDir: string, hasNetwork: boolean): NetworkHelper | undefined => (hasNetwork ? new NetworkHelper(runDir) : undefined)

/** A run directory is one VM's. What a dead one left is cleared away; a living one is never started over. */
async function makeRunDir(runDir: string): Promise<void> {
  if ((await findShims(runDir)).length > 0) throw new AppError('conflict', `A machine still runs in ${runDir}`)
  await rm(runDir, { recursive: true, force: true })
  await mkdir(runDir, { recursive: true, mode: 0o700 })
}

/** All that a state and a memory must find again when they are woken. */
function shapeOf(machine: Machine, host: HostAnswers): GoldenShape {
  const { kernel, cpuModel: cpu } = readHostFacts()
  const { board, acceleration } = machine
  return {
    memoryBytes: machine.memoryMib * 2 ** 20,
    facts: {
      vmm: host.version,
      board: board.machine,
      machine: board.machineOptions.join(','),
      devices: JSON.stringify([board.devices, board.diskSlots, board.place(0)]),
      acceleration,
      cpu: acceleration === 'kvm' ? `${cpuModel(acceleration)} ${cpu} on ${kernel}` : cpuModel(acceleration),
      vcpus: machine.vcpus,
      kernel: host.kernelHash,
      initrd: host.initrdHash,
      // To a whole MHz: two measurements of one processor never agree to the last digit.
      append: kernelCommandLine({ acceleration, tscKhz: Math.round(machine.tscKhz / 1000) * 1000 }),
    },
  }
}

/** Boots a machine with every slot empty and no network until it is parked, and takes its device state. */
async function captureGolden(
  uses: QemuUses,
  machine: Machine,
  host: HostAnswers,
  memory: FileHandle,
  stateFile: string,
  step: Step,
): Promise<void> {
  await withParked(uses, machine, host.acceleration.groups, { entry: 'capture', memory }, step, async (shim, qmp) => {
    await qmp.execute('stop', undefined, step)
    // Without live:false it lets go of the disks, and cannot be called again.
    await qmp.execute('xen-save-devices-state', { filename: SAVE_FILE, live: false }, step)
    await copyFile(`/proc/${shim.identity.pid}/fd/${shim.blankFd}`, stateFile)
  })
}

const tryKvm = (uses: QemuUses, host: HostAnswers, step: Step): Promise<void> =>
  withParked(
    uses,
    {
      board: Q35,
      acceleration: 'kvm',
      vcpus: 1,
      memoryMib: 256,
      kernelPath: uses.kernelPath,
      initrdPath: uses.initrdPath,
      tscKhz: host.tscKhz,
    },
    host.acceleration.groups,
    { entry: 'boot' },
    step,
    async () => undefined,
  )

/** Runs a machine of ours, not an instance's, up to its parked point, does `work` there and ends it, whatever happens. */
async function withParked(
  uses: QemuUses,
  machine: Machine,
  groups: readonly number[],
  how: { entry: 'boot' } | { entry: 'capture'; memory: FileHandle },
  step: Step,
  work: (shim: Shim, qmp: Qmp) => Promise<void>,
): Promise<void> {
  const id = `golden-${createHash('sha256').update(`${performance.now()}`).digest('hex').slice(0, 8)}`
  const runDir = path.join(uses.workDir, id)
  const log = path.join(uses.workDir, `${id}.log`)
  await using undo = new AsyncDisposableStack()
  await mkdir(uses.workDir, { recursive: true, mode: 0o711 })
  await makeRunDir(runDir)
  undo.defer(() => Promise.all([runDir, log, `${log}.1`].map((name) => rm(name, { recursive: true, force: true }))).then(() => undefined))
  const plan: ShimPlan = {
    shimPath: uses.shimPath,
    runDir,
    ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
    groups,
    logs: (['app', 'vmm', 'journal'] as const).map((name) => ({ name, file: log, maxBytes: 1 << 20 })),
    isolateNetwork: true,
    vmm: {
      argv: commandLine(machine, { id, entry: how.entry, disks: [] }),
      descriptors: [
        ...COMMON_DESCRIPTORS,
        { number: FD.SAVE, kind: 'blank' },
        ...(how.entry === 'capture' ? [{ number: FD.MEMORY, kind: 'daemon', fd: how.memory.fd } as const] : []),
      ],
    },
  }
  const shim = await Shim.launch(plan, step)
  undo.defer(() => void shim[Symbol.dispose]())
  undo.defer(async () => void (await shim.kill()))
  const ended = shim.ended.then(async (): Promise<never> => {
    throw new AppError('internal_error', `The machine ended before it was parked: ${await lastLine(log)}`)
  })
  ended.catch(() => undefined)
  const working = parkAndWork(runDir, shim, uses, step, work).catch(async (error): Promise<never> => {
    // A connection that broke is how an end is first seen; how it ended says more.
    if (errorCodeOf(error) === 'guest_unavailable') await Promise.race([ended, sleep(1000, undefined, { ref: false })])
    throw error
  })
  await Promise.race([working, ended])
}

async function parkAndWork(
  runDir: string,
  shim: Shim,
  uses: QemuUses,
  step: Step,
  work: (shim: Shim, qmp: Qmp) => Promise<void>,
): Promise<void> {
  using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
  const stream = await connectTo(path.join(runDir, AGENT_SOCKET), step)
  try {
    await uses.awaitParked(stream, step)
    await work(shim, qmp)
  } finally {
    stream.destroy()
  }
}

async function lastLine(file: string): Promise<string> {
  try {
    await using handle = await open(file, 'r')
    const { size } = await handle.stat()
    const buffer = Buffer.alloc(Math.min(size, 2000))
    await handle.read(buffer, 0, buffer.length, size - buffer.length)
    return buffer.toString('utf8').trim().split('\n').at(-1)?.trim() || 'it said nothing'
  } catch {
    return 'it left no log'
  }
}

async function readVersion(step: Step): Promise<string> {
  const { stdout } = await runCommand(['qemu-system-x86_64', '--version'], { step })
  return /version (\S+(?: \([^)]*\))?)/.exec(stdout)?.[1] ?? stdout.split('\n', 1)[0] ?? 'unknown'
}

async function hashFile(file: string): Promise<string> {
  const hash = createHash('sha256')
  try {
    await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash)
  } catch (cause) {
    throw new AppError('dependency_missing', `The guest's ${path.basename(file)} cannot be read`, {
      hint: 'Run scripts/setup.sh, or see: dormouse doctor',
      cause,
    })
  }
  return hash.digest('hex')
}
