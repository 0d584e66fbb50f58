/**
 * Cloud Hypervisor behind the driver contract.
 *
 *   start ─► golden boot at hand? ─yes─► own/restore: its state, our disks ─► shim + VMM on its base ─► runs, parked
 *                    └─no, or a fresh boot is wanted─► shim + VMM ─► boots to the same parked point
 *   restore ─► own/restore: the state as it was saved, the pages that have changed ─► shim + VMM on the same base ─► paused
 */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import { readHostFacts } from '../../host/host-facts.ts'
import { readBootId } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import { type CaptureManifest, checkState, DELTA, readManifest, STATE } from '../../memory/capture-files.ts'
import type { GoldenBoot, GoldenShape, HeldBase } from '../../memory/memory.ts'
import type { Capture, Hypervisor, HypervisorName, HypervisorProbe, MachineRecord, Vm, VmExit, VmHandle } from '../hypervisor.ts'
import { type KvmAnswers, KvmHost } from '../kvm-host.ts'
import { sweepRunDir } from '../run-dir.ts'
import { type Descriptor, readExit, Shim } from '../shim.ts'
import { shimLogsOf } from '../vm-logs.ts'
import type { DiskSpec, VmSpec } from '../vm-spec.ts'
import { CLOUD_HYPERVISOR, type CloudHypervisorUses } from './cloud-hypervisor-host.ts'
import { CloudHypervisorVm } from './cloud-hypervisor-vm.ts'
import { commonDescriptors, type Launch, launch } from './launch.ts'
import {
  answerOf,
  bootCommandLine,
  diskDescriptors,
  emptyDisk,
  FD,
  KERNEL_COMMAND_LINE,
  type Machine,
  restoreCommandLine,
  slotsOf,
  VOLUME_SLOTS,
  volumeSlot,
  volumesOf,
} from './machine.ts'
import { captureGolden, withParked } from './parked-machine.ts'
import { parseSaved, rewire, type SavedMachine, unmetDevices, withFreshDevices } from './saved-state.ts'

export type { CloudHypervisorUses } from './cloud-hypervisor-host.ts'

export class CloudHypervisor implements Hypervisor {
  readonly name: HypervisorName = 'cloud-hypervisor'
  readonly capabilities: ReadonlySet<Capability> = new Set([
    'pause',
    'standby',
    'fork',
    'snapshots',
    'disk_hotplug',
    'disk_limit',
    'fresh_boot',
  ] as const)
  readonly versions = CLOUD_HYPERVISOR.versions
  readonly networks = new Set(['tap'] as const)
  readonly volumeSlots = VOLUME_SLOTS
  readonly #uses: CloudHypervisorUses
  readonly #host: KvmHost

  constructor(uses: CloudHypervisorUses) {
    this.#uses = uses
    this.#host = new KvmHost(CLOUD_HYPERVISOR, uses, (host, step) =>
      withParked(uses, host, { vcpus: 1, memoryMib: 256, hasTap: false }, undefined, step, async () => undefined),
    )
  }

  probe(_step: Step): Promise<HypervisorProbe> {
    return this.#host.probe()
  }

  async assertAvailable(_step: Step): Promise<void> {
    await this.#host.answers()
  }

  /** True for a golden boot of this driver that would be made differently now; one whose VMM is not at hand may serve again. */
  async isStale(facts: GoldenShape['facts']): Promise<boolean> {
    if (facts.board !== BOARD) return false
    const host = await this.#host.answers().catch(() => undefined)
    if (host === undefined) return false
    const now = shapeOf({ vcpus: 1, memoryMib: 1, hasTap: facts.network === 'tap' }, host).facts
    return Object.entries(now).some(([name, value]) => name !== 'vcpus' && facts[name] !== value)
  }

  async start(spec: VmSpec, step: Step): Promise<Vm> {
    const machine = machineOf(spec)
    const host = await this.#host.answers()
    using golden = spec.freshBoot === true || this.#uses.goldenBoots === false ? undefined : await this.#golden(machine, host, step)
    if (golden === undefined) return await this.#boot(spec, machine, host, step)
    try {
      return await this.#wake(spec, machine, host, golden, step)
    } catch (error) {
      const code = errorCodeOf(error)
      if (step.signal.aborted || (code !== 'internal_error' && code !== 'snapshot_unusable')) throw error
      step.log.warn({ err: error, golden: golden.key }, 'a golden boot could not be woken, booting from the start')
      const vm = await this.#boot(spec, machine, host, step)
      // The VM runs without it, so it was to blame and not this VM's disks: no later start shall trip over it.
      await golden.discard()
      return vm
    }
  }

  async #boot(spec: VmSpec, machine: Machine, host: KvmAnswers, step: Step): Promise<Vm> {
    const argv = bootCommandLine(machine, {
      program: host.binary.file,
      version: host.binary.version,
      disks: spec.disks,
      sharesMemory: host.outOfReach !== undefined,
      ...(spec.nic === undefined ? {} : { mac: spec.nic.mac }),
      ...(spec.diskIoBps === undefined ? {} : { diskIoBps: spec.diskIoBps }),
    })
    using base = await this.#uses.memory.holdBase({ base: 'zero' }, ZERO_SUM, step)
    const shim = await this.#launch(spec, machine, host, { argv, base, until: 'Running' }, step)
    return new CloudHypervisorVm(this.#handle(spec, machine, host, shim, { base: 'zero', baseSum: ZERO_SUM }), 'boot', shim)
  }

  async #wake(spec: VmSpec, machine: Machine, host: KvmAnswers, golden: GoldenBoot, step: Step): Promise<Vm> {
    const { config, state } = parseSaved(await readFile(golden.stateFile, 'utf8'))
    const saved = { config: this.#rewired(config, spec, [], host), state: withFreshDevices(state, unmetDevices(config)) }
    const argv = restoreCommandLine(machine, { program: host.binary.file }, { resumes: true })
    const base: HeldBase = { kind: 'descriptor', fd: golden.base.fd, [Symbol.dispose]: () => undefined }
    const shim = await this.#launch(spec, machine, host, { argv, base, from: { saved }, until: 'Running' }, step)
    const record = { base: `golden/${golden.key}`, baseSum: golden.sum } as const
    const vm = new CloudHypervisorVm(this.#handle(spec, machine, host, shim, record), 'golden', shim)
    try {
      // Its guest knows its places, and meets what comes beside them as it does later.
      for (const volume of volumesOf(spec.disks)) await vm.diskHotplug.insertDisk(volume, step)
      return vm
    } catch (error) {
      await vm.kill()
      await this.sweep(spec.runDir)
      throw error
    }
  }

  async restore(spec: VmSpec, capture: Capture, step: Step): Promise<Vm> {
    const { host, machine, manifest } = await this.#fitting(spec, capture)
    const { config, state } = parseSaved(await readFile(path.join(capture.dir, STATE), 'utf8'))
    using base = await this.#uses.memory.holdBase(capture, manifest.baseSum, step)
    const saved = { config: this.#rewired(config, spec, volumesOf(spec.disks), host), state }
    const { scratchDir } = this.#uses.memory
    const delta =
      manifest.delta === undefined ? {} : { delta: { file: path.join(capture.dir, DELTA), written: manifest.delta, scratchDir } }
    const argv = restoreCommandLine(machine, { program: host.binary.file }, { resumes: false })
    const shim = await this.#launch(spec, machine, host, { argv, base, from: { saved, ...delta }, until: 'Paused' }, step)
    const handle = this.#handle(spec, machine, host, shim, { base: capture.base, baseSum: manifest.baseSum })
    return new CloudHypervisorVm(handle, 'restore', shim)
  }

  async assertFits(spec: VmSpec, capture: Capture): Promise<void> {
    await this.#fitting(spec, capture)
  }

  async reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined> {
    if (handle.bootId !== readBootId()) return undefined
    const shim = await Shim.adopt(handle.runDir, handle.shim, handle.vmm, step)
    return shim === undefined ? undefined : new CloudHypervisorVm(handle, 'adopted', shim)
  }

  lastExit(runDir: string): Promise<VmExit | undefined> {
    return readExit(runDir)
  }

  sweep(runDir: string): Promise<void> {
    return sweepRunDir(runDir, this.#uses.cgroups)
  }

  #rewired(config: SavedMachine['config'], spec: VmSpec, volumes: readonly DiskSpec[], host: KvmAnswers): SavedMachine['config'] {
    return rewire(config, {
      slots: slotsOf(spec.disks),
      volumes: volumes.map(volumeSlot),
      sharesMemory: host.outOfReach !== undefined,
      ...(spec.nic === undefined ? {} : { mac: spec.nic.mac }),
      ...(spec.diskIoBps === undefined ? {} : { diskIoBps: spec.diskIoBps }),
    })
  }

  /** The machine that the capture is woken on, once it is seen that it can be. */
  async #fitting(
    spec: VmSpec,
    { dir }: Pick<Capture, 'dir'>,
  ): Promise<{ readonly host: KvmAnswers; readonly machine: Machine; readonly manifest: CaptureManifest }> {
    const machine = machineOf(spec)
    slotsOf(spec.disks)
    const host = await this.#host.answers()
    const manifest = await readManifest(dir)
    const why =
      manifest.memoryBytes === machine.memoryMib * 2 ** 20
        ? unfitness(manifest.facts, captureFactsOf(machine, host))
        : 'the instance has another size of memory now'
    if (why !== undefined) throw new AppError('snapshot_unusable', `The sleeping state cannot be woken here: ${why}`)
    await checkState(dir, manifest)
    return { host, machine, manifest }
  }

  async #golden(machine: Machine, host: KvmAnswers, step: Step): Promise<GoldenBoot | undefined> {
    try {
      return await this.#uses.memory.goldenBoot(
        shapeOf(machine, host),
        (memory, stateFile, own) => captureGolden(this.#uses, host, machine, { memory, stateFile }, own),
        step,
      )
    } catch (error) {
      if (step.signal.aborted) throw error
      step.log.warn({ err: error }, 'no golden boot could be made, booting from the start')
      return undefined
    }
  }

  #launch(
    spec: VmSpec,
    machine: Machine,
    host: KvmAnswers,
    how: {
      readonly argv: readonly string[]
      readonly base: HeldBase
      readonly until: 'Running' | 'Paused'
      readonly from?: Launch['from']
    },
    step: Step,
  ): Promise<Shim> {
    const { cgroups, shimPath } = this.#uses
    return launch(
      {
        machine,
        until: how.until,
        ...(how.from === undefined ? {} : { from: how.from }),
        ...(cgroups === undefined ? {} : { cgroups }),
        plan: {
          shimPath,
          runDir: spec.runDir,
          ...(spec.user === undefined ? {} : { user: spec.user }),
          groups: host.groups,
          logs: shimLogsOf(spec.logs),
          isolateNetwork: true,
          answers: volumesOf(spec.disks).map(answerOf),
          memory: FD.MEMORY,
          copiesMemory: host.outOfReach !== undefined,
          vmm: {
            argv: how.argv,
            descriptors: [
              ...commonDescriptors(this.#uses),
              memoryOf(how.base, machine),
              emptyDisk(this.#uses.memory.scratchDir),
              { number: FD.SAVE, kind: 'blank' },
              ...(spec.nic?.backend === 'tap' ? [{ number: FD.NIC, kind: 'tap', name: spec.nic.tap } as const] : []),
              ...diskDescriptors(spec.disks),
            ],
          },
        },
      },
      step,
    )
  }

  #handle(
    spec: VmSpec,
    machine: Machine,
    host: KvmAnswers,
    shim: Pick<Shim, 'identity' | 'vmm'>,
    from: Pick<MachineRecord, 'base' | 'baseSum'>,
  ): VmHandle {
    return {
      hypervisor: this.name,
      runDir: spec.runDir,
      shim: shim.identity,
      vmm: shim.vmm,
      bootId: readBootId(),
      startedAtMs: Date.now(),
      machine: { ...from, memoryBytes: machine.memoryMib * 2 ** 20, facts: captureFactsOf(machine, host) },
    }
  }
}

/** Throws `not_supported` for what it cannot be. */
function machineOf({ vcpus, memoryMib, nic, hotplugMib, hostDevices }: VmSpec): Machine {
  if (hotplugMib !== undefined) throw new AppError('not_supported', 'Memory cannot be added to a VM of Cloud Hypervisor')
  if (hostDevices !== undefined) throw new AppError('not_supported', 'Cloud Hypervisor is given no devices of the host')
  if (nic?.backend === 'user') throw new AppError('not_supported', 'Cloud Hypervisor needs a bridge for the network of its guests')
  return { vcpus, memoryMib, hasTap: nic !== undefined }
}

function memoryOf(base: HeldBase, { memoryMib }: Machine): Descriptor {
  const number = FD.MEMORY
  if (base.kind === 'scratch') return { number, kind: 'sized', file: base.dir, bytes: memoryMib * 2 ** 20 }
  return base.kind === 'file' ? { number, kind: 'read', file: base.path } : { number, kind: 'daemon', fd: base.fd }
}

const ZERO_SUM = '0'.repeat(16)
const BOARD = 'cloud-hypervisor'

/** All that a state and a memory must find again when they are woken. */
function shapeOf(machine: Machine, host: KvmAnswers): GoldenShape {
  const { kernel, cpuModel } = readHostFacts()
  return {
    memoryBytes: machine.memoryMib * 2 ** 20,
    facts: {
      vmm: host.binary.version,
      board: BOARD,
      acceleration: 'kvm',
      cpu: `host ${cpuModel} on ${kernel}`,
      vcpus: machine.vcpus,
      kernel: host.kernelHash,
      initrd: host.initrdHash,
      append: KERNEL_COMMAND_LINE,
      ...(machine.hasTap ? { network: 'tap' } : {}),
    },
  }
}

/** As for a golden boot, but for what is in the guest's memory by then. */
function captureFactsOf(machine: Machine, host: KvmAnswers): Readonly<Record<string, string | number>> {
  const { initrd: _initrd, append: _append, ...facts } = shapeOf(machine, host).facts
  return { ...facts, network: machine.hasTap ? 'tap' : 'none' }
}

/** In words, why a capture cannot be woken here; undefined when it can. */
function unfitness(then: Readonly<Record<string, string | number>>, here: Readonly<Record<string, string | number>>): string | undefined {
  const differing = Object.keys({ ...then, ...here }).filter((name) => then[name] !== here[name])
  const [first] = differing
  if (first === undefined) return undefined
  const words: Readonly<Record<string, string>> = {
    board: `it was taken by another hypervisor (${then.board})`,
    vmm: `it was taken by Cloud Hypervisor ${then.vmm}, this is ${here.vmm}`,
    kernel: 'it was taken with another guest kernel than the one that is installed',
    cpu: `it was taken on another processor (${then.cpu}, not ${here.cpu})`,
    vcpus: `it had ${then.vcpus} processors, the instance has ${here.vcpus}`,
    network: `its network was "${then.network}", the instance's is "${here.network}"`,
  }
  return (
    differing.map((name) => words[name]).find((one) => one !== undefined) ?? `the machine has changed since then (${differing.join(', ')})`
  )
}
