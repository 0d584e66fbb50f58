/**
 * Firecracker behind the driver contract. It runs with KVM alone, and every VM wakes from a golden boot:
 *
 *   start ─► golden boot ─► shim + Firecracker ─► loads the state over the base, mapped privately ─► disks looked at anew ─► runs, parked
 *
 * Only a machine whose memory was loaded has one that lies over a base, and only such a memory has layers.
 */
import { randomBytes } from 'node:crypto'
import { chown, copyFile, type FileHandle, mkdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import { pollUntil } from '../../host/poll-until.ts'
import { readBootId } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import { type CaptureManifest, checkState, DELTA, readManifest, STATE } from '../../memory/capture-files.ts'
import type { GoldenBoot, GoldenShape, HeldBase } from '../../memory/memory.ts'
import { loadDelta } from '../captured-memory.ts'
import type { Capture, Hypervisor, HypervisorProbe, MachineRecord, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import { type KvmAnswers, type KvmDriverUses, KvmHost } from '../kvm-host.ts'
import { logTail, wordsOf } from '../log-tail.ts'
import { OWN_DIR } from '../own-dir.ts'
import { makeRunDir, sweepRunDir } from '../run-dir.ts'
import { type Descriptor, readExit, Shim, type ShimPlan } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import { shimLogsOf } from '../vm-logs.ts'
import type { VmSpec } from '../vm-spec.ts'
import type { VmmApi } from '../vmm-api.ts'
import { connectToAgent, VSOCK_OWN_DIR } from '../vsock-guest.ts'
import { FIRECRACKER } from './firecracker-host.ts'
import { API_SOCKET, apiOf, FirecrackerVm } from './firecracker-vm.ts'
import { captureFactsOf, shapeOf, unfitness } from './golden-shape.ts'
import { LoadFailed, wakeGolden } from './golden-wake.ts'
import { disksBehindSlots, FD, type Machine, MOST_VCPUS, SLOTS, type Slot, VOLUME_SLOTS } from './machine.ts'
import { bootRequests, loadRequest, refreshDrive, saveAllRequest, stateRequest } from './requests.ts'

export class FirecrackerHypervisor implements Hypervisor {
  readonly name = 'firecracker'
  readonly versions = FIRECRACKER.versions
  readonly networks = new Set(['tap'] as const)
  readonly capabilities: ReadonlySet<Capability> = new Set(['pause', 'standby', 'fork', 'snapshots', 'disk_hotplug'])
  readonly volumeSlots = VOLUME_SLOTS
  readonly mostVcpus = MOST_VCPUS
  readonly #uses: KvmDriverUses
  readonly #host: KvmHost

  constructor(uses: KvmDriverUses) {
    this.#uses = uses
    this.#host = new KvmHost(FIRECRACKER, uses, (host, step) =>
      this.#withParked(this.#machine({ vcpus: 1, memoryMib: 256 }), host, undefined, step, async () => undefined),
    )
  }

  probe(_step: Step): Promise<HypervisorProbe> {
    return this.#host.probe()
  }

  async assertAvailable(_step: Step): Promise<void> {
    await this.#host.answers()
  }

  /** True for a golden boot of this driver that would be made differently now; false for all where nothing can be made. */
  async isStale(facts: GoldenShape['facts']): Promise<boolean> {
    if (!String(facts.vmm).startsWith('Firecracker ')) return false
    // Without a program none can be made, and those that there are may be of use again.
    const host = await this.#host.answers().catch(() => undefined)
    if (host === undefined) return false
    const now = shapeOf({ ...this.#machine({ vcpus: 1, memoryMib: 1 }), hasTap: facts.network === 'tap' }, host).facts
    return Object.entries(now).some(([name, value]) => name !== 'vcpus' && facts[name] !== value)
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    assertCan(spec)
    const host = await this.#host.answers()
    const machine = this.#machine(spec)
    return await wakeGolden(
      {
        golden: (again) => this.#golden(machine, host, step, again ? { again: 1 } : {}),
        wake: (golden) => this.#wake(spec, machine, host, golden, step),
      },
      step,
    )
  }

  async #wake(spec: VmSpec, machine: Machine, host: KvmAnswers, golden: GoldenBoot, step: Step): Promise<FirecrackerVm> {
    const { shim, handle } = await this.#launch(spec, machine, host, { entry: 'wake', golden }, step)
    return new FirecrackerVm(handle, 'golden', shim)
  }

  async restore(spec: VmSpec, capture: Capture, step: Step): Promise<Vm> {
    assertCan(spec)
    const { host, machine, manifest } = await this.#fitting(spec, capture)
    using base = await this.#uses.memory.holdBase(capture, manifest.baseSum, step)
    const { shim, handle } = await this.#launch(spec, machine, host, { entry: 'restore', capture, manifest, base }, step)
    return new FirecrackerVm(handle, 'restore', shim)
  }

  async assertFits(spec: VmSpec, capture: Capture): Promise<void> {
    await this.#fitting(spec, capture)
  }

  /** The machine that the capture is woken on, once it is seen that it can be. */
  async #fitting(spec: VmSpec, { dir }: Pick<Capture, 'dir'>): Promise<{ host: KvmAnswers; machine: Machine; manifest: CaptureManifest }> {
    const host = await this.#host.answers()
    const manifest = await readManifest(dir)
    const machine = this.#machine(spec)
    const why =
      manifest.memoryBytes === machine.memoryMib * 2 ** 20
        ? unfitness(manifest.facts, captureFactsOf(machine, host))
        : 'the instance has another size of memory now'
    if (why !== undefined) throw new AppError('snapshot_unusable', `The sleeping state cannot be woken here: ${why}`)
    await checkState(dir, manifest)
    return { host, machine, manifest }
  }

  async reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined> {
    if (handle.bootId !== readBootId()) return undefined
    const shim = await Shim.adopt(handle.runDir, handle.shim, handle.vmm, step)
    if (shim === undefined) return undefined
    const vm = new FirecrackerVm(handle, 'adopted', shim)
    try {
      await vm.takeUp(step)
    } catch (error) {
      // It is looked for again: one that was taken for found would be without its network for ever.
      shim[Symbol.dispose]()
      throw error
    }
    return vm
  }

  lastExit(runDir: string): Promise<VmExit | undefined> {
    return readExit(runDir)
  }

  sweep(runDir: string): Promise<void> {
    return sweepRunDir(runDir, this.#uses.cgroups)
  }

  #machine({ vcpus, memoryMib, nic }: Pick<VmSpec, 'vcpus' | 'memoryMib' | 'nic'>): Machine {
    const { kernelPath, initrdPath } = this.#uses
    return { vcpus, memoryMib, hasTap: nic !== undefined, kernelPath, initrdPath }
  }

  #golden(machine: Machine, host: KvmAnswers, step: Step, more: GoldenShape['facts'] = {}): Promise<GoldenBoot> {
    const { memoryBytes, facts } = shapeOf(machine, host)
    return this.#uses.memory.goldenBoot(
      { memoryBytes, facts: { ...facts, ...more } },
      (memory, stateFile, own) =>
        this.#withParked(machine, host, memory, own, async (api, shim) => {
          await api.ask(stateRequest('Paused'), own)
          await api.ask(saveAllRequest(), own)
          await copyFile(`/proc/${shim.identity.pid}/fd/${shim.blankFd}`, stateFile)
        }),
      step,
    )
  }

  /** A VM for `spec`, loaded: it runs when it was woken, and is paused when it was restored. When it throws, nothing is left. */
  async #launch(
    spec: VmSpec,
    machine: Machine,
    host: KvmAnswers,
    origin: Origin,
    step: Step,
  ): Promise<{ readonly shim: Shim; readonly handle: VmHandle }> {
    await using undo = new AsyncDisposableStack()
    await makeRunDir(spec.runDir)
    undo.defer(() => rm(spec.runDir, { recursive: true, force: true }))
    await layState(spec, origin)
    const { cgroups } = this.#uses
    const name = path.basename(spec.runDir)
    const entered = await cgroups?.make(name, cgroupLimitsOf({ ...machine, acceleration: 'kvm' }))
    undo.defer(() => cgroups?.remove(name))
    const plan = { ...this.#plan(spec, host, memoryOf(origin), tapOf(spec)), memory: FD.MEMORY, cgroups: entered ?? [] }
    const shim = await Shim.launch(plan, step)
    undo.defer(() => void shim[Symbol.dispose]())
    undo.defer(async () => void (await shim.kill()))
    const api = apiOf(spec.runDir)
    let isLoading = false
    try {
      await awaitApi(spec.runDir, api, shim, step)
      isLoading = true
      await api.ask(loadRequest(STATE), step)
      isLoading = false
      await rm(path.join(spec.runDir, OWN_DIR, STATE), { force: true })
      if (origin.entry === 'restore') {
        const { capture, manifest } = origin
        if (manifest.delta !== undefined) await loadDelta(shim, path.join(capture.dir, DELTA), manifest.delta, step)
      }
      for (const slot of changedSlots(spec, origin)) await api.ask(refreshDrive(slot), step)
      if (origin.entry === 'wake') {
        await api.ask(stateRequest('Resumed'), step)
        if (machine.hasTap) await shim.openTap(step)
      }
    } catch (cause) {
      if (errorCodeOf(cause) === 'timed_out' || errorCodeOf(cause) === 'snapshot_unusable') throw cause
      await Promise.race([shim.ended, sleep(1000, undefined, { ref: false })])
      const { last, detail } = wordsOf(await logTail(spec.logs.vmm))
      const message = `Firecracker did not start the VM: ${cause instanceof Error ? cause.message : last}`
      const told = new AppError('internal_error', message, { cause, detail })
      throw isLoading && origin.entry === 'wake' ? new LoadFailed(told) : told
    }
    const handle = {
      hypervisor: this.name,
      runDir: spec.runDir,
      shim: shim.identity,
      vmm: shim.vmm,
      bootId: readBootId(),
      startedAtMs: Date.now(),
      machine: { ...baseOf(origin), memoryBytes: machine.memoryMib * 2 ** 20, facts: captureFactsOf(machine, host) },
    } as const
    undo.move()
    return { shim, handle }
  }

  #plan(
    spec: Pick<VmSpec, 'id' | 'runDir' | 'user' | 'logs' | 'disks'>,
    host: KvmAnswers,
    memory: Descriptor | undefined,
    tap: string | undefined,
  ): ShimPlan {
    const { descriptors, answers } = disksBehindSlots(spec.disks)
    return {
      shimPath: this.#uses.shimPath,
      runDir: spec.runDir,
      ...(spec.user === undefined ? {} : { user: spec.user }),
      groups: host.groups,
      logs: shimLogsOf(spec.logs),
      ownDir: VSOCK_OWN_DIR,
      isolateNetwork: true,
      ...(tap === undefined ? {} : { answersTun: true }),
      answers,
      vmm: {
        argv: [host.binary.file, '--api-sock', API_SOCKET, '--id', idOf(spec.id), '--level', 'Error'],
        descriptors: [
          ...(memory === undefined ? [] : [memory]),
          ...descriptors,
          ...(tap === undefined ? [] : [{ number: FD.NIC, kind: 'tap', name: tap } as const]),
          // After all other blanks: the last one is the one that the shim names.
          { number: FD.SAVE, kind: 'blank' },
        ],
      },
    }
  }

  /** Runs a machine of ours, not an instance's, up to its parked point, does `work` there and ends it, whatever happens. */
  async #withParked(
    machine: Machine,
    host: KvmAnswers,
    memory: FileHandle | undefined,
    step: Step,
    work: (api: VmmApi, shim: Shim) => Promise<void>,
  ): Promise<void> {
    const uses = this.#uses
    const id = `golden-${randomBytes(4).toString('hex')}`
    const runDir = path.join(uses.workDir, id)
    const log = path.join(uses.workDir, `${id}.log`)
    await using undo = new AsyncDisposableStack()
    await mkdir(uses.workDir, { recursive: true, mode: 0o711 })
    await makeRunDir(runDir)
    undo.defer(() => Promise.all([runDir, log, `${log}.1`].map((name) => rm(name, { recursive: true, force: true }))).then(() => undefined))
    const cgroups = await uses.cgroups?.make(id, cgroupLimitsOf({ ...machine, acceleration: 'kvm' }))
    undo.defer(() => uses.cgroups?.remove(id))
    const spec = {
      ...{ id, runDir, disks: [] },
      ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
      logs: { app: log, vmm: log, journal: log, maxBytes: 1 << 20 },
    }
    const descriptor = memory === undefined ? undefined : ({ number: FD.MEMORY, kind: 'daemon', fd: memory.fd } as const)
    const shim = await Shim.launch(
      { ...this.#plan(spec, host, descriptor, machine.hasTap ? GOLDEN_TAP : undefined), cgroups: cgroups ?? [] },
      step,
    )
    undo.defer(() => void shim[Symbol.dispose]())
    undo.defer(async () => void (await shim.kill()))
    let hasEnded = false
    void shim.ended.then(() => {
      hasEnded = true
    })
    const api = apiOf(runDir)
    try {
      await awaitApi(runDir, api, shim, step)
      for (const request of bootRequests(machine, SLOTS)) await api.ask(request, step)
      const stream = await connectToAgent(runDir, () => hasEnded, step)
      try {
        await uses.awaitParked(stream, step)
      } finally {
        stream.destroy()
      }
      await work(api, shim)
    } catch (cause) {
      if (errorCodeOf(cause) === 'timed_out') throw cause
      const { last, detail } = wordsOf(await logTail(log))
      throw new AppError('guest_unavailable', `The VM did not come to where it parks: ${cause instanceof Error ? cause.message : last}`, {
        cause,
        detail,
      })
    }
  }
}

/** Where a VM comes from. */
type Origin =
  | { readonly entry: 'wake'; readonly golden: GoldenBoot }
  | { readonly entry: 'restore'; readonly capture: Capture; readonly manifest: CaptureManifest; readonly base: HeldBase }

function baseOf(origin: Origin): Pick<MachineRecord, 'base' | 'baseSum'> {
  return origin.entry === 'wake'
    ? { base: `golden/${origin.golden.key}`, baseSum: origin.golden.sum }
    : { base: origin.capture.base, baseSum: origin.manifest.baseSum }
}

function memoryOf(origin: Origin): Descriptor {
  const number = FD.MEMORY
  if (origin.entry === 'wake') return { number, kind: 'daemon', fd: origin.golden.base.fd }
  const { base } = origin
  if (base.kind === 'scratch') throw new AppError('snapshot_unusable', 'The sleeping state stands on no base, as none of Firecracker does')
  return base.kind === 'file' ? { number, kind: 'read', file: base.path } : { number, kind: 'daemon', fd: base.fd }
}

/**
 * Those whose sizes may be others than when the state was saved: all that a golden boot had nothing behind, and volumes, which may have grown
 * while they slept.
 */
const changedSlots = ({ disks }: Pick<VmSpec, 'disks'>, { entry }: Origin): readonly Slot[] =>
  SLOTS.filter(({ name, fd }) => (fd === undefined ? disks.some(({ role }) => role === name) : entry === 'wake'))

const tapOf = ({ nic }: Pick<VmSpec, 'nic'>): string | undefined => (nic?.backend === 'tap' ? nic.tap : undefined)

/** Firecracker opens files by their names, as its own user: what it loads lies in its own directory. */
async function layState({ runDir, user }: Pick<VmSpec, 'runDir' | 'user'>, origin: Origin): Promise<void> {
  const own = path.join(runDir, OWN_DIR)
  const file = path.join(own, STATE)
  await mkdir(own, { mode: 0o700 })
  await copyFile(origin.entry === 'wake' ? origin.golden.stateFile : path.join(origin.capture.dir, STATE), file)
  if (user !== undefined) await chown(file, user.uid, user.gid)
}

/** It binds its socket when it is ready to be asked. */
async function awaitApi(runDir: string, api: VmmApi, shim: Shim, step: Step): Promise<void> {
  let hasEnded = false
  void shim.ended.then(() => {
    hasEnded = true
  })
  await pollUntil(
    'Firecracker to answer',
    async () => {
      if (hasEnded) throw new AppError('internal_error', `Firecracker ended as soon as it had started (${path.basename(runDir)})`)
      return await api.ask({ method: 'GET', path: '/version' }, step).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') return undefined
        throw error
      })
    },
    step,
    { everyMs: 2, upToMs: 20 },
  )
}

function assertCan({ nic, hostDevices, hotplugMib, freshBoot, vcpus }: VmSpec): void {
  const refuse = (what: string): never => {
    throw new AppError('not_supported', `Firecracker ${what}`, { hint: 'Use qemu' })
  }
  if (nic?.backend === 'user') refuse('can only be on a bridge')
  if (hostDevices !== undefined) refuse('takes no devices of the host')
  if (hotplugMib !== undefined) refuse('cannot add memory to a VM whose memory has layers')
  if (freshBoot) refuse('has no memory layers without a golden boot')
  if (vcpus > MOST_VCPUS) refuse(`takes at most ${MOST_VCPUS} processors`)
}

/** Letters, digits and hyphens, 64 at most. */
const idOf = (id: string): string => id.replaceAll(/[^A-Za-z0-9-]/g, '-').slice(0, 64)

/** Of no bridge, and gone with the machine. */
const GOLDEN_TAP = 'dmgolden%d'
