/**
 * Gives host memory back, what costs least first:
 *
 *     VMs that wait ─► bases that no VM maps, in memory or in the page cache ─► naps
 *
 * A nap is a standby, a consolidation and a restore: what the guest has written becomes part of a base on disk, of which only what is used
 * again comes back. Nothing is ever taken out of a guest's memory, nor out of a base. Whoever ran goes on, about a second later.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import type { VmUsage } from '../hypervisors/hypervisor.ts'
import type { Logger } from '../log.ts'
import type { Instance, InstanceId } from './instance.ts'

export interface ReclaimRequest {
  /** 0 ends what an earlier request holds. */
  readonly bytes: number
  /** So long no VM is made to wait again. */
  readonly holdMs: number
  /** Says what would be done. */
  readonly dryRun: boolean
}

export interface ReclaimAction {
  readonly instance: Instance
  readonly bytes: number
  readonly status: 'planned' | 'reclaimed' | 'protected' | 'skipped' | 'failed'
  /** Why nothing, or not all, was taken of it. */
  readonly error?: string
}

export interface Reclaimed {
  readonly plannedBytes: number
  readonly appliedBytes: number
  readonly holdUntilMs?: number
  readonly actions: readonly ReclaimAction[]
}

export interface ReclaimUses {
  readonly log: Logger
  list(): readonly Instance[]
  usage(id: InstanceId): Promise<VmUsage | undefined>
  /** Why it cannot nap now; undefined when it can. */
  obstacle(instance: Instance): string | undefined
  /** Puts it to sleep and wakes it on a base of its own. */
  nap(id: InstanceId): Promise<void>
  /** Ends VMs that wait, and keeps others from being made until then; without a time, ends that. Bytes that they had of their own. */
  releaseWaiting(untilMs: number | undefined): Promise<number>
  /** What those have. Bytes. */
  waitingBytes(): number
  /** Lets go of bases that no VM maps; with `dryRun` says how much that would be, at most. Bytes. */
  releaseBases(options: { readonly dryRun: boolean }): Promise<number>
}

/** What a VM that has just woken has of its own: QEMU itself, its translated code, pages that are always written. */
export const FLOOR_BYTES = 96 << 20

/** Throws only when nothing was begun. One at a time. */
export async function reclaimMemory({ bytes, holdMs, dryRun }: ReclaimRequest, uses: ReclaimUses): Promise<Reclaimed> {
  const candidates = await candidatesOf(uses)
  const idleBytes = bytes === 0 ? 0 : await idleBytesOf(bytes, uses)
  const wanted = planOf(candidates, Math.max(0, bytes - idleBytes))
  const plannedBytes = wanted.reduce((sum, { bytes: own }) => sum + own, idleBytes)
  if (dryRun) return { plannedBytes, appliedBytes: 0, actions: wanted }
  // More may have to nap than that: of what is idle some may turn out to be in use.
  const plan = planOf(candidates, bytes)
  if (bytes === 0) {
    await uses.releaseWaiting(undefined)
    return { plannedBytes: 0, appliedBytes: 0, actions: [] }
  }
  const holdUntilMs = Date.now() + holdMs
  let appliedBytes = await uses.releaseWaiting(holdUntilMs)
  if (appliedBytes < bytes) appliedBytes += await uses.releaseBases({ dryRun: false })
  const actions: ReclaimAction[] = []
  for (const action of plan) {
    const { instance } = action
    if (action.status !== 'planned') actions.push(action)
    else if (appliedBytes >= bytes) actions.push({ instance, bytes: 0, status: 'skipped', error: 'what was asked for has been given back' })
    else {
      const done = await napOf(instance, uses)
      appliedBytes += done.bytes
      actions.push(done)
    }
  }
  // What the naps have written to disk need not stay in memory.
  if (actions.some(({ status }) => status === 'reclaimed')) appliedBytes += await uses.releaseBases({ dryRun: false })
  return { plannedBytes, appliedBytes, ...(holdMs === 0 ? {} : { holdUntilMs }), actions }
}

/** What no instance has, as far as it would be taken. */
async function idleBytesOf(wanted: number, uses: ReclaimUses): Promise<number> {
  const waiting = uses.waitingBytes()
  return waiting < wanted ? waiting + (await uses.releaseBases({ dryRun: true })) : waiting
}

interface Candidate {
  readonly instance: Instance
  readonly privateBytes: number
  readonly obstacle: string | undefined
}

async function candidatesOf(uses: ReclaimUses): Promise<Candidate[]> {
  const found: Candidate[] = []
  for (const instance of uses.list()) {
    if (instance.vm === undefined) continue
    const { memoryPrivateBytes: privateBytes = 0 } = (await uses.usage(instance.id)) ?? {}
    found.push({ instance, privateBytes, obstacle: uses.obstacle(instance) })
  }
  return found
}

/** Those with the most of their own first, until it is enough. Pure. */
export function planOf(candidates: readonly Candidate[], wanted: number): ReclaimAction[] {
  let left = wanted
  return [...candidates]
    .sort((a, b) => b.privateBytes - a.privateBytes)
    .map(({ instance, privateBytes, obstacle }): ReclaimAction => {
      const bytes = privateBytes - FLOOR_BYTES
      if (obstacle !== undefined) return { instance, bytes: 0, status: 'skipped', error: obstacle }
      if (bytes <= 0) return { instance, bytes: 0, status: 'protected', error: 'it has written little of its memory since it was started' }
      if (left <= 0) return { instance, bytes: 0, status: 'skipped', error: 'others have enough' }
      left -= bytes
      return { instance, bytes, status: 'planned', ...ofAdded(instance) }
    })
}

async function napOf(instance: Instance, uses: ReclaimUses): Promise<ReclaimAction> {
  const own = async (): Promise<number> => (await uses.usage(instance.id))?.memoryPrivateBytes ?? 0
  const before = await own()
  try {
    await uses.nap(instance.id)
  } catch (error) {
    uses.log.warn({ err: error, instance: instance.id }, 'an instance could not nap to give memory back')
    return { instance, bytes: 0, status: 'failed', error: error instanceof AppError ? error.message : 'its nap failed' }
  }
  return { instance, bytes: Math.max(0, before - (await own())), status: 'reclaimed', ...ofAdded(instance) }
}

/** It is captured as a whole and stands on no base, so a nap brings all of it back. */
const ofAdded = ({ hotplugBytes }: Pick<Instance, 'hotplugBytes'>): Pick<ReclaimAction, 'error'> =>
  hotplugBytes === 0
    ? {}
    : { error: `what is in its added memory (${formatSize(hotplugBytes)}) stays: it goes with a lower hotplug_size only` }
