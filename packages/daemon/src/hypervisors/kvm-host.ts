/** What is asked of the host once and then known, of a VMM that runs with KVM alone: its program, whether guests boot with it, their own files. */
import { AppError } from '@dormouse/api/errors.ts'
import { readHostFacts } from '../host/host-facts.ts'
import type { Step } from '../lib/step.ts'
import { type Acceleration, decideAcceleration, openness } from './acceleration.ts'
import { type DriverUses, hashGuestFile, readReach } from './host-questions.ts'
import type { HypervisorProbe } from './hypervisor.ts'
import { KeptAnswers } from './kept-answers.ts'
import { findVmmBinary, type KnownVmm, type VmmBinary, type WhereToLook } from './vmm-binary.ts'

export interface KvmVmm extends KnownVmm {
  /** It is of no use where no one may look into the memory of its VMs. */
  readonly needsReach?: boolean
}

export interface KvmDriverUses extends DriverUses {
  readonly program: WhereToLook
}

export interface KvmAnswers {
  readonly binary: VmmBinary
  /** Groups that a VMM must be in to open /dev/kvm. */
  readonly groups: Acceleration['groups']
  readonly kernelHash: string
  readonly initrdHash: string
  /** Why a shim may not look into its VMM's memory, so that each VM gets a copy of its base; undefined when it may. */
  readonly outOfReach: string | undefined
}

/** Boots a guest of one processor and 256 MiB until it is parked, and ends it. */
export type TryBoot = (host: KvmAnswers, step: Step) => Promise<void>

export class KvmHost {
  readonly #vmm: KvmVmm
  readonly #uses: KvmDriverUses
  readonly #tryBoot: TryBoot
  readonly #kept = new KeptAnswers<KvmAnswers>(
    () => this.#ask(),
    ({ binary }) => binary,
  )

  constructor(vmm: KvmVmm, uses: KvmDriverUses, tryBoot: TryBoot) {
    this.#vmm = vmm
    this.#uses = uses
    this.#tryBoot = tryBoot
  }

  /** Throws `dependency_missing` without a program or KVM, and `not_supported` where it cannot do its work, each with a sentence. */
  answers(): Promise<KvmAnswers> {
    return this.#kept.get()
  }

  /** Never throws. */
  async probe(): Promise<HypervisorProbe> {
    try {
      const { binary, outOfReach } = await this.answers()
      const memory = outOfReach === undefined ? {} : { memoryOutOfReach: outOfReach }
      return { available: true, version: binary.version, acceleration: 'kvm', ...memory }
    } catch (error) {
      const mend = error instanceof AppError && error.hint !== undefined ? { mend: error.hint } : {}
      return { available: false, reason: error instanceof Error ? error.message : String(error), ...mend }
    }
  }

  async #ask(): Promise<KvmAnswers> {
    const { title } = this.#vmm
    const { kvmDevice: device = '/dev/kvm', goldenUser: user, kvmProbeLimitMs: limitMs = 20_000, ...uses } = this.#uses
    // Many may wait for it, so it runs under a limit of its own.
    const step = { signal: AbortSignal.timeout(40_000 + limitMs), log: uses.log }
    const binary = await findVmmBinary(this.#vmm, uses.program, step)
    const asUser = user === undefined ? {} : { user }
    // A failure is not kept: what costs little comes before the guest's files are read.
    const opened = await openness({ device, ...asUser })
    if ('reason' in opened) throw withoutKvm(title, opened.reason)
    const outOfReach = await readReach(this.#uses, step)
    if (outOfReach !== undefined && this.#vmm.needsReach === true) {
      throw new AppError('not_supported', `No one may look into the memory of VMs here, which ${title}'s need: ${outOfReach}`, {
        hint: 'Use qemu',
      })
    }
    const [kernelHash, initrdHash] = await Promise.all([hashGuestFile(uses.kernelPath), hashGuestFile(uses.initrdPath)])
    const { kernel, cpuModel: cpu } = readHostFacts()
    const answers = { binary, kernelHash, initrdHash, outOfReach }
    const { kind, groups, reason } = await decideAcceleration(
      {
        device,
        file: uses.probeFile,
        facts: { kernel, cpu, version: binary.version, guestKernel: kernelHash, initrd: initrdHash },
        limitMs,
        tryBoot: (groups, own) => this.#tryBoot({ ...answers, groups }, own),
        ...asUser,
      },
      step,
    )
    if (kind !== 'kvm') throw withoutKvm(title, reason)
    uses.log.info({ version: binary.version, file: binary.file }, `${title} is ready`)
    return { ...answers, groups }
  }
}

const withoutKvm = (title: string, reason = 'it is not there'): AppError =>
  new AppError('dependency_missing', `${title} needs KVM: ${reason}`, { hint: 'See what is in the way with: dormouse doctor, or use qemu' })
