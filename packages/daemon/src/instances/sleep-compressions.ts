/**
 * While an instance sleeps, what it holds in memory is compressed, once it has slept as long as its row says. A wake cancels it, and
 * loses nothing by it. A base of its own becomes a part of what is compressed; one that others stand on stays as it is.
 */
import type { BaseRef } from '../hypervisors/hypervisor.ts'
import type { BackgroundJobs, Commit } from '../lib/background-jobs.ts'
import type { Logger } from '../log.ts'
import type { CompressedCapture, LayeredMemory } from '../memory/memory.ts'
import type { Paths } from '../paths.ts'
import type { Instance, InstanceId } from './instance.ts'
import type { CrashPoint } from './instance-work.ts'
import type { Story } from './instance-worker.ts'
import { beginSleepDraft, removeSleepBut, type SleepDraft } from './sleep-files.ts'

export interface SleepCompressionsUses {
  /** Shared with all else that is compressed. */
  readonly jobs: BackgroundJobs
  readonly memory: LayeredMemory
  readonly paths: Paths
  readonly log: Logger
  readonly crashPoint: CrashPoint
  find(id: InstanceId): Instance | undefined
  isBaseShared(base: BaseRef, id: InstanceId): boolean
  /** Resolves when no consolidation reads or writes for it any more: what is compressed needs no base of its own. */
  endConsolidation(id: InstanceId): Promise<void>
  /** Has the instance's worker do it, in turn. */
  perform(id: InstanceId, name: string, story: Story): Promise<void>
}

/** At the highest level some 3 MB are done in a second. */
const LIMIT_MS = 6 * 3_600_000

export class SleepCompressions {
  readonly #uses: SleepCompressionsUses

  constructor(uses: SleepCompressionsUses) {
    this.#uses = uses
  }

  /** Begins when its row says so, and its turn comes. Repeat is harmless. What fails is tried again by the next daemon. */
  begin(id: InstanceId): void {
    const due = this.#uses.find(id)?.sleep?.compress
    if (due === undefined) return
    this.#uses.jobs.begin(keyOf(id), {
      notBeforeMs: due.atMs,
      prepare: (signal) => this.#prepare(id, signal),
      onError: (error) => this.#uses.log.warn({ err: error, instance: id }, 'a sleeping state could not be compressed'),
    })
  }

  /** Resolves when nothing reads or writes for it any more. */
  cancel(id: InstanceId): Promise<void> {
    return this.#uses.jobs.cancel(keyOf(id))
  }

  /** The same sleeping state, compressed, as a generation that counts for nothing yet. Leaves nothing behind when it throws. */
  async #prepare(id: InstanceId, signal: AbortSignal): Promise<Commit | undefined> {
    const { memory, paths, log, crashPoint } = this.#uses
    await this.#uses.endConsolidation(id)
    const sleep = this.#uses.find(id)?.sleep
    if (sleep?.compress === undefined) return undefined
    const { atMs: _, ...compression } = sleep.compress
    const startedAt = performance.now()
    const step = { signal: AbortSignal.any([signal, AbortSignal.timeout(LIMIT_MS)]), log }
    await using undo = new AsyncDisposableStack()
    step.signal.throwIfAborted()
    await crashPoint('compress', 'write')
    const draft = await beginSleepDraft(paths, id)
    undo.defer(() => draft.discard())
    const isAlone = !this.#uses.isBaseShared(sleep.base, id)
    const from = { dir: paths.instanceSleep(id, sleep.generation), base: sleep.base }
    const made = await memory.compress(from, { into: draft.dir, compression, isAlone }, step)
    if (made === undefined) return () => this.#forget(id, sleep.generation)
    undo.use(made)
    await crashPoint('compress', 'publish')
    await draft.publish()
    undo.move()
    return async () => {
      await this.#commit(id, { from: sleep.generation, draft, made, signal })
      const { bytes, plainBytes } = made.delta
      if (this.#standsOn(id, draft))
        log.info(
          { instance: id, ...compression, plainBytes, bytes, ms: Math.round(performance.now() - startedAt) },
          'sleeping state compressed',
        )
    }
  }

  async #commit(id: InstanceId, { from, draft, made, signal }: Prepared): Promise<void> {
    try {
      await this.#uses.perform(id, 'compress', async (work) => {
        const { sleep } = work.instance
        if (signal.aborted || sleep?.generation !== from) return
        await work.step('record', 10_000)
        const { compress: _, ...kept } = sleep
        work.change({ sleep: { ...kept, generation: draft.generation, base: made.base } })
        await work.step('sweep', 10_000)
        await removeSleepBut(work.uses.paths, id, draft.generation).catch(work.leaveForSweep('older sleeping states'))
      })
    } finally {
      if (!this.#standsOn(id, draft)) await draft.discard()
      await made[Symbol.asyncDispose]()
      await this.#uses.memory.sweepBases()
    }
  }

  /** There is nothing to compress: all that it holds, others hold too. */
  #forget(id: InstanceId, generation: string): Promise<void> {
    return this.#uses.perform(id, 'compress', async (work) => {
      const { sleep } = work.instance
      if (sleep?.generation !== generation) return
      const { compress: _, ...kept } = sleep
      work.change({ sleep: kept })
    })
  }

  #standsOn(id: InstanceId, { generation }: SleepDraft): boolean {
    return this.#uses.find(id)?.sleep?.generation === generation
  }
}

interface Prepared {
  /** The generation that it is made of. */
  readonly from: string
  readonly draft: SleepDraft
  readonly made: CompressedCapture
  readonly signal: AbortSignal
}

const keyOf = (id: InstanceId): string => `instance ${id}`
