/**
 * QEMU behind the driver contract, one driver for each board.
 *
 *   start ─► golden boot at hand? ─yes─► shim + QEMU on its base ─► load device state ─► runs, parked, drivers bound to empty slots
 *                    └─no, or a fresh boot is wanted─► shim + QEMU ─► boots to the same parked point
 */
import { randomBytes } from 'node:crypto'
import { mkdir, readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import { assertPortsFree } from '../../host/assert-ports-free.ts'
import { readBootId, usageOf, usersOfProcesses } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import { type CaptureManifest, checkState, DELTA, dimmFile, readManifest, STATE } from '../../memory/capture-files.ts'
import type { GoldenBoot, GoldenShape, HeldBase } from '../../memory/memory.ts'
import { loadDelta } from '../captured-memory.ts'
import type { Capture, Hypervisor, HypervisorName, HypervisorProbe, MachineRecord, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import { logTail, wordsOf } from '../log-tail.ts'
import { NETWORK_SOCKET, NetworkHelper, portWord, rateWords } from '../network-helper.ts'
import { makeRunDir, sweepRunDir } from '../run-dir.ts'
import { type Descriptor, readExit, Shim, type ShimPlan } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import type { DiskSpec, NicSpec, UserNicSpec, VmSpec } from '../vm-spec.ts'
import { type Board, MICROVM, Q35 } from './boards.ts'
import { commandLine, FD, type Machine, STATE_URI, type Wiring } from './command-line.ts'
import { assertSane, bytesOf, DIMM_ROOM_MIB, type Dimm, dimmFd } from './dimms.ts'
import { diskDescriptors, FIXED_SLOTS } from './disk-nodes.ts'
import { captureFactsOf, shapeOf, unfitness } from './golden-shape.ts'
import { COMMON_DESCRIPTORS, captureGolden, vhostDescriptors } from './parked-machine.ts'
import type { Kind } from './pool.ts'
import { canPrepareFor, loadDevices, PreparedMachine, preparedKey } from './prepared-machine.ts'
import { type HostAnswers, QemuHost, type QemuUses } from './qemu-host.ts'
import { type AddedMemoryUses, QemuVm, QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'
import { canRehearseFor, RehearsedMachine } from './rehearsed-machine.ts'
import { throttle } from './throttle.ts'
import { type OwnCgroup, type WaitingMachine, type WaitingUses, waitingNic } from './waiting-machine.ts'

export { Pool } from './pool.ts'
export type { PoolPlace, QemuUses } from './qemu-host.ts'
export type { WaitingMachine } from './waiting-machine.ts'

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
  { isStale }: { readonly isStale: (facts: GoldenShape['facts']) => Promise<boolean> },
  { memory, log }: Pick<QemuUses, 'memory' | 'log'>,
): Promise<void> {
  try {
    await memory.sweepGoldenBoots(isStale)
  } catch (error) {
    // A probe or a start will say it to someone who can do something about it.
    log.debug({ err: error }, 'old golden boots were not looked through')
  }
}

export class QemuHypervisor implements Hypervisor {
  readonly name: HypervisorName
  readonly capabilities: ReadonlySet<Capability>
  readonly volumeSlots: number
  readonly #board: Board
  readonly #uses: QemuUses
  readonly #host: QemuHost

  constructor(board: Board, uses: QemuUses, host: QemuHost) {
    this.name = board.hypervisor
    this.volumeSlots = board.diskSlots - FIXED_SLOTS
    this.#board = board
    this.capabilities = new Set([
      'pause',
      'standby',
      'fork',
      'snapshots',
      'disk_hotplug',
      'disk_limit',
      'disk_layers',
      'fresh_boot',
      ...(board.takesDimms ? (['memory_hotplug'] as const) : []),
      ...(board.portPlace === undefined ? [] : (['gpu'] as const)),
    ])
    this.#uses = uses
    this.#host = host
  }

  async probe(_step: Step): Promise<HypervisorProbe> {
    try {
      const { version, acceleration, outOfReach } = await this.#host.answers()
      const memory = outOfReach === undefined ? {} : { memoryOutOfReach: outOfReach }
      const probe = { available: true, version, acceleration: acceleration.kind, ...memory }
      return acceleration.reason === undefined ? probe : { ...probe, reason: acceleration.reason }
    } catch (error) {
      return { available: false, reason: error instanceof Error ? error.message : String(error) }
    }
  }

  /** True for a golden boot of this board that would be made differently now. */
  async isStale(facts: GoldenShape['facts']): Promise<boolean> {
    const host = await this.#host.answers()
    const now = shapeOf(
      this.#machine(host, { vcpus: 1, memoryMib: 1, hasTap: facts.network === 'tap' }, facts.hotplug !== undefined),
      host,
    ).facts
    const names = Object.keys({ ...facts, ...now })
    return facts.board === now.board && names.some((name) => name !== 'vcpus' && facts[name] !== now[name])
  }

  get waiting(): number {
    return this.#uses.pool?.machines.count((machine) => machine.handle.hypervisor === this.name) ?? 0
  }

  waitingBytes(): number {
    const own = this.#uses.pool?.machines.map(({ handle }) => usageOf(handle.vmm)?.privateBytes ?? 0) ?? []
    return own.reduce((sum, bytes) => sum + bytes, 0)
  }

  async releaseWaiting(untilMs: number | undefined): Promise<number> {
    const machines = this.#uses.pool?.machines
    if (machines === undefined) return 0
    const own = untilMs === undefined ? 0 : this.waitingBytes()
    await machines.release(untilMs)
    return own
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    await assertPortsFree(portsOf(spec))
    const host = await this.#host.answers()
    if (spec.hotplugMib !== undefined) assertInReach(host)
    const machine = this.#machine(host, likeOf(spec), spec.hotplugMib !== undefined)
    using _start = this.#uses.pool?.machines.start()
    using golden = bootsItself(spec) || this.#uses.goldenBoots === false ? undefined : await this.#golden(machine, host, step)
    const kind = golden !== undefined && canRehearseFor(spec) ? this.#startKind(spec, machine, host, golden) : undefined
    const waited = await this.#takeWaiting(kind, spec, step)
    if (waited !== undefined) return waited
    return await this.#withAdded(spec, await this.#wakeOrBoot(spec, machine, host, golden, step), step)
  }

  /** Added once it runs: a golden boot has none of it. */
  async #withAdded({ hotplugMib = 0 }: VmSpec, vm: QemuVm, step: Step): Promise<Vm> {
    if (hotplugMib === 0) return vm
    try {
      await vm.setHotplug(hotplugMib * 2 ** 20, async () => undefined, step)
      return vm
    } catch (error) {
      await vm.kill()
      throw error
    }
  }

  async #wakeOrBoot(spec: VmSpec, machine: Machine, host: HostAnswers, golden: GoldenBoot | undefined, step: Step): Promise<QemuVm> {
    try {
      return await (golden === undefined
        ? this.#boot(spec, machine, host, step)
        : this.#run(spec, machine, host, { entry: 'wake', golden }, step))
    } catch (error) {
      if (golden === undefined || step.signal.aborted || !(error instanceof WakeFailed)) throw error
      step.log.warn({ err: error, golden: golden.key }, 'a golden boot could not be woken, booting from the start')
      const vm = await this.#boot(spec, machine, host, step)
      // The VM runs without it, so it was to blame and not this VM's disks: no later start shall trip over it.
      await this.#uses.pool?.machines.forget(({ base }) => base === `golden/${golden.key}`)
      await golden.discard()
      return vm
    }
  }

  async restore(spec: VmSpec, capture: Capture, step: Step): Promise<Vm> {
    await assertPortsFree(portsOf(spec))
    if (spec.hostDevices !== undefined) throw new AppError('not_supported', 'What was in a device of the host is in no sleeping state')
    const { host, machine, manifest } = await this.#fitting(spec, capture)
    using _start = this.#uses.pool?.machines.start()
    const waited = await this.#takeWaiting(canPrepareFor(spec) ? this.#restoreKind(spec, capture) : undefined, spec, step)
    if (waited !== undefined) return waited
    using base = await this.#uses.memory.holdBase(capture, manifest.baseSum, step)
    return await this.#run(spec, machine, host, { entry: 'restore', capture, manifest, base }, step)
  }

  expectRestore(spec: VmSpec, capture: Capture): void {
    if (canPrepareFor(spec)) this.#uses.pool?.machines.expect(this.#restoreKind(spec, capture))
  }

  async unexpect(id: string): Promise<void> {
    await this.#uses.pool?.machines.forget(({ owner }) => owner === id)
  }

  async assertFits(spec: VmSpec, capture: Capture): Promise<void> {
    await this.#fitting(spec, capture)
  }

  /** The machine that the capture is woken on, once it is seen that it can be. */
  async #fitting(
    spec: VmSpec,
    { dir }: Pick<Capture, 'dir'>,
  ): Promise<{ readonly host: HostAnswers; readonly machine: Machine; readonly manifest: CaptureManifest }> {
    const host = await this.#host.answers()
    const manifest = await readManifest(dir)
    // A guest that came up without vhost may use what vhost does not offer.
    const vhost = manifest.facts.vhost !== undefined
    const machine = this.#machine(host, { ...likeOf(spec), vhost }, manifest.facts.hotplug !== undefined)
    const why =
      manifest.memoryBytes === machine.memoryMib * 2 ** 20
        ? unfitness(manifest.facts, captureFactsOf(machine, host, networkKindOf(spec)))
        : 'the instance has another size of memory now'
    if (why !== undefined) throw new AppError('snapshot_unusable', `The sleeping state cannot be woken here: ${why}`)
    await checkState(dir, manifest)
    const { dimms = [] } = manifest
    assertSane(dimms)
    if (dimms.length > 0) assertInReach(host)
    // It counts at admission, so a VM that was taken over may not have said so of itself.
    if (bytesOf(dimms) !== (spec.hotplugMib ?? 0) * 2 ** 20) {
      throw new AppError('snapshot_unusable', 'The sleeping state has another size of added memory than the instance')
    }
    return { host, machine, manifest }
  }

  async #boot(spec: VmSpec, machine: Machine, host: HostAnswers, step: Step): Promise<QemuVm> {
    using base = await this.#uses.memory.holdBase({ base: 'zero' }, ZERO_SUM, step)
    return await this.#run(spec, machine, host, { entry: 'boot', base }, step)
  }

  /** A VM that waited for just this; undefined when there is none, or when it could not become it. */
  async #takeWaiting(kind: Kind<WaitingMachine> | undefined, spec: VmSpec, step: Step): Promise<Vm | undefined> {
    const waiting = this.#uses.pool?.machines.take(kind)
    if (waiting === undefined) return undefined
    try {
      // One that hangs is not waited for as long as a start may take: another can still be woken.
      const limit = { ...step, signal: AbortSignal.any([step.signal, AbortSignal.timeout(BECOME_LIMIT_MS)]) }
      const handle = await waiting.become(spec, limit)
      return new QemuVm(handle, 'pool', waiting.shim, networkOf(spec.runDir, spec.nic?.backend === 'user'), this.#addedOf(handle))
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

  /** What is needed of a VM that waits to make it another. */
  #waitingUses(shim: Shim, runDir: string, machine: Machine, files: readonly string[]): WaitingUses {
    const cgroup = this.#ownCgroup(runDir, shim, machine)
    return { files, blockDevice: this.#board.blockDevice, ...(cgroup === undefined ? {} : { cgroup }) }
  }

  #startKind(spec: VmSpec, machine: Machine, host: HostAnswers, { key, sum }: GoldenBoot): Kind<WaitingMachine> {
    const { vcpus, memoryMib } = machine
    const modules = spec.disks[2]
    const { maxBytes } = spec.logs
    return {
      key: JSON.stringify([this.name, key, sum, modules?.path, maxBytes]),
      base: `golden/${key}`,
      memoryBytes: memoryMib * 2 ** 20,
      make: (step) => this.#makeRehearsed({ vcpus, memoryMib, modules, maxBytes }, machine, host, step),
    }
  }

  /** One for the sleeper of `spec`, and only for as long as it sleeps just so. */
  #restoreKind(spec: VmSpec, capture: Capture): Kind<WaitingMachine> {
    return {
      key: JSON.stringify([this.name, preparedKey(spec, capture)]),
      base: capture.base,
      owner: spec.id,
      memoryBytes: spec.memoryMib * 2 ** 20,
      make: (step) => this.#makePrepared(spec, capture, step),
    }
  }

  /** All of a restore that can be done before it is asked for. */
  async #makePrepared(spec: VmSpec, capture: Capture, step: Step): Promise<WaitingMachine> {
    const { host, machine, manifest } = await this.#fitting(spec, capture)
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
    const { shim, handle } = await this.#launch(waiting, machine, host, { entry: 'restore', capture, manifest, base, waits: true }, step)
    undo.move()
    return new PreparedMachine(shim, handle, this.#waitingUses(shim, runDir, machine, files))
  }

  async #placeToWait(): Promise<{ readonly id: string; readonly runDir: string; readonly log: string; readonly files: readonly string[] }> {
    const { pool } = this.#uses
    if (pool === undefined) throw new AppError('internal_error', 'There is no place for VMs to wait in')
    const id = randomBytes(6).toString('hex')
    const log = path.join(pool.dir, `${id}.log`)
    await mkdir(pool.dir, { recursive: true, mode: 0o711 })
    return { id, runDir: path.join(pool.dir, id), log, files: [log, `${log}.1`] }
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
    using golden = await this.#golden(machine, host, step)
    if (golden === undefined) throw new AppError('internal_error', 'There is no golden boot to wake')
    const { shim, handle } = await this.#launch(spec, machine, host, { entry: 'wake', golden, waits: true }, step)
    undo.defer(() => rm(spec.runDir, { recursive: true, force: true }))
    undo.defer(() => void shim[Symbol.dispose]())
    undo.defer(async () => void (await shim.kill()))
    const vm = new QemuVm(handle, 'golden', shim, undefined, this.#addedOf(handle))
    const connect = (): Promise<Duplex> => vm.connectGuest(step)
    const takeDisks = (): Promise<void> => RehearsedMachine.takeDisks(spec, step)
    await pool.rehearse({ connect, takeDisks, mac: WAITING_MAC, hasModules: modules !== undefined }, step)
    await RehearsedMachine.park(spec, step)
    await rm(overlay)
    undo.move()
    return new RehearsedMachine(shim, handle, this.#waitingUses(shim, runDir, machine, files))
  }

  async #run(spec: VmSpec, machine: Machine, host: HostAnswers, origin: Origin, step: Step): Promise<QemuVm> {
    const { shim, handle } = await this.#launch(spec, machine, host, origin, step)
    return new QemuVm(handle, ORIGINS[origin.entry], shim, networkOf(spec.runDir, spec.nic?.backend === 'user'), this.#addedOf(handle))
  }

  async #launch(
    spec: VmSpec,
    machine: Machine,
    host: HostAnswers,
    origin: Origin,
    step: Step,
  ): Promise<{ readonly shim: Shim; readonly handle: VmHandle }> {
    await using undo = new AsyncDisposableStack()
    await makeRunDir(spec.runDir)
    undo.defer(() => rm(spec.runDir, { recursive: true, force: true }))
    const { cgroups } = this.#uses
    const name = path.basename(spec.runDir)
    const addedMib = (spec.hotplugMib ?? 0) + machine.memoryMib
    const entered = await cgroups?.make(name, cgroupLimitsOf({ ...machine, memoryMib: addedMib }))
    undo.defer(() => cgroups?.remove(name))
    const shim = await Shim.launch({ ...this.#plan(spec, machine, host, origin), cgroups: entered ?? [] }, step)
    undo.defer(() => void shim[Symbol.dispose]())
    undo.defer(async () => void (await shim.kill()))
    try {
      using qmp = await Qmp.connect(path.join(spec.runDir, QMP_SOCKET), step)
      // A disk is not looked at before its guest is told to go, or runs on.
      if (spec.diskIoBps !== undefined) await throttle(qmp, blockDevicesOf(this.#board, spec.disks), spec.diskIoBps, step)
      if (origin.entry === 'wake') {
        await qmp.execute('migrate-incoming', { uri: STATE_URI }, step)
        // Not only loaded: it runs.
        await qmp.event('RESUME', step)
      }
      if (origin.entry === 'restore') {
        await loadMemory(shim, origin, step)
        if (!origin.waits) await loadDevices(qmp, step)
      }
    } catch (cause) {
      if (errorCodeOf(cause) === 'timed_out' || errorCodeOf(cause) === 'snapshot_unusable') throw cause
      await Promise.race([shim.ended, sleep(1000, undefined, { ref: false })])
      // The log goes with an instance that could not be made, so the error takes its end along.
      const { last, detail } = wordsOf(await logTail(spec.logs.vmm))
      const message = `QEMU did not start the VM: ${last}`
      throw origin.entry === 'wake' ? new WakeFailed(message, { cause }) : new AppError('internal_error', message, { cause, detail })
    }
    const handle = {
      hypervisor: this.name,
      runDir: spec.runDir,
      shim: shim.identity,
      vmm: shim.vmm,
      bootId: readBootId(),
      startedAtMs: Date.now(),
      machine: {
        ...baseOf(origin),
        memoryBytes: machine.memoryMib * 2 ** 20,
        facts: captureFactsOf(machine, host, networkKindOf(spec)),
      },
    }
    undo.move()
    return { shim, handle }
  }

  async reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined> {
    if (handle.bootId !== readBootId()) return undefined
    const shim = await Shim.adopt(handle.runDir, handle.shim, handle.vmm, step)
    if (shim === undefined) return undefined
    const hasNetwork = await readdir(handle.runDir).then((names) => names.includes(NETWORK_SOCKET))
    return new QemuVm(handle, 'adopted', shim, networkOf(handle.runDir, hasNetwork), this.#addedOf(handle))
  }

  lastExit(runDir: string): Promise<VmExit | undefined> {
    return readExit(runDir)
  }

  sweep(runDir: string): Promise<void> {
    return sweepRunDir(runDir, this.#uses.cgroups)
  }

  #addedOf({ runDir, machine }: VmHandle): AddedMemoryUses {
    return {
      dir: this.#uses.memory.scratchDir,
      limit: async (bytes) => {
        if (machine === undefined) return
        if (bytes > 0) assertInReach(await this.#host.answers())
        const { vcpus, acceleration } = machine.facts
        const limits = cgroupLimitsOf({
          vcpus: Number(vcpus),
          memoryMib: (machine.memoryBytes + bytes) / 2 ** 20,
          acceleration: acceleration === 'kvm' ? 'kvm' : 'tcg',
        })
        await this.#uses.cgroups?.make(path.basename(runDir), limits)
      },
    }
  }

  #machine(host: HostAnswers, { vcpus, memoryMib, hasTap, vhost = true }: Like, hotplug: boolean): Machine {
    if (hotplug && !this.#board.takesDimms)
      throw new AppError('not_supported', `Memory cannot be added to a VM of the hypervisor ${this.name}`, { hint: 'Use qemu' })
    const { kernelPath, initrdPath } = this.#uses
    return {
      board: this.#board,
      acceleration: host.acceleration.kind,
      vcpus,
      memoryMib,
      kernelPath,
      initrdPath,
      tscKhz: host.tscKhz,
      ...(hasTap ? { hasTap } : {}),
      ...(hasTap && vhost && host.vhost ? { vhost } : {}),
      ...(hotplug ? { hotplug } : {}),
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

  #plan(spec: VmSpec, machine: Machine, host: HostAnswers, origin: Origin): ShimPlan {
    const { app, vmm, journal, maxBytes } = spec.logs
    const waits = origin.entry !== 'boot' && origin.waits === true
    // Its disks are not the ones that it will have.
    const changesDisks = waits && origin.entry === 'wake'
    const wiring: Wiring = {
      id: spec.id,
      changesDisks,
      entry: origin.entry,
      ownsMemory: host.outOfReach !== undefined,
      disks: spec.disks,
      dimms: dimmsIn(origin),
      ...(spec.nic === undefined ? {} : { nic: { mac: spec.nic.mac } }),
      ...(spec.hostDevices === undefined ? {} : { hostDevices: spec.hostDevices }),
    }
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
      waits,
      isolateNetwork: true,
      ...(spec.hostDevices === undefined ? {} : { lockedBytes: lockedBytesOf(machine) }),
      memory: FD.MEMORY,
      copiesMemory: host.outOfReach !== undefined,
      vmm: {
        argv: commandLine(machine, wiring),
        descriptors: [
          ...COMMON_DESCRIPTORS,
          memoryOf(origin),
          ...dimmsIn(origin).map(({ slot }) => ({ number: dimmFd(slot), kind: 'scratch', file: this.#uses.memory.scratchDir }) as const),
          ...stateOf(origin),
          ...(changesDisks ? [{ number: FD.EMPTY, kind: 'blank' } as const] : []),
          // After all other blanks: the last one is the one that the shim names.
          { number: FD.SAVE, kind: 'blank' },
          ...nicDescriptors(spec.nic),
          ...vhostDescriptors(machine),
          ...diskDescriptors(spec.disks),
        ],
      },
      ...(spec.nic?.backend === 'user' ? { helper: this.#networkHelper(spec.nic) } : {}),
    }
  }

  #networkHelper({ ports, bandwidth }: UserNicSpec): ShimPlan['helper'] {
    return {
      argv: [
        this.#uses.networkHelperPath,
        ...(this.#uses.allowHostAccess ? ['--open-host'] : []),
        ...(bandwidth === undefined ? [] : ['--rates', rateWords(bandwidth)]),
        ...ports.map(portWord),
      ],
      descriptors: [
        { number: NET_FD.NIC, kind: 'pair', name: 'nic' },
        { number: NET_FD.CONTROL, kind: 'listen', name: NETWORK_SOCKET },
        { number: NET_FD.PORTS, kind: 'blank' },
      ],
    }
  }
}

/** What of a VM makes its machine; `vhost`: where the host has it. */
interface Like {
  readonly vcpus: number
  readonly memoryMib: number
  readonly hasTap: boolean
  readonly vhost?: boolean
}

const likeOf = ({ vcpus, memoryMib, nic }: VmSpec): Like => ({ vcpus, memoryMib, hasTap: nic?.backend === 'tap' })

/** Where a VM comes from: see `Entry`. */
type Origin =
  | { readonly entry: 'boot'; readonly base: HeldBase }
  | { readonly entry: 'wake'; readonly golden: GoldenBoot; readonly waits?: boolean }
  | {
      readonly entry: 'restore'
      readonly capture: Capture
      readonly manifest: CaptureManifest
      readonly base: HeldBase
      readonly waits?: boolean
    }

const ZERO_SUM = '0'.repeat(16)
const ORIGINS = { boot: 'boot', wake: 'golden', restore: 'restore' } as const

function baseOf(origin: Origin): Pick<MachineRecord, 'base' | 'baseSum'> {
  switch (origin.entry) {
    case 'boot':
      return { base: 'zero', baseSum: ZERO_SUM }
    case 'wake':
      return { base: `golden/${origin.golden.key}`, baseSum: origin.golden.sum }
    case 'restore':
      return { base: origin.capture.base, baseSum: origin.manifest.baseSum }
  }
}

function memoryOf(origin: Origin): Descriptor {
  const number = FD.MEMORY
  if (origin.entry === 'wake') return { number, kind: 'daemon', fd: origin.golden.base.fd }
  const { base } = origin
  if (base.kind === 'scratch') return { number, kind: 'scratch', file: base.dir }
  return base.kind === 'file' ? { number, kind: 'write', file: base.path } : { number, kind: 'daemon', fd: base.fd }
}

const dimmsIn = (origin: Origin): readonly Dimm[] => (origin.entry === 'restore' ? (origin.manifest.dimms ?? []) : [])

function stateOf(origin: Origin): Descriptor[] {
  if (origin.entry === 'boot') return []
  const file = origin.entry === 'wake' ? origin.golden.stateFile : path.join(origin.capture.dir, STATE)
  return [{ number: FD.STATE, kind: 'read', file }]
}

/** Checked while it is written, and before the devices. */
async function loadMemory(shim: Shim, { capture, manifest }: Extract<Origin, { entry: 'restore' }>, step: Step): Promise<void> {
  const { delta, dimms = [] } = manifest
  if (delta !== undefined) await loadDelta(shim, path.join(capture.dir, DELTA), delta, step)
  for (const [index, { slot, bytes, delta: own }] of dimms.entries())
    await loadDelta(shim, path.join(capture.dir, dimmFile(index)), own, step, { fd: dimmFd(slot), bytes })
}

const blockDevicesOf = (board: Board, disks: readonly DiskSpec[]): string[] => disks.map(({ role }) => board.blockDevice(role))

/** Where VMs may not be looked into, each maps a copy of its base that its shim has too. Of memory that comes later it has none. */
function assertInReach({ outOfReach }: HostAnswers): void {
  if (outOfReach === undefined) return
  throw new AppError('not_supported', `Memory cannot be added to VMs on this host: their memory is out of reach (${outOfReach})`, {
    hint: 'See what would mend it with: dormouse doctor',
  })
}

/**
 * With a kernel of its own, or with devices of the host: a golden boot was parked without them. Nor would it be of use then, as all of the
 * memory is made the VM's own as soon as a device may reach it (docs/decisions/0116).
 */
const bootsItself = ({ freshBoot, hostDevices }: VmSpec): boolean => freshBoot === true || hostDevices !== undefined

const LOCKED_SLACK_MIB = 1024

/** All of the guest's memory, what may be added to it, and the devices' own rings and tables. */
const lockedBytesOf = ({ memoryMib, hotplug }: Machine): number => (memoryMib + (hotplug ? DIMM_ROOM_MIB : 0) + LOCKED_SLACK_MIB) * 2 ** 20

const networkKindOf = (spec: VmSpec): 'user' | 'tap' | 'none' => spec.nic?.backend ?? 'none'

const portsOf = ({ nic }: VmSpec): UserNicSpec['ports'] => (nic?.backend === 'user' ? nic.ports : [])

function nicDescriptors(nic: NicSpec | undefined): Descriptor[] {
  if (nic === undefined) return []
  return [{ number: FD.NIC, ...(nic.backend === 'tap' ? { kind: 'tap', name: nic.tap } : { kind: 'pair', name: 'nic' }) }]
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

/** A VM that did not come out of its golden boot. Never leaves this file. */
class WakeFailed extends Error {
  override readonly name = 'WakeFailed'
}

/** The descriptors that shim/net.c expects. */
const NET_FD = { NIC: 3, CONTROL: 4, PORTS: 5 } as const
/** A journal has a handful of lines; a guest that writes more is not believed anyway. */
const JOURNAL_BYTES = 256 * 1024

const networkOf = (runDir: string, hasNetwork: boolean): NetworkHelper | undefined => (hasNetwork ? new NetworkHelper(runDir) : undefined)
