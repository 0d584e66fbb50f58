/**
 * QEMU behind the driver contract, one driver for each board.
 *
 *   start ─► golden boot at hand? ─yes─► shim + QEMU on its base ─► load device state ─► runs, parked, drivers bound to empty slots
 *                    └─no, or a fresh boot is wanted─► shim + QEMU ─► boots to the same parked point
 */
import { readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import { killFamily, readBootId } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import type { GoldenBoot, GoldenShape } from '../../memory/memory.ts'
import { assertPortsFree } from '../assert-ports-free.ts'
import { findShims } from '../find-shims.ts'
import type { Capture, Hypervisor, HypervisorName, HypervisorProbe, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import { NETWORK_SOCKET, NetworkHelper, portWord } from '../network-helper.ts'
import { type Descriptor, readExit, Shim, type ShimPlan } from '../shim.ts'
import type { VmSpec } from '../vm-spec.ts'
import { type Board, MICROVM, Q35 } from './boards.ts'
import { commandLine, type Entry, FD, type Machine, STATE_URI, type Wiring } from './command-line.ts'
import { shapeOf } from './golden-shape.ts'
import { logTail, wordsOf } from './log-tail.ts'
import { COMMON_DESCRIPTORS, captureGolden, makeRunDir } from './parked-machine.ts'
import { type HostAnswers, QemuHost, type QemuUses } from './qemu-host.ts'
import { QemuVm, QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'

export type { QemuUses } from './qemu-host.ts'

/** `qemu` (q35) and `qemu-microvm`, sharing what they find out about the host. */
export function createQemuDrivers(uses: QemuUses): QemuHypervisor[] {
  const host = new QemuHost(uses)
  return [new QemuHypervisor(Q35, uses, host), new QemuHypervisor(MICROVM, uses, host)]
}

/**
 * Finds out about the host before the first start has to wait for it, and drops golden boots that no start will ask for again. Only
 * for the daemon that holds the data directory. Never rejects.
 */
export async function dropStaleGoldenBoots(
  drivers: readonly QemuHypervisor[],
  { memory, log }: Pick<QemuUses, 'memory' | 'log'>,
): Promise<void> {
  try {
    await memory.sweep(async (facts) => {
      for (const driver of drivers) if (await driver.isStale(facts)) return true
      return false
    })
  } catch (error) {
    // A probe or a start will say it to someone who can do something about it.
    log.debug({ err: error }, 'old golden boots were not looked through')
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

  /** True for a golden boot of this board that would be made differently now. */
  async isStale(facts: GoldenShape['facts']): Promise<boolean> {
    const host = await this.#host.answers()
    const now = shapeOf(this.#machine(host, { vcpus: 1, memoryMib: 1 }), host).facts
    return facts.board === now.board && Object.entries(now).some(([name, value]) => name !== 'vcpus' && facts[name] !== value)
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    const ports = spec.nic?.ports ?? []
    await assertPortsFree(ports)
    const host = await this.#host.answers()
    const machine = this.#machine(host, spec)
    using golden = spec.freshBoot || this.#uses.goldenBoots === false ? undefined : await this.#golden(machine, host, step)
    try {
      return await this.#run(spec, machine, host, golden, step)
    } catch (error) {
      if (golden === undefined || step.signal.aborted || !(error instanceof WakeFailed)) throw error
      step.log.warn({ err: error, golden: golden.key }, 'a golden boot could not be woken, booting from the start')
      const vm = await this.#run(spec, machine, host, undefined, step)
      // The VM runs without it, so it was to blame and not this VM's disks: no later start shall trip over it.
      await golden.discard()
      return vm
    }
  }

  async #run(spec: VmSpec, machine: Machine, host: HostAnswers, golden: GoldenBoot | undefined, step: Step): Promise<Vm> {
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
    } catch (cause) {
      if (errorCodeOf(cause) === 'timed_out') throw cause
      await Promise.race([shim.ended, sleep(1000, undefined, { ref: false })])
      // The log goes with an instance that could not be made, so the error takes its end along.
      const { last, detail } = wordsOf(await logTail(spec.logs.vmm))
      const message = `QEMU did not start the VM: ${last}`
      throw golden === undefined ? new AppError('internal_error', message, { cause, detail }) : new WakeFailed(message, { cause })
    }
    const handle = {
      hypervisor: this.name,
      runDir: spec.runDir,
      shim: shim.identity,
      vmm: shim.vmm,
      bootId: readBootId(),
      startedAtMs: Date.now(),
    }
    undo.move()
    return new QemuVm(handle, golden === undefined ? 'boot' : 'golden', shim, networkOf(spec.runDir, spec.nic !== undefined))
  }

  restore(_spec: VmSpec, _capture: Capture, _step: Step): Promise<Vm> {
    return Promise.reject(new AppError('not_supported', 'This hypervisor cannot restore a VM yet'))
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
    for (const shim of await findShims(runDir)) await killFamily(shim, limit)
    await rm(runDir, { recursive: true, force: true })
  }

  #machine(host: HostAnswers, { vcpus, memoryMib }: Pick<VmSpec, 'vcpus' | 'memoryMib'>): Machine {
    const { kernelPath, initrdPath } = this.#uses
    return {
      board: this.#board,
      acceleration: host.acceleration.kind,
      vcpus,
      memoryMib,
      kernelPath,
      initrdPath,
      tscKhz: host.tscKhz,
    }
  }

  async #golden(machine: Machine, host: HostAnswers, step: Step): Promise<GoldenBoot | undefined> {
    try {
      return await this.#uses.memory.goldenBoot(
        shapeOf(machine, host),
        (memory, file, own) => captureGolden(this.#uses, machine, host.acceleration.groups, memory, file, own),
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
      argv: [this.#uses.networkHelperPath, ...(this.#uses.allowHostAccess ? ['--open-host'] : []), ...ports],
      descriptors: [
        { number: NET_FD.NIC, kind: 'pair', name: 'nic' },
        { number: NET_FD.CONTROL, kind: 'listen', name: NETWORK_SOCKET },
        { number: NET_FD.PORTS, kind: 'blank' },
      ],
    }
  }
}

/** A VM that did not come out of its golden boot. Never leaves this file. */
class WakeFailed extends Error {
  override readonly name = 'WakeFailed'
}

/** The descriptors that shim/net.c expects. */
const NET_FD = { NIC: 3, CONTROL: 4, PORTS: 5 } as const
/** A journal has a handful of lines; a guest that writes more is not believed anyway. */
const JOURNAL_BYTES = 256 * 1024

const networkOf = (runDir: string, hasNetwork: boolean): NetworkHelper | undefined => (hasNetwork ? new NetworkHelper(runDir) : undefined)
