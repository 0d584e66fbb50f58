/** What drivers ask of the host before any VM, and with what: the guest's own files, and whether memory of VMs can be reached. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Logger } from 'pino'
import type { Cgroups } from '../host/cgroups.ts'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'
import type { Memory } from '../memory/memory.ts'

/** Of every driver whose guests are ours. */
export interface DriverUses {
  readonly memory: Memory
  readonly log: Logger
  readonly shimPath: string
  readonly kernelPath: string
  readonly initrdPath: string
  /** Where golden boots and the KVM probe run while they are made, each in a directory of its own. */
  readonly workDir: string
  /** Where the answer of the KVM probe is kept. */
  readonly probeFile: string
  /** Where each VM has a cgroup of its own; absent: none has. */
  readonly cgroups?: Cgroups
  /** Whom golden boots run as; absent when the daemon is not root. */
  readonly goldenUser?: { readonly uid: number; readonly gid: number }
  /** Resolves when the guest behind a fresh stream says that it is parked. */
  readonly awaitParked: (stream: Duplex, step: Step) => Promise<void>
  /** For tests. */
  readonly kvmDevice?: string
  /** How long a guest may take to boot with KVM; 20 s. */
  readonly kvmProbeLimitMs?: number
}

/**
 * Why no one may look into the memory of a VMM; undefined when its shim may. Capabilities, Yama and namespaces all have a say in it, so it
 * is tried, on a process of the user that golden boots run as.
 */
export async function readReach(
  { shimPath, goldenUser }: Pick<DriverUses, 'shimPath' | 'goldenUser'>,
  step: Step,
): Promise<string | undefined> {
  const user = goldenUser === undefined ? '-' : `${goldenUser.uid}:${goldenUser.gid}`
  const { stdout } = await runCommand([shimPath, 'reach', user], { step })
  return stdout === 'yes\n' ? undefined : stdout.trim().replace(/^no /, '')
}

/** SHA-256 of a file of the guest, in hex. Throws `dependency_missing` when it cannot be read. */
export async function hashGuestFile(file: string): Promise<string> {
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
