import { open } from 'node:fs/promises'
import type { Duplex } from 'node:stream'
import { measureTscKhz, readHostFacts } from '../../host/host-facts.ts'
import { runCommand } from '../../host/run-command.ts'
import type { Step } from '../../lib/step.ts'
import { type Acceleration, decideAcceleration } from '../acceleration.ts'
import { type DriverUses, hashGuestFile, readReach } from '../host-questions.ts'
import type { VmSpec } from '../vm-spec.ts'
import { Q35 } from './boards.ts'
import { VHOST_DEVICE, withParked } from './parked-machine.ts'
import type { Pool } from './pool.ts'
import type { WaitingMachine } from './waiting-machine.ts'

export interface QemuUses extends DriverUses {
  readonly networkHelperPath: string
  /** Guests reach the host at its own addresses; for VMs that are started from now on. */
  readonly allowHostAccess?: boolean
  /** Where VMs wait for starts; absent: none does. */
  readonly pool?: PoolPlace
  /** A switch for those who want every kernel to draw secrets of its own; true when absent. */
  readonly goldenBoots?: boolean
}

export interface PoolPlace {
  readonly machines: Pool<WaitingMachine>
  /** For their run directories and files. On the file system of those of instances: a directory is renamed when it becomes one's. */
  readonly dir: string
  /** The root disk that they rehearse with. */
  readonly image: string
  /** An empty writable disk, as instances have. */
  makeDisk(file: string, owner: VmSpec['user'], step: Step): Promise<void>
  /** Leads a parked guest through a life, and has its disks taken away then; it is parked again when this resolves. */
  rehearse(
    uses: {
      readonly connect: () => Promise<Duplex>
      readonly mac: string
      readonly hasModules: boolean
      readonly takeDisks: () => Promise<void>
    },
    step: Step,
  ): Promise<void>
  /** Each runs as one of its own; absent when the daemon is not root. */
  readonly users?: { readonly base: number; readonly count: number }
}

export interface HostAnswers {
  readonly version: string
  readonly acceleration: Acceleration
  /** The host's kernel carries the frames of guests that are behind a TAP. */
  readonly vhost: boolean
  readonly tscKhz: number
  readonly kernelHash: string
  readonly initrdHash: string
  /** Why a shim may not look into its VMM's memory, so that each VM gets a copy of its base; undefined when it may. */
  readonly outOfReach: string | undefined
}

/** What is asked of the host once and then known. A failure is not kept: what was missing may be installed. */
export class QemuHost {
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
    const probeLimitMs = uses.kvmProbeLimitMs ?? 20_000
    const step = { signal: AbortSignal.timeout(40_000 + probeLimitMs), log: uses.log }
    const [version, tscKhz, kernelHash, initrdHash, outOfReach] = await Promise.all([
      readVersion(step),
      measureTscKhz(uses.shimPath, step),
      hashGuestFile(uses.kernelPath),
      hashGuestFile(uses.initrdPath),
      readReach(uses, step),
    ])
    const { kernel, cpuModel: cpu } = readHostFacts()
    const answers = { version, tscKhz, kernelHash, initrdHash, outOfReach, vhost: false }
    const acceleration = await decideAcceleration(
      {
        device: uses.kvmDevice ?? '/dev/kvm',
        file: uses.probeFile,
        facts: { kernel, cpu, version, guestKernel: kernelHash, initrd: initrdHash },
        limitMs: probeLimitMs,
        tryBoot: (groups, step) => tryKvm(uses, { ...answers, acceleration: { kind: 'kvm', groups } }, step),
        ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
      },
      step,
    )
    // An emulated guest is what takes the time there, whoever carries its frames.
    const vhost = acceleration.kind === 'kvm' && (await opens(VHOST_DEVICE))
    uses.log.info({ version, acceleration: acceleration.kind, reason: acceleration.reason, vhost }, 'QEMU is ready')
    if (outOfReach !== undefined) uses.log.warn({ reason: outOfReach }, 'memory of VMs is out of reach, each gets a copy of its base')
    return { ...answers, acceleration, vhost }
  }
}

/** The node may be there without its module, which is loaded by this where it can be. */
async function opens(device: string): Promise<boolean> {
  try {
    await (await open(device, 'r+')).close()
    return true
  } catch {
    return false
  }
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

async function readVersion(step: Step): Promise<string> {
  const { stdout } = await runCommand(['qemu-system-x86_64', '--version'], { step })
  return /version (\S+(?: \([^)]*\))?)/.exec(stdout)?.[1] ?? stdout.split('\n', 1)[0] ?? 'unknown'
}
