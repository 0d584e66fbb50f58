/** What is found out about this host and its Firecracker once, and then known. */
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Logger } from 'pino'
import type { Cgroups } from '../../host/cgroups.ts'
import { readHostFacts } from '../../host/host-facts.ts'
import type { Step } from '../../lib/step.ts'
import type { Memory } from '../../memory/memory.ts'
import { type Acceleration, decideAcceleration } from '../acceleration.ts'
import { hashGuestFile, readReach } from '../host-questions.ts'
import { KeptAnswers } from '../kept-answers.ts'
import { findVmmBinary, type KnownVmm, type VmmBinary, type WhereToLook } from '../vmm-binary.ts'
import type { Machine } from './machine.ts'

export const FIRECRACKER: KnownVmm = {
  title: 'Firecracker',
  program: 'firecracker',
  setting: 'DORMOUSE_FIRECRACKER',
  home: 'https://github.com/firecracker-microvm/firecracker/releases',
  // Not 1.16.0: what was on its way out of a guest when it was captured keeps its vsock from ever being heard of again.
  versions: ['1.16.1', '1.15.1'],
}

export interface FirecrackerUses {
  readonly memory: Memory
  readonly log: Logger
  readonly shimPath: string
  readonly kernelPath: string
  readonly initrdPath: string
  /** Where golden boots and the KVM probe run while they are made, each in a directory of its own. */
  readonly workDir: string
  /** Where the answer of the KVM probe is kept. */
  readonly probeFile: string
  readonly program: WhereToLook
  readonly cgroups?: Cgroups
  /** Whom golden boots run as; absent when the daemon is not root. */
  readonly goldenUser?: { readonly uid: number; readonly gid: number }
  /** Resolves when the guest behind a fresh stream says that it is parked. */
  readonly awaitParked: (stream: Duplex, step: Step) => Promise<void>
  /** For tests. */
  readonly kvmDevice?: string
  /** How long a guest may take to boot; 20 s. */
  readonly kvmProbeLimitMs?: number
}

export interface HostAnswers extends VmmBinary {
  readonly acceleration: Acceleration
  readonly kernelHash: string
  readonly initrdHash: string
}

/** Boots a guest until it is parked, and ends it. */
export type TryBoot = (machine: Machine, host: HostAnswers, step: Step) => Promise<void>

export class FirecrackerHost {
  readonly #uses: FirecrackerUses
  readonly #tryBoot: TryBoot
  readonly #kept = new KeptAnswers<HostAnswers>(
    () => this.#ask(),
    (answers) => answers,
  )

  constructor(uses: FirecrackerUses, tryBoot: TryBoot) {
    this.#uses = uses
    this.#tryBoot = tryBoot
  }

  /** Throws `dependency_missing` without a program or KVM, and `not_supported` where it cannot do its work, each with a sentence. */
  answers(): Promise<HostAnswers> {
    return this.#kept.get()
  }

  async #ask(): Promise<HostAnswers> {
    const uses = this.#uses
    const limitMs = uses.kvmProbeLimitMs ?? 20_000
    // Many may wait for it, so it runs under a limit of its own.
    const step = { signal: AbortSignal.timeout(40_000 + limitMs), log: uses.log }
    const binary = await findVmmBinary(FIRECRACKER, uses.program, step)
    const [kernelHash, initrdHash] = await Promise.all([hashGuestFile(uses.kernelPath), hashGuestFile(uses.initrdPath)])
    await assertReach(uses, step)
    const { kernel, cpuModel: cpu } = readHostFacts()
    const { file, version } = binary
    const answers = { ...binary, kernelHash, initrdHash }
    const { kernelPath, initrdPath } = uses
    const machine = { vcpus: 1, memoryMib: 256, hasTap: false, kernelPath, initrdPath }
    const acceleration = await decideAcceleration(
      {
        device: uses.kvmDevice ?? '/dev/kvm',
        file: uses.probeFile,
        facts: { kernel, cpu, version, guestKernel: kernelHash, initrd: initrdHash },
        limitMs,
        tryBoot: (groups, own) => this.#tryBoot(machine, { ...answers, acceleration: { kind: 'kvm', groups } }, own),
        ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
      },
      step,
    )
    if (acceleration.kind !== 'kvm') {
      throw new AppError('dependency_missing', `Firecracker needs KVM: ${acceleration.reason ?? 'it is not there'}`, { hint: 'Use qemu' })
    }
    uses.log.info({ version, file }, 'Firecracker is ready')
    return { ...answers, acceleration }
  }
}

/** Its memory is captured and loaded from outside; there is no other way with it. */
async function assertReach(uses: FirecrackerUses, step: Step): Promise<void> {
  const why = await readReach(uses, step)
  if (why === undefined) return
  throw new AppError('not_supported', `No one may look into the memory of VMs here, which Firecracker's need: ${why}`, { hint: 'Use qemu' })
}
