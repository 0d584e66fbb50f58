/**
 * The making of VMs that wait, each for a kind of start or for one sleeper, and their becoming an instance's VM. When one is made, and how
 * many, is the pool's to decide.
 *
 *     a start     a golden boot wakes for no one, its guest rehearses and is parked     RehearsedMachine
 *     a sleeper   its memory is loaded, its devices are not                             PreparedMachine
 */
import { randomBytes } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { usersOfProcesses } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import type { CaptureManifest } from '../../memory/capture-files.ts'
import type { GoldenBoot } from '../../memory/memory.ts'
import type { Capture, Vm, VmHandle } from '../hypervisor.ts'
import type { Shim } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import type { DiskSpec, VmSpec } from '../vm-spec.ts'
import type { Board } from './boards.ts'
import type { Machine } from './command-line.ts'
import { launch, networkOf } from './launch.ts'
import type { Kind } from './pool.ts'
import { PreparedMachine, preparedKey } from './prepared-machine.ts'
import type { HostAnswers, QemuUses } from './qemu-host.ts'
import { type AddedMemoryUses, QemuVm } from './qemu-vm.ts'
import { RehearsedMachine } from './rehearsed-machine.ts'
import { type OwnCgroup, type WaitingMachine, type WaitingUses, waitingNic } from './waiting-machine.ts'

/** What is asked of the driver that they are made for. */
export interface WaitingDriver {
  golden(machine: Machine, host: HostAnswers, step: Step): Promise<GoldenBoot | undefined>
  /** The machine that the capture is woken on. Throws `snapshot_unusable`. */
  fitting(spec: VmSpec, capture: Capture): Promise<Fitting>
  addedOf(handle: VmHandle): AddedMemoryUses
}

export interface Fitting {
  readonly host: HostAnswers
  readonly machine: Machine
  readonly manifest: CaptureManifest
}

export class WaitingMachines {
  readonly #board: Board
  readonly #uses: QemuUses
  readonly #driver: WaitingDriver

  constructor(board: Board, uses: QemuUses, driver: WaitingDriver) {
    this.#board = board
    this.#uses = uses
    this.#driver = driver
  }

  /** A VM that waited for just this; undefined when there is none, or when it could not become it. */
  async take(kind: Kind<WaitingMachine> | undefined, spec: VmSpec, step: Step): Promise<Vm | undefined> {
    const waiting = this.#uses.pool?.machines.take(kind)
    if (waiting === undefined) return undefined
    try {
      // One that hangs is not waited for as long as a start may take: another can still be woken.
      const limit = { ...step, signal: AbortSignal.any([step.signal, AbortSignal.timeout(BECOME_LIMIT_MS)]) }
      const handle = await waiting.become(spec, limit)
      return new QemuVm(handle, 'pool', waiting.shim, networkOf(spec.runDir, spec.nic?.backend === 'user'), this.#driver.addedOf(handle))
    } catch (error) {
      await waiting.end().catch((cause: unknown) => step.log.error({ err: cause }, 'a VM that waited could not be ended'))
      // Of a conflict the run directory is another VM's.
      const isOthers = errorCodeOf(error) === 'conflict'
      if (!isOthers) await this.#uses.cgroups?.remove(path.basename(spec.runDir))
      if (step.signal.aborted || isOthers || errorCodeOf(error) === 'port_in_use') throw error
      step.log.warn({ err: error }, 'a VM that waited could not be used, waking another')
      return undefined
    }
  }

  /** One for any start that is like that of `spec`. */
  startKind(spec: VmSpec, machine: Machine, host: HostAnswers, { key, sum }: GoldenBoot): Kind<WaitingMachine> {
    const { vcpus, memoryMib } = machine
    const modules = spec.disks[2]
    const { maxBytes } = spec.logs
    return {
      key: JSON.stringify([this.#board.hypervisor, key, sum, modules?.path, maxBytes]),
      base: `golden/${key}`,
      memoryBytes: memoryMib * 2 ** 20,
      make: (step) => this.#makeRehearsed({ vcpus, memoryMib, modules, maxBytes }, machine, host, step),
    }
  }

  /** One for the sleeper of `spec`, and only for as long as it sleeps just so. */
  restoreKind(spec: VmSpec, capture: Capture): Kind<WaitingMachine> {
    return {
      key: JSON.stringify([this.#board.hypervisor, preparedKey(spec, capture)]),
      base: capture.base,
      owner: spec.id,
      memoryBytes: spec.memoryMib * 2 ** 20,
      make: (step) => this.#makePrepared(spec, capture, step),
    }
  }

  /** All of a restore that can be done before it is asked for. */
  async #makePrepared(spec: VmSpec, capture: Capture, step: Step): Promise<WaitingMachine> {
    const { host, machine, manifest } = await this.#driver.fitting(spec, capture)
    const { runDir, log, files } = await this.#placeToWait()
    await using undo = new AsyncDisposableStack()
    undo.defer(async () => void (await Promise.all(files.map((name) => rm(name, { force: true })))))
    // The rate is that of its sleeper at the moment that it wakes.
    const { diskIoBps: _rate, ...alike } = spec
    const waiting: VmSpec = {
      ...alike,
      runDir,
      logs: { app: log, vmm: log, journal: log, maxBytes: spec.logs.maxBytes },
      ...(spec.nic === undefined ? {} : { nic: waitingNic(spec.nic.mac, spec.nic.backend) }),
    }
    using base = await this.#uses.memory.holdBase(capture, manifest.baseSum, step)
    const { shim, handle } = await launch(
      this.#uses,
      { spec: waiting, machine, host, origin: { entry: 'restore', capture, manifest, base, waits: true } },
      step,
    )
    undo.move()
    return new PreparedMachine(shim, handle, this.#waitingUses(shim, runDir, machine, files))
  }

  /** Wakes a golden boot for no one in particular, lets it rehearse and parks it. */
  async #makeRehearsed(
    like: Pick<VmSpec, 'vcpus' | 'memoryMib'> & { modules: DiskSpec | undefined; maxBytes: number },
    machine: Machine,
    host: HostAnswers,
    step: Step,
  ): Promise<WaitingMachine> {
    const { pool } = this.#uses
    if (pool === undefined) throw new AppError('internal_error', 'There is no place for VMs to wait in')
    const { vcpus, memoryMib, modules, maxBytes } = like
    const { id, runDir, log, files } = await this.#placeToWait()
    const overlay = path.join(pool.dir, `${id}.overlay`)
    await using undo = new AsyncDisposableStack()
    undo.defer(async () => void (await Promise.all([...files, overlay].map((name) => rm(name, { force: true })))))
    const user = pool.users === undefined ? undefined : await freeUser(pool.users)
    await pool.makeDisk(overlay, user, step)
    const spec: VmSpec = {
      id: `waiting-${id}`,
      runDir,
      vcpus,
      memoryMib,
      disks: [
        { role: 'rootfs', path: pool.image, format: 'raw', readOnly: true },
        { role: 'overlay', path: overlay, format: 'raw', readOnly: false },
        ...(modules === undefined ? [] : [modules]),
      ],
      nic: waitingNic(WAITING_MAC, machine.hasTap ? 'tap' : 'user'),
      logs: { app: log, vmm: log, journal: log, maxBytes },
      ...(user === undefined ? {} : { user }),
    }
    using golden = await this.#driver.golden(machine, host, step)
    if (golden === undefined) throw new AppError('internal_error', 'There is no golden boot to wake')
    const { shim, handle } = await launch(this.#uses, { spec, machine, host, origin: { entry: 'wake', golden, waits: true } }, step)
    undo.defer(() => rm(spec.runDir, { recursive: true, force: true }))
    undo.defer(() => void shim[Symbol.dispose]())
    undo.defer(async () => void (await shim.kill()))
    const vm = new QemuVm(handle, 'golden', shim, undefined, this.#driver.addedOf(handle))
    const connect = (): Promise<Duplex> => vm.connectGuest(step)
    const takeDisks = (): Promise<void> => RehearsedMachine.takeDisks(spec, step)
    await pool.rehearse({ connect, takeDisks, mac: WAITING_MAC, hasModules: modules !== undefined }, step)
    await RehearsedMachine.park(spec, step)
    await rm(overlay)
    undo.move()
    return new RehearsedMachine(shim, handle, this.#waitingUses(shim, runDir, machine, files))
  }

  async #placeToWait(): Promise<{ readonly id: string; readonly runDir: string; readonly log: string; readonly files: readonly string[] }> {
    const { pool } = this.#uses
    if (pool === undefined) throw new AppError('internal_error', 'There is no place for VMs to wait in')
    const id = randomBytes(6).toString('hex')
    const log = path.join(pool.dir, `${id}.log`)
    await mkdir(pool.dir, { recursive: true, mode: 0o711 })
    return { id, runDir: path.join(pool.dir, id), log, files: [log, `${log}.1`] }
  }

  /** What is needed of a VM that waits to make it another. */
  #waitingUses(shim: Shim, runDir: string, machine: Machine, files: readonly string[]): WaitingUses {
    const cgroup = this.#ownCgroup(runDir, shim, machine)
    return { files, blockDevice: this.#board.blockDevice, ...(cgroup === undefined ? {} : { cgroup }) }
  }

  /** The cgroup in which it waits, and from which it goes into that of the VM that it becomes. */
  #ownCgroup(runDir: string, shim: Shim, machine: Machine): OwnCgroup | undefined {
    const { cgroups } = this.#uses
    if (cgroups === undefined) return undefined
    const own = path.basename(runDir)
    return {
      leaveFor: async (other) => {
        const name = path.basename(other)
        await cgroups.make(name, cgroupLimitsOf(machine))
        // The helper may be started again by the shim meanwhile, so the shim goes first.
        await cgroups.move(name, [shim.identity.pid])
        await cgroups.move(name, await cgroups.members(own))
        await cgroups.remove(own)
      },
      remove: () => cgroups.remove(own),
    }
  }
}

/** A user that no process runs as. No two VMs are made to wait at once, so none is taken twice. */
async function freeUser({ base, count }: { base: number; count: number }): Promise<{ uid: number; gid: number }> {
  const taken = await usersOfProcesses()
  for (let uid = base; uid < base + count; uid++) if (!taken.has(uid)) return { uid, gid: uid }
  throw new AppError('insufficient_resources', 'Every user id for VMs that wait is taken')
}

/** It takes some 15 ms. */
const BECOME_LIMIT_MS = 5000

/** Golden boots keep the MAC that they were made with until a guest is told another. */
const WAITING_MAC = '02:64:6d:00:00:00'
