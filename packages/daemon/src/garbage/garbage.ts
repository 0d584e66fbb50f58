/**
 * What lies on the disk and can be missed: found, told, given up. Each room says what of its own is garbage and removes it; this room
 * decides when, and in which order:
 *
 *     every hour     what no one can miss; golden boots beyond their limits; images that no one has used for long, where that is wanted
 *     a low disk     the same at once, then golden boots, then images, the least recently used first, until there is room
 *     before a no    whoever would be refused for want of room asks for it first
 *     POST /prune    what is asked for
 *
 * Nothing here holds a lock over others' work. A room looks once more in the turn of the event loop in which it removes something, and
 * whoever comes to stand on something says so in a turn of its own: one of the two is first.
 */
import { statfs } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { GARBAGE_KINDS, type GarbageKind } from '@dormouse/api/garbage.ts'
import type { OwnDoings } from '../audit/audit.ts'
import type { Config } from '../config/config.ts'
import type { CollectImages, Images } from '../images/images.ts'
import type { Instance, InstanceId } from '../instances/instance.ts'
import { nameFilter } from '../lib/name-filter.ts'
import type { Logger } from '../log.ts'
import type { CollectableMemory, CollectGoldenBoots } from '../memory/memory.ts'
import type { Paths } from '../paths.ts'
import type { Snapshot } from '../snapshots/snapshots.ts'
import type { DiskLayers } from '../store/disk-layers.ts'
import type { Collected } from './collected.ts'
import { type DiskUsageReport, measureDisk } from './disk-usage.ts'
import { collectLeftovers, type LeftoversUses } from './leftovers.ts'
import { collectOldLogs } from './old-logs.ts'

export type { DiskUsageReport } from './disk-usage.ts'

export interface GarbageUses {
  readonly images: Pick<Images, 'collect' | 'collectStrays' | 'diskUsage'>
  readonly memory: CollectableMemory
  /** Would a golden boot with these facts be made differently now? */
  readonly isStale: CollectGoldenBoots['isStale']
  readonly instances: { list(): readonly Instance[]; isBusy(id: InstanceId): boolean }
  readonly snapshots: { list(): readonly Snapshot[] }
  readonly layers: Pick<DiskLayers, 'uses'>
  readonly volumes: { list(): readonly { readonly disk: readonly string[] }[] }
  readonly paths: Paths
  readonly config: Pick<Config, 'garbage' | 'golden'>
  readonly log: Logger
  readonly audit: Pick<OwnDoings, 'note'>
  readonly crashPoint?: (operation: string, step: string) => Promise<void>
  /** Free bytes of the data directory's file system; for tests. */
  readonly freeBytes?: () => Promise<number>
  /** What files' ages are told by; for tests. */
  readonly nowMs?: () => number
}

export interface CollectGarbage {
  readonly kinds: readonly GarbageKind[]
  /** Also what can be had again. */
  readonly all: boolean
  /** With `all`, of images also what cannot be had again: what was pushed to us or imported. */
  readonly irreplaceable?: boolean
  readonly olderThanMs: number
  readonly dryRun: boolean
}

export interface CollectedKind extends Collected {
  readonly kind: GarbageKind
  readonly error?: Error
}

/** A collection that takes longer is ended; what is left is for the next one. */
const LIMIT_MS = 120_000
/** Whoever waits for room waits no longer. */
const ROOM_LIMIT_MS = 20_000
const FIRST_AFTER_MS = 60_000
const LOOK_EVERY_MS = 30_000
/** After a collection that was not enough no other is begun for so long. */
const IN_VAIN_MS = 600_000
/** On a low disk a golden boot or an image that was used since stays. */
const LATELY_MS = 600_000
const USAGE_KEPT_MS = 5_000

/** Whose wish it was that something goes. */
type AskedBy = 'caller' | 'daemon'

interface Measured {
  readonly report: Promise<DiskUsageReport>
  readonly untilMs: number
}

export class Garbage implements AsyncDisposable {
  readonly #uses: GarbageUses
  readonly #end = new AbortController()
  readonly #timers = new Set<NodeJS.Timeout>()
  /** One collection at a time. */
  #turn: Promise<unknown> = Promise.resolve()
  readonly #making = new Map<'images' | 'disk', Promise<void>>()
  #inVainUntilMs = 0
  #measured: Measured | undefined

  constructor(uses: GarbageUses) {
    this.#uses = { ...uses, log: uses.log.child({ part: 'garbage' }) }
  }

  /** Collects by itself from now on, until it is disposed of. */
  begin(): void {
    const { enabled, intervalMs } = this.#uses.config.garbage
    if (!enabled) return
    const routine = (): void => void this.collectRoutinely().catch(() => undefined)
    this.#timers.add(setTimeout(routine, Math.min(FIRST_AFTER_MS, intervalMs)).unref())
    this.#timers.add(setInterval(routine, intervalMs).unref())
    this.#timers.add(setInterval(() => void this.tendDisk().catch(() => undefined), LOOK_EVERY_MS).unref())
  }

  /** What is done every so often. */
  async collectRoutinely(): Promise<readonly CollectedKind[]> {
    const { autoDelete, minAgeMs, keepLogsMs } = this.#uses.config.garbage
    const ages = { dryRun: false, all: false, olderThanMs: minAgeMs }
    return this.#inTurn(LIMIT_MS, async (signal) => {
      const kinds = ['drafts', 'layers', 'memory_bases', 'golden_boots'] as const
      const done = await this.#collectKinds({ ...ages, kinds }, signal, 'daemon')
      done.push(await this.#one('logs', 'daemon', () => this.#collectLogs(keepLogsMs, false, signal)))
      if (autoDelete.enabled) {
        const wanted = { which: 'unused', unusedForMs: autoDelete.unusedForMs, ...whichMayGo(autoDelete.names) } as const
        done.push(await this.#one('images', 'daemon', () => this.#uses.images.collect(wanted)))
      }
      return done
    })
  }

  /** Of each kind what went, or with `dryRun` would; a kind that failed says why, and the others go on. Waits for its turn. */
  async collect(wanted: CollectGarbage): Promise<readonly CollectedKind[]> {
    return this.#inTurn(LIMIT_MS, (signal) => this.#collectKinds(wanted, signal, 'caller'))
  }

  /**
   * Frees up to `bytes` more than are free now, of images alone where it is their share of the disk that is short, what costs least first.
   * Resolves when it has, when nothing more can be had, or when its time is over; whoever asks looks for itself. Those who ask at once share
   * one. Never rejects. Frees nothing where garbage is only collected when it is asked for.
   */
  async makeRoom(bytes: number, of: 'images' | 'disk' = 'disk'): Promise<void> {
    if (!this.#uses.config.garbage.enabled) return
    const making =
      this.#making.get(of) ??
      this.#inTurn(ROOM_LIMIT_MS, (signal) => this.#makeRoom(bytes, of, signal))
        .catch((err: unknown) => this.#uses.log.warn({ err }, 'no room could be made on the disk'))
        .finally(() => this.#making.delete(of))
    this.#making.set(of, making)
    const { promise: late, resolve } = Promise.withResolvers<void>()
    // It may have to wait for another's turn first.
    const limit = setTimeout(resolve, ROOM_LIMIT_MS)
    await Promise.race([making, late]).finally(() => clearTimeout(limit))
  }

  /** Makes room when the disk is low. */
  async tendDisk(): Promise<void> {
    const { lowDiskBytes } = this.#uses.config.garbage
    const free = await this.#freeBytes()
    if (free >= lowDiskBytes || Date.now() < this.#inVainUntilMs) return
    this.#uses.log.warn({ freeBytes: free, lowDiskBytes }, 'the disk is low: collecting garbage')
    await this.makeRoom(lowDiskBytes - free)
    if ((await this.#freeBytes()) < lowDiskBytes) this.#inVainUntilMs = Date.now() + IN_VAIN_MS
  }

  /** What takes how much. Measured at most every few seconds, for all who ask. */
  usage(): Promise<DiskUsageReport> {
    if (this.#measured !== undefined && Date.now() < this.#measured.untilMs) return this.#measured.report
    const report = measureDisk(this.#uses, this.#nowMs())
    const measured: Measured = { report, untilMs: Number.POSITIVE_INFINITY }
    this.#measured = measured
    const replace = (by: Measured | undefined): void => {
      if (this.#measured === measured) this.#measured = by
    }
    // Kept from when it is there, however long it took.
    report.then(
      () => replace({ report, untilMs: Date.now() + USAGE_KEPT_MS }),
      () => replace(undefined),
    )
    return report
  }

  /** Begins no more, and waits for what is under way. Repeat is harmless. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
    this.#end.abort(new AppError('shutting_down', 'The daemon is shutting down'))
    await this.#turn.catch(() => undefined)
  }

  #inTurn<T>(limitMs: number, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const done = this.#turn
      .catch(() => undefined)
      .then(async () => {
        this.#end.signal.throwIfAborted()
        const late = new AbortController()
        const said = new AppError('timed_out', `Collecting garbage took longer than ${limitMs / 1000}s: what is left is for the next time`)
        const limit = setTimeout(() => late.abort(said), limitMs).unref()
        try {
          return await work(AbortSignal.any([this.#end.signal, late.signal]))
        } finally {
          clearTimeout(limit)
          this.#measured = undefined
        }
      })
    this.#turn = done
    return done
  }

  async #collectKinds(wanted: CollectGarbage, signal: AbortSignal, by: AskedBy): Promise<CollectedKind[]> {
    const done: CollectedKind[] = []
    for (const kind of GARBAGE_KINDS.filter((one) => wanted.kinds.includes(one))) {
      done.push(await this.#one(kind, by, () => this.#collectKind(kind, wanted, signal), wanted))
    }
    return done
  }

  async #one(kind: GarbageKind, by: AskedBy, work: () => Promise<Collected>, { dryRun = false } = {}): Promise<CollectedKind> {
    const { log, crashPoint } = this.#uses
    try {
      await crashPoint?.('garbage', kind)
      const { names, bytes } = await work()
      if (names.length > 0 && !dryRun) log.info({ kind, count: names.length, bytes }, 'garbage collected')
      // A caller's request has a row of its own.
      if (names.length > 0 && by === 'daemon') this.#note(kind, names)
      return { kind, names, bytes }
    } catch (error) {
      log.warn({ err: error, kind }, 'garbage could not be collected')
      return { kind, names: [], bytes: 0, error: error as Error }
    }
  }

  #note(kind: GarbageKind, names: readonly string[]): void {
    const { audit } = this.#uses
    if (kind !== 'images') audit.note({ operation: 'prune', target: { kind, names: names.join(' ') } })
    else for (const name of names) audit.note({ operation: 'deleteImage', target: { name }, subjectId: name })
  }

  async #collectKind(
    kind: GarbageKind,
    { all, irreplaceable = false, olderThanMs, dryRun }: CollectGarbage,
    signal: AbortSignal,
  ): Promise<Collected> {
    signal.throwIfAborted()
    const { images, memory, config, isStale } = this.#uses
    const { minAgeMs } = config.garbage
    switch (kind) {
      case 'images':
        return images.collect({ which: all ? 'unused' : 'dangling', unusedForMs: olderThanMs, onlyReplaceable: !irreplaceable, dryRun })
      case 'layers':
        // What was written just now may be on its way to a row.
        return images.collectStrays({ olderThanMs: Math.max(minAgeMs, olderThanMs), dryRun })
      case 'golden_boots': {
        const limits = all
          ? { keepBytes: 0, keepCount: 0 }
          : { keepBytes: config.golden.maxGoldenBytes, keepCount: config.golden.maxGoldenBoots }
        return memory.collectGoldenBoots({ ...limits, isStale, unusedForMs: olderThanMs, dryRun })
      }
      case 'memory_bases':
        return memory.collectBases({ dryRun })
      case 'drafts':
        return collectLeftovers(this.#leftovers(), { olderThanMs, dryRun, signal, nowMs: this.#nowMs() })
      case 'logs':
        return this.#collectLogs(olderThanMs, dryRun, signal)
    }
  }

  #collectLogs(olderThanMs: number, dryRun: boolean, signal: AbortSignal): Promise<Collected> {
    const { paths, instances } = this.#uses
    return collectOldLogs(
      { paths, instanceIds: () => instances.list().map(({ id }) => id), isBusy: (id) => instances.isBusy(id as InstanceId) },
      { olderThanMs, dryRun, signal, nowMs: this.#nowMs() },
    )
  }

  #leftovers(): LeftoversUses {
    const { paths, instances, snapshots, layers } = this.#uses
    return {
      paths,
      named: () => ({
        sleeps: new Map(instances.list().map(({ id, sleep }) => [id as string, sleep?.generation])),
        snapshots: new Set(snapshots.list().map(({ id, generation }) => paths.snapshotDir(id, generation))),
        layers: layers.uses(),
      }),
    }
  }

  async #makeRoom(bytes: number, of: 'images' | 'disk', signal: AbortSignal): Promise<void> {
    const { memory, images, isStale, config } = this.#uses
    const wanted = (await this.#freeBytes()) + bytes
    const missing = async (): Promise<number> => {
      signal.throwIfAborted()
      return wanted - (await this.#freeBytes())
    }
    const kinds: GarbageKind[] = of === 'images' ? ['layers'] : ['drafts', 'layers', 'memory_bases']
    await this.#collectKinds({ all: false, olderThanMs: config.garbage.minAgeMs, dryRun: false, kinds }, signal, 'daemon')
    const left = await missing()
    if (left > 0 && of === 'disk') {
      const golden = (await memory.list()).filter(({ ref }) => ref.startsWith('golden/'))
      const keepBytes = Math.max(0, golden.reduce((sum, one) => sum + one.bytes, 0) - left)
      const limits = { keepBytes, keepCount: Number.POSITIVE_INFINITY, unusedForMs: LATELY_MS }
      await this.#one('golden_boots', 'daemon', () => memory.collectGoldenBoots({ ...limits, isStale, dryRun: false }))
    }
    const { enabled, names } = config.garbage.autoDelete
    if (!enabled) return
    for (let goes = true; goes && (await missing()) > 0; ) {
      const wantedImages = { which: 'unused', unusedForMs: LATELY_MS, ...whichMayGo(names), atMost: 1 } as const
      const { error, names: gone, bytes: freed } = await this.#one('images', 'daemon', () => images.collect(wantedImages))
      goes = error === undefined && (gone.length > 0 || freed > 0)
    }
  }

  #nowMs(): number {
    return (this.#uses.nowMs ?? Date.now)()
  }

  async #freeBytes(): Promise<number> {
    if (this.#uses.freeBytes !== undefined) return this.#uses.freeBytes()
    const { bavail, bsize } = await statfs(this.#uses.paths.dataDir)
    return bavail * bsize
  }
}

/** Whoever allows every name means what can be had again; whoever names some means those. */
const whichMayGo = (names: readonly string[]): Pick<CollectImages, 'isAllowed' | 'onlyReplaceable'> => ({
  isAllowed: nameFilter(names),
  onlyReplaceable: names.includes('*'),
})
