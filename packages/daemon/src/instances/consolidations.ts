/**
 * While an instance sleeps, its base and the delta of its nap are made into a new base, so that the next nap again writes only what
 * has changed since. One at a time over all instances; a wake cancels it, and loses nothing by it.
 */
import type { Logger } from '../log.ts'
import { linkCapture, readManifest } from '../memory/capture-files.ts'
import type { LayeredMemory } from '../memory/memory.ts'
import type { Paths } from '../paths.ts'
import type { Instance, InstanceId } from './instance.ts'
import type { Story } from './instance-worker.ts'
import { beginSleepDraft, removeSleepBut } from './sleep-files.ts'

export interface ConsolidationsUses {
  readonly memory: LayeredMemory
  readonly paths: Paths
  readonly log: Logger
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
  /** What is under way, as far as it reads and writes files. */
  #merging: { readonly id: InstanceId; readonly done: Promise<unknown> } | undefined
  #turn: Promise<void> = Promise.resolve()

  constructor(uses: ConsolidationsUses) {
    this.#uses = uses
  }

  /** Begins when its turn comes. Repeat is harmless. Failures are logged; the sleeping state stays as it is then. */
  begin(id: InstanceId): void {
    if (this.#wanted.has(id)) return
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
    if (this.#merging?.id === id) await this.#merging.done.catch(() => undefined)
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
    for (const ended of this.#wanted.values()) ended.abort()
    this.#wanted.clear()
    await this.#merging?.done.catch(() => undefined)
  }

  async #consolidate(id: InstanceId, signal: AbortSignal): Promise<void> {
    const { memory, paths, log } = this.#uses
    const sleep = this.#uses.find(id)?.sleep
    if (sleep === undefined) return
    const dir = paths.instanceSleep(id, sleep.generation)
    const { delta, ...manifest } = await readManifest(dir)
    if (delta === undefined || delta.bytes <= CARRIED_BYTES) return
    const startedAt = performance.now()
    const step = { signal: AbortSignal.any([signal, AbortSignal.timeout(LIMIT_MS)]), log }
    const merging = memory.consolidate({ dir, base: sleep.base }, step)
    this.#merging = { id, done: merging }
    const fresh = await merging.finally(() => {
      this.#merging = undefined
    })
    try {
      const draft = await beginSleepDraft(paths, id)
      try {
        await linkCapture(dir, draft.dir, { ...manifest, base: fresh.ref, baseSum: fresh.sum })
        await draft.publish()
        await this.#uses.perform(id, 'consolidate', async (work) => {
          const { sleep: current } = work.instance
          if (signal.aborted || current?.generation !== sleep.generation) return draft.discard()
          await work.step('record', 10_000)
          work.change({ sleep: { ...current, generation: draft.generation, base: fresh.ref } })
          await removeSleepBut(paths, id, draft.generation)
        })
      } catch (error) {
        if (this.#uses.find(id)?.sleep?.generation !== draft.generation) await draft.discard()
        throw error
      }
      log.info({ instance: id, bytes: delta.bytes, ms: Math.round(performance.now() - startedAt) }, 'sleeping state consolidated')
    } finally {
      await fresh.settle()
      await memory.sweepBases()
    }
  }
}
