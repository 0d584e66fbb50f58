/** What is asked of the host once and then known: the VMM's program, whether guests boot with it, the guest's own files. */
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Logger } from 'pino'
import type { Cgroups } from '../../host/cgroups.ts'
import { readHostFacts } from '../../host/host-facts.ts'
import type { Step } from '../../lib/step.ts'
import type { Memory } from '../../memory/memory.ts'
import { decideAcceleration } from '../acceleration.ts'
import { hashGuestFile, readReach } from '../host-questions.ts'
import { KeptAnswers } from '../kept-answers.ts'
import { findVmmBinary, type KnownVmm, type VmmBinary, type WhereToLook } from '../vmm-binary.ts'
import { withParked } from './parked-machine.ts'

export const CLOUD_HYPERVISOR: KnownVmm = {
  title: 'Cloud Hypervisor',
  program: 'cloud-hypervisor',
  setting: 'DORMOUSE_CLOUD_HYPERVISOR',
  home: 'https://github.com/cloud-hypervisor/cloud-hypervisor/releases',
  versions: ['53', '52'],
}

export interface CloudHypervisorUses {
  readonly memory: Memory
  readonly log: Logger
  readonly shimPath: string
  readonly kernelPath: string
  readonly initrdPath: string
  readonly program: WhereToLook
  /** Where golden boots and the KVM probe run while they are made, each in a directory of its own. */
  readonly workDir: string
  /** Where the answer of the KVM probe is kept. */
  readonly probeFile: string
  readonly cgroups?: Cgroups
  /** Whom golden boots run as; absent when the daemon is not root. */
  readonly goldenUser?: { readonly uid: number; readonly gid: number }
  /** Resolves when the guest behind a fresh stream says that it is parked. */
  readonly awaitParked: (stream: Duplex, step: Step) => Promise<void>
  /** True when absent. */
  readonly goldenBoots?: boolean
  /** How long a guest may take to boot with KVM; 20 s. */
  readonly kvmProbeLimitMs?: number
}

export interface HostAnswers {
  readonly binary: VmmBinary
  /** Groups that a VMM must be in to open /dev/kvm. */
  readonly groups: readonly number[]
  readonly kernelHash: string
  readonly initrdHash: string
  /** Why a shim may not look into its VMM's memory, so that each VM gets a copy of its base; undefined when it may. */
  readonly outOfReach: string | undefined
}

export class CloudHypervisorHost {
  readonly #uses: CloudHypervisorUses
  readonly #kept = new KeptAnswers<HostAnswers>(
    () => this.#ask(),
    ({ binary }) => binary,
  )

  constructor(uses: CloudHypervisorUses) {
    this.#uses = uses
  }

  /** Throws `dependency_missing` where no VM of it can run, and says why. */
  answers(): Promise<HostAnswers> {
    return this.#kept.get()
  }

  async #ask(): Promise<HostAnswers> {
    const uses = this.#uses
    // Many may wait for it, so it runs under a limit of its own.
    const limitMs = uses.kvmProbeLimitMs ?? 20_000
    const step = { signal: AbortSignal.timeout(40_000 + limitMs), log: uses.log }
    const binary = await findVmmBinary(CLOUD_HYPERVISOR, uses.program, step)
    const [kernelHash, initrdHash, outOfReach] = await Promise.all([
      hashGuestFile(uses.kernelPath),
      hashGuestFile(uses.initrdPath),
      readReach(uses, step),
    ])
    const { kernel, cpuModel: cpu } = readHostFacts()
    const answers = { binary, kernelHash, initrdHash, outOfReach, groups: [] }
    const acceleration = await decideAcceleration(
      {
        device: '/dev/kvm',
        file: uses.probeFile,
        facts: { kernel, cpu, version: binary.version, guestKernel: kernelHash, initrd: initrdHash },
        limitMs,
        tryBoot: (groups, own) =>
          withParked(uses, { ...answers, groups }, { vcpus: 1, memoryMib: 256, hasTap: false }, undefined, own, async () => undefined),
        ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
      },
      step,
    )
    if (acceleration.kind !== 'kvm') {
      throw new AppError('dependency_missing', `Cloud Hypervisor needs KVM. ${acceleration.reason ?? ''}`.trim(), {
        hint: 'See what is in the way with: dormouse doctor',
      })
    }
    uses.log.info({ version: binary.version, file: binary.file }, 'Cloud Hypervisor is ready')
    return { ...answers, groups: acceleration.groups }
  }
}
