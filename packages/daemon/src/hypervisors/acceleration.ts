/**
 * KVM or TCG? A device file proves nothing: there are hosts on which /dev/kvm opens, makes machines and never gets a stock kernel
 * through its boot. So KVM is used where a guest has been seen to reach its parked point with it. That is tried once and kept with
 * what it depends on.
 */
import { constants } from 'node:fs'
import { access, readFile, stat } from 'node:fs/promises'
import { writeFileAtomically } from '../host/files.ts'
import type { Step } from '../lib/step.ts'

export interface Acceleration {
  readonly kind: 'kvm' | 'tcg'
  /** Why not KVM; a sentence. */
  readonly reason?: string
  /** Groups that a VMM must be in to open /dev/kvm. */
  readonly groups: readonly number[]
}

export interface AccelerationUses {
  readonly device: string
  /** Where the answer is kept. */
  readonly file: string
  /** What the answer depends on: the host's kernel and processor, the VMM's version, the guest's kernel. */
  readonly facts: Readonly<Record<string, string>>
  /** Boots a guest with KVM, in these groups, until it is parked, and ends it; throws when it does not get there. */
  tryBoot(groups: readonly number[], step: Step): Promise<void>
  readonly user?: { readonly uid: number; readonly gid: number }
  /** How long the boot may take. A real machine needs well under a second; one that was emulated took 14 s. */
  readonly limitMs: number
}

/** A busy host may be too slow once for a KVM that works. */
const MAX_TRIES = 3

interface Kept {
  readonly answer: string
  readonly tries: number
}

/**
 * Answers, never throws, and leaves no process. Takes as long as a boot at first, a file read afterwards; what has failed is tried again by the
 * next two who ask.
 */
export async function decideAcceleration(uses: AccelerationUses, step: Step): Promise<Acceleration> {
  const opened = await openness(uses)
  if ('reason' in opened) return { kind: 'tcg', groups: [], reason: opened.reason }
  const kept = await readKept(uses)
  const isSettled = kept !== undefined && (kept.answer === 'works' || kept.tries >= MAX_TRIES)
  const answer = isSettled ? kept.answer : await tryAndKeep(uses, opened.groups, (kept?.tries ?? 0) + 1, step)
  return answer === 'works'
    ? { kind: 'kvm', groups: opened.groups }
    : { kind: 'tcg', groups: [], reason: `KVM is there, but no guest boots with it (${answer})` }
}

/** Can it be opened at all, by a VMM of that user? A look at the file. */
export async function openness({
  device,
  user,
}: Pick<AccelerationUses, 'device' | 'user'>): Promise<{ groups: number[] } | { reason: string }> {
  try {
    const facts = await stat(device)
    await access(device, constants.R_OK | constants.W_OK)
    if (user === undefined || (facts.mode & 0o006) === 0o006) return { groups: [] }
    // Only the group's own right is lent to a VMM; root's group would be lending far more than the device.
    if ((facts.mode & 0o060) === 0o060 && facts.gid !== 0) return { groups: [facts.gid] }
    return { reason: `${device} is for root alone: give it to the group kvm, mode 0660` }
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    return { reason: code === 'ENOENT' ? 'This host has no KVM' : `${device} cannot be opened (${code ?? 'unknown'})` }
  }
}

async function tryAndKeep(uses: AccelerationUses, groups: readonly number[], tries: number, step: Step): Promise<string> {
  const limit = AbortSignal.timeout(uses.limitMs)
  let answer = 'works'
  try {
    await uses.tryBoot(groups, { ...step, signal: AbortSignal.any([step.signal, limit]) })
  } catch (error) {
    answer = limit.aborted
      ? `not within ${uses.limitMs / 1000} seconds`
      : error instanceof Error
        ? (error.message.split('\n', 1)[0] ?? '')
        : String(error)
    // Whoever asked has given up: that says nothing about KVM.
    if (step.signal.aborted) return answer
  }
  await writeFileAtomically(uses.file, `${JSON.stringify({ facts: uses.facts, answer, tries })}\n`).catch((error) => {
    step.log.warn({ err: error, file: uses.file }, 'what was found out about KVM could not be kept')
  })
  return answer
}

async function readKept(uses: AccelerationUses): Promise<Kept | undefined> {
  try {
    const kept: unknown = JSON.parse(await readFile(uses.file, 'utf8'))
    if (typeof kept !== 'object' || kept === null || !('facts' in kept) || !('answer' in kept)) return undefined
    if (JSON.stringify(kept.facts) !== JSON.stringify(uses.facts) || typeof kept.answer !== 'string') return undefined
    // An older version tried once.
    return { answer: kept.answer, tries: 'tries' in kept && typeof kept.tries === 'number' ? kept.tries : 1 }
  } catch {
    return undefined
  }
}
