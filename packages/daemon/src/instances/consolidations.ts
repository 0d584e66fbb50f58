/**
 * While an instance sleeps, its base and the delta of its nap are made into a new base, so that the next nap again writes only what
 * has changed since. One at a time over all instances; a wake cancels it, and loses nothing by it.
 */
import { BackgroundJobs, type Commit } from '../lib/background-jobs.ts'
import type { Logger } from '../log.ts'
import { linkCapture, readManifest } from '../memory/capture-files.ts'
import type { FreshBase, LayeredMemory } from '../memory/memory.ts'
import type { Paths } from '../paths.ts'
import { DISK_RESERVE } from './admission.ts'
import type { Instance, InstanceId } from './instance.ts'
import type { CrashPoint } from './instance-work.ts'
import type { Story } from './instance-worker.ts'
import { beginSleepDraft, removeSleepBut, type SleepDraft } from './sleep-files.ts'

export interface ConsolidationsUses {
  readonly memory: LayeredMemory
  readonly paths: Paths
  readonly log: Logger
  readonly crashPoint: CrashPoint
  /** 0: as fast as it goes. */
  readonly maxBytesPerSecond: number
  find(id: InstanceId): Instance | undefined
  /** Has the instance's worker do it, in turn. */
  perform(id: InstanceId, name: string, story: Story): Promise<void>
}

/**
 * A delta up to this size is carried on instead: loading it takes a few milliseconds, and writing it once more costs the disk far
 * less than a whole base.
 */
const CARRIED_BYTES = 4 << 20
const LIMIT_MS = 1_800_000

export class Consolidations implements AsyncDisposable {
  readonly #uses: ConsolidationsUses
  readonly #jobs = new BackgroundJobs()

  constructor(uses: ConsolidationsUses) {
    this.#uses = uses
  }

  /**
   * Begins when its turn comes. Repeat is harmless. Failures are logged; the sleeping state stays as it is then. `onSettled` unless it was
   * cancelled.
   */
  begin(id: InstanceId, onSettled?: () => void): void {
    this.#jobs.begin(id, {
      prepare: (signal) => this.#prepare(id, signal),
      onError: (error) => this.#uses.log.warn({ err: error, instance: id }, 'a sleeping state could not be consolidated'),
      ...(onSettled === undefined ? {} : { onSettled }),
    })
  }

  /** Resolves when nothing reads or writes for it any more. */
  cancel(id: InstanceId): Promise<void> {
    return this.#jobs.cancel(id)
  }

  /** Resolves when nothing is under way or waiting, or nothing for `id`. */
  settled(id?: InstanceId): Promise<void> {
    return this.#jobs.settled(id)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#jobs[Symbol.asyncDispose]()
  }

  /** A new base, and a generation that stands on it and counts for nothing yet. Leaves nothing behind when it throws. */
  async #prepare(id: InstanceId, signal: AbortSignal): Promise<Commit | undefined> {
    const { memory, paths, log, crashPoint, maxBytesPerSecond } = this.#uses
    const sleep = this.#uses.find(id)?.sleep
    if (sleep === undefined) return undefined
    const dir = paths.instanceSleep(id, sleep.generation)
    const { delta, ...manifest } = await readManifest(dir)
    // One that was compressed has been kept small on purpose.
    if (delta === undefined || delta.compression !== undefined || delta.bytes <= CARRIED_BYTES) return undefined
    const startedAt = performance.now()
    const step = { signal: AbortSignal.any([signal, AbortSignal.timeout(LIMIT_MS)]), log }
    await using undo = new AsyncDisposableStack()
    await crashPoint('consolidate', 'merge')
    // Of one that only naps a workload waits for it.
    const leisure = { maxBytesPerSecond: sleep.wakes ? 0 : maxBytesPerSecond, spareBytes: DISK_RESERVE }
    const fresh = await memory.consolidate({ dir, base: sleep.base }, step, leisure)
    undo.defer(() => fresh.settle())
    step.signal.throwIfAborted()
    await crashPoint('consolidate', 'publish')
    const draft = await beginSleepDraft(paths, id)
    undo.defer(() => draft.discard())
    await linkCapture(dir, draft.dir, { ...manifest, base: fresh.ref, baseSum: fresh.sum })
    await draft.publish()
    undo.move()
    return async () => {
      await this.#commit(id, { from: sleep.generation, draft, fresh, signal })
      if (this.#standsOn(id, draft))
        log.info({ instance: id, bytes: delta.bytes, ms: Math.round(performance.now() - startedAt) }, 'sleeping state consolidated')
    }
  }

  async #commit(id: InstanceId, { from, draft, fresh, signal }: Prepared): Promise<void> {
    try {
      await this.#uses.perform(id, 'consolidate', async (work) => {
        const { sleep } = work.instance
        if (signal.aborted || sleep?.generation !== from) return
        await work.step('record', 10_000)
        work.change({ sleep: { ...sleep, generation: draft.generation, base: fresh.ref } })
        await work.step('sweep', 10_000)
        await removeSleepBut(work.uses.paths, id, draft.generation).catch(work.leaveForSweep('older sleeping states'))
      })
    } finally {
      if (!this.#standsOn(id, draft)) await draft.discard()
      await fresh.settle()
      await this.#uses.memory.sweepBases()
    }
  }

  #standsOn(id: InstanceId, { generation }: SleepDraft): boolean {
    return this.#uses.find(id)?.sleep?.generation === generation
  }
}

interface Prepared {
  /** The generation that it is made of. */
  readonly from: string
  readonly draft: SleepDraft
  readonly fresh: FreshBase
  readonly signal: AbortSignal
}
