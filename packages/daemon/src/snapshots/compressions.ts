/**
 * Memories of snapshots, compressed after the fact. One that is compressed stands on nothing that is its alone, so a base that it stood on
 * becomes a part of it: it then outlives what others make of that base. It is a directory of its own beside the one that there was; the row
 * that names it is the commit point, and comes when no one goes on from the snapshot.
 */
import { once } from 'node:events'
import { mkdir, rm } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Events } from '../events/events.ts'
import { bytesIn } from '../host/bytes-in.ts'
import { publishDirectory } from '../host/files.ts'
import type { BackgroundJobs, Commit } from '../lib/background-jobs.ts'
import { createId } from '../lib/create-id.ts'
import type { Logger } from '../log.ts'
import type { CompressedCapture, LayeredMemory } from '../memory/memory.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import type { Snapshot, SnapshotRows } from '../store/snapshots.ts'

export interface SnapshotCompressionsUses {
  readonly db: Database
  readonly rows: SnapshotRows
  readonly events: Events
  /** Shared with all else that is compressed. */
  readonly jobs: BackgroundJobs
  readonly memory: LayeredMemory
  readonly paths: Paths
  readonly log: Logger
  /** Does someone go on from the snapshot? */
  isHeld(id: string): boolean
  whenReleased(id: string): Promise<void>
  /** See docs/lifecycle.md. */
  readonly crashPoint: (operation: string, step: string) => Promise<void>
}

/** At the highest level some 3 MB are done in a second. */
const LIMIT_MS = 6 * 3_600_000

export class SnapshotCompressions {
  readonly #uses: SnapshotCompressionsUses

  constructor(uses: SnapshotCompressionsUses) {
    this.#uses = uses
  }

  /** Begins when its turn comes, if its row asks for it. Repeat is harmless. */
  begin(id: string): void {
    this.#uses.jobs.begin(keyOf(id), {
      prepare: (signal) => this.#prepare(id, signal),
      onError: (error) => this.#fail(id, error),
    })
  }

  /** Resolves when nothing reads or writes for it any more. */
  cancel(id: string): Promise<void> {
    return this.#uses.jobs.cancel(keyOf(id))
  }

  /** The same memory, compressed, in a directory that counts for nothing yet. Leaves nothing behind when it throws. */
  async #prepare(id: string, signal: AbortSignal): Promise<Commit | undefined> {
    const { rows, memory, paths, log, crashPoint } = this.#uses
    const snapshot = rows.find(id)
    if (snapshot?.base === undefined || snapshot.compression === undefined || snapshot.compressionState !== 'compressing') return undefined
    const { base, compression } = snapshot
    const startedAt = performance.now()
    const step = { signal: AbortSignal.any([signal, AbortSignal.timeout(LIMIT_MS)]), log }
    const generation = createId()
    const target = paths.snapshotDir(id, generation)
    const draft = `${target}.draft`
    await using undo = new AsyncDisposableStack()
    await crashPoint('compress_snapshot', 'write')
    await mkdir(draft, { mode: 0o700 })
    undo.defer(() => rm(draft, { recursive: true, force: true }))
    const from = { dir: paths.snapshotDir(id, snapshot.generation), base }
    const made = await memory.compress(from, { into: draft, compression, isAlone: true }, step)
    if (made === undefined) throw new AppError('not_supported', 'It holds no memory of its own that could be compressed')
    undo.use(made)
    await crashPoint('compress_snapshot', 'publish')
    await publishDirectory(draft, target)
    undo.move()
    return async () => {
      await this.#commit(snapshot, { generation, made, signal })
      const { bytes, plainBytes } = made.delta
      log.info({ snapshot: id, ...compression, plainBytes, bytes, ms: Math.round(performance.now() - startedAt) }, 'snapshot compressed')
    }
  }

  async #commit({ id, generation: former }: Snapshot, { generation, made, signal }: Prepared): Promise<void> {
    const { rows, memory, paths, crashPoint } = this.#uses
    const [old, target] = [paths.snapshotDir(id, former), paths.snapshotDir(id, generation)]
    await using after = new AsyncDisposableStack()
    after.defer(() => memory.sweepBases())
    after.use(made)
    const grownBytes = (await bytesIn(target)) - (await bytesIn(old))
    await crashPoint('compress_snapshot', 'record')
    // Asked again behind every wait: from here to the row nothing awaits.
    while (this.#uses.isHeld(id) && !signal.aborted) await Promise.race([this.#uses.whenReleased(id), aborted(signal)])
    const snapshot = rows.find(id)
    if (snapshot === undefined || signal.aborted) return await rm(target, { recursive: true, force: true })
    const { bytes: compressedBytes, plainBytes: uncompressedBytes = compressedBytes } = made.delta
    const sizes = { bytes: snapshot.bytes + grownBytes, compressedBytes, uncompressedBytes }
    try {
      this.#change({ ...snapshot, ...sizes, generation, base: made.base, compressionState: 'compressed' })
    } catch (error) {
      await rm(target, { recursive: true, force: true })
      throw error
    }
    await crashPoint('compress_snapshot', 'sweep')
    await rm(old, { recursive: true, force: true })
  }

  #fail(id: string, error: unknown): void {
    const { rows, log } = this.#uses
    log.warn({ err: error, snapshot: id }, 'a snapshot could not be compressed')
    const snapshot = rows.find(id)
    if (snapshot?.compressionState !== 'compressing') return
    this.#change({ ...snapshot, compressionState: 'error', compressionError: error instanceof Error ? error.message : String(error) })
  }

  #change(snapshot: Snapshot): void {
    const { db, rows, events } = this.#uses
    const data = { compression_state: snapshot.compressionState, compression_error: snapshot.compressionError }
    db.transaction(
      () => {
        rows.update(snapshot)
        events.record({ kind: 'snapshot.changed', subject: snapshot.id, data })
      },
      { evenWhenFull: true },
    )
  }
}

interface Prepared {
  readonly generation: string
  readonly made: CompressedCapture
  readonly signal: AbortSignal
}

const aborted = (signal: AbortSignal): Promise<unknown> => once(signal, 'abort')

const keyOf = (id: string): string => `snapshot ${id}`
