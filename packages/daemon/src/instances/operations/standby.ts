import type { Compression } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import type { Sleep } from '../../store/instance-record.ts'
import { chooseCompression, compressionDelayMs } from '../compression-choice.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { beginSleepDraft, removeSleepBut } from '../sleep-files.ts'
import { freezeWorkload } from './freeze-workload.ts'
import { runOn, thaw } from './run-on.ts'

// Memory goes to disk: a large guest on a slow disk takes its time, and its workload stands still meanwhile.
const CAPTURE_LIMIT_MS = 600_000

/**
 * Looks whether it is in use: a sentence says why it is to stay awake after all, undefined that it is not. Asked before anything is done,
 * while the VM stands still, and, `isLast`, when nothing but the record is left.
 */
export type StayAwake = (look: { readonly step: Step; readonly isLast: boolean }) => Promise<string | undefined>

export interface StandbyOptions {
  /** In place of what the instance's policy says. */
  readonly compression?: Compression | 'off'
  readonly compressionDelayMs?: number
  /** It is to be woken again at once; kept with its memory, for a daemon that dies meanwhile. */
  readonly wakes?: boolean
  /** No one asked for it: whoever uses it comes first. Then it rejects with what `isKeptAwake` knows, and the VM runs on. */
  readonly stayAwake?: StayAwake
}

/**
 * Running → Standby: what has changed in memory goes to disk, then the VM goes. The record is the commit point: before it every
 * failure leaves a VM that runs on; behind it the sleeping state is the truth, and resuming the VM would let disk and memory drift apart.
 */
export async function standby(work: InstanceWork, options: StandbyOptions = {}): Promise<void> {
  const live = liveOf(work)
  const { paths } = work.uses
  const { id } = work.instance
  await assertUnused(work, options)
  await work.step('draft', 10_000)
  // Its delta alone brings no one back, and the VM is about to go.
  const { machine } = live.vm.handle
  if (machine !== undefined) await work.uses.memory.assertThere(machine)
  const draft = await beginSleepDraft(paths, id)
  let pausedAtMs: number
  {
    await using undo = new AsyncDisposableStack()
    undo.defer(() => draft.discard())

    undo.defer(() => thaw(work, live))
    const isFrozen = await freezeWorkload(work, live)

    // Deferred before the pause, since one that timed out may still have happened; resume is harmless on repeat.
    undo.defer(() => runOn(work, live))
    await live.vm.pause(await work.step('pause', 10_000))
    pausedAtMs = Date.now()
    await assertUnused(work, options)

    const { bytes, stored } = await live.vm.capture(draft.dir, await work.step('capture', CAPTURE_LIMIT_MS))
    const { base } = await stored
    work.log.info({ bytes, ms: Date.now() - pausedAtMs }, 'memory captured')
    await work.step('publish', 10_000)
    await draft.publish()
    await assertUnused(work, options, { isLast: true })
    await work.step('record', 10_000)
    work.change(
      {
        state: 'Standby',
        vm: undefined,
        stoppedAtMs: Date.now(),
        sleep: {
          generation: draft.generation,
          base,
          ...compressOf(work, options),
          ...(isFrozen ? {} : { isUnfrozen: true }),
          ...(options.wakes ? { wakes: true } : {}),
        },
      },
      { via: { state: 'Paused', sinceMs: pausedAtMs } },
    )
    undo.move()
  }
  await work.step('kill', 60_000)
  await work.host.letGo(new AppError('guest_unavailable', `The instance ${work.instance.name} was put into standby`))
  const [isGone] = await Promise.all([
    ended(live).catch(work.leaveForSweep('VM')),
    // Not later: once this is answered, the next generation is drafted beside it.
    removeSleepBut(paths, id, draft.generation).catch(work.leaveForSweep('older sleeping states')),
  ])
  const sweep = async (): Promise<void> => {
    await work.step('sweep', 30_000)
    await work.sweep().catch(work.leaveForSweep('run directory'))
    await work.uses.memory.sweepBases().catch(work.leaveForSweep('memory bases'))
  }
  if (isGone === true) work.afterwards('what a nap leaves behind', sweep)
  // It is ended with its directory then.
  else await sweep()
}

const LOOK_LIMIT_MS = 10_000

async function assertUnused(work: InstanceWork, { stayAwake }: StandbyOptions, { isLast = false } = {}): Promise<void> {
  if (stayAwake === undefined) return
  const why = await stayAwake({ step: await work.step('look', LOOK_LIMIT_MS), isLast })
  if (why === undefined) return
  throw keptAwakeError(work.instance.name, why)
}

const keptAwake = new WeakSet<object>()
export function keptAwakeError(name: string, why: string): AppError {
  const error = new AppError('conflict', `The instance ${name} stays awake: ${why}`)
  keptAwake.add(error)
  return error
}
/** Of a standby that no one had asked for, and that came in the way of someone. */
export const isKeptAwake = (error: unknown): boolean => typeof error === 'object' && error !== null && keptAwake.has(error)

async function ended(live: LiveVm): Promise<boolean> {
  await live.vm.kill()
  return true
}

function compressOf(
  { instance, uses }: InstanceWork,
  { compression, compressionDelayMs: delayMs }: StandbyOptions,
): Pick<Sleep, 'compress'> {
  const chosen = chooseCompression(compression, instance, uses.settings.compression)
  return chosen === undefined ? {} : { compress: { ...chosen, atMs: Date.now() + compressionDelayMs(delayMs, instance) } }
}

/** The VM of an instance that the table says is running. */
export function liveOf(work: InstanceWork): LiveVm {
  if (work.live === undefined) throw new AppError('guest_unavailable', `The VM of ${work.instance.name} is gone`)
  return work.live
}
