/**
 * While an instance sleeps, its base and the delta of its nap are made into a new base, so that the next nap again writes only what
 * has changed since. One at a time over all instances; a wake cancels it, and loses nothing by it.
 */
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import { linkCapture, readManifest } from '../memory/capture-files.ts'
import type { FreshBase, LayeredMemory } from '../memory/memory.ts'
import type { Paths } from '../paths.ts'
import type { Instance, InstanceId } from './instance.ts'
import type { CrashPoint } from './instance-work.ts'
import type { Story } from './instance-worker.ts'
import { beginSleepDraft, removeSleepBut, type SleepDraft } from './sleep-files.ts'

export interface ConsolidationsUses {
  readonly memory: LayeredMemory
  readonly paths: Paths
  readonly log: Logger
  readonly crashPoint: CrashPoint
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
  readonly #wanted = new Map<InstanceId, AbortController>()
  /** What is under way, as far as it reads and writes files before it asks for its turn with the worker. */
  #preparing: { readonly id: InstanceId; readonly done: Promise<unknown> } | undefined
  #turn: Promise<void> = Promise.resolve()
  #isClosed = false

  constructor(uses: ConsolidationsUses) {
    this.#uses = uses
  }

  /** Begins when its turn comes. Repeat is harmless. Failures are logged; the sleeping state stays as it is then. */
  begin(id: InstanceId): void {
    if (this.#wanted.has(id) || this.#isClosed) return
    const ended = new AbortController()
    this.#wanted.set(id, ended)
    this.#turn = this.#turn
      .then(() => (ended.signal.aborted ? undefined : this.#consolidate(id, ended.signal)))
      .catch((error: unknown) => {
        if (!ended.signal.aborted) this.#uses.log.warn({ err: error, instance: id }, 'a sleeping state could not be consolidated')
      })
      .finally(() => {
        if (this.#wanted.get(id) === ended) this.#wanted.delete(id)
      })
  }

  /** Resolves when nothing reads or writes for it any more. */
  async cancel(id: InstanceId): Promise<void> {
    this.#wanted.get(id)?.abort()
    this.#wanted.delete(id)
    if (this.#preparing?.id === id) await this.#preparing.done.catch(() => undefined)
  }

  /** Resolves when nothing is under way or waiting. */
  async settled(): Promise<void> {
    let turn: Promise<void> | undefined
    while (turn !== this.#turn) {
      turn = this.#turn
      await turn
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    for (const ended of this.#wanted.values()) ended.abort()
    this.#wanted.clear()
    await this.settled()
  }

  async #consolidate(id: InstanceId, signal: AbortSignal): Promise<void> {
    const { memory, log } = this.#uses
    const startedAt = performance.now()
    const preparing = this.#prepare(id, { signal: AbortSignal.any([signal, AbortSignal.timeout(LIMIT_MS)]), log })
    this.#preparing = { id, done: preparing }
    const prepared = await preparing.finally(() => {
      this.#preparing = undefined
    })
    if (prepared === undefined) return
    const { from, draft, fresh, bytes } = prepared
    try {
      await this.#uses.perform(id, 'consolidate', async (work) => {
        const { sleep } = work.instance
        if (signal.aborted || sleep?.generation !== from) return
        await work.step('record', 10_000)
        work.change({ sleep: { ...sleep, generation: draft.generation, base: fresh.ref } })
        await work.step('sweep', 10_000)
        await removeSleepBut(work.uses.paths, id, draft.generation).catch(work.leaveForSweep('older sleeping states'))
      })
      if (this.#standsOn(id, draft))
        log.info({ instance: id, bytes, ms: Math.round(performance.now() - startedAt) }, 'sleeping state consolidated')
    } finally {
      if (!this.#standsOn(id, draft)) await draft.discard()
      await fresh.settle()
      await memory.sweepBases()
    }
  }

  /** A new base, and a generation that stands on it and counts for nothing yet. Leaves nothing behind when it throws. */
  async #prepare(id: InstanceId, step: Step): Promise<Prepared | undefined> {
    const { memory, paths, crashPoint } = this.#uses
    const sleep = this.#uses.find(id)?.sleep
    if (sleep === undefined) return undefined
    const dir = paths.instanceSleep(id, sleep.generation)
    const { delta, ...manifest } = await readManifest(dir)
    if (delta === undefined || delta.bytes <= CARRIED_BYTES) return undefined
    await using undo = new AsyncDisposableStack()
    await crashPoint('consolidate', 'merge')
    const fresh = await memory.consolidate({ dir, base: sleep.base }, step)
    undo.defer(() => fresh.settle())
    step.signal.throwIfAborted()
    await crashPoint('consolidate', 'publish')
    const draft = await beginSleepDraft(paths, id)
    undo.defer(() => draft.discard())
    await linkCapture(dir, draft.dir, { ...manifest, base: fresh.ref, baseSum: fresh.sum })
    await draft.publish()
    undo.move()
    return { from: sleep.generation, draft, fresh, bytes: delta.bytes }
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
  readonly bytes: number
}
