/**
 * The lowest layer of guest memory: golden boots, made once per shape of machine and woken ever after.
 *
 *     dir/<key>/memory         the machine's RAM, sparse
 *     dir/<key>/state          its devices and CPUs
 *     dir/<key>/manifest.json  what it was made from, sizes and checksums; without it the directory counts for nothing
 *     dir/<key>.<n>.draft/     one in the making; only a rename makes it count
 *
 * A base is loaded into a sealed memfd when it is first asked for and stays loaded while it is used; its state is held open beside it.
 * VMs keep their own mapping and whoever is about to start one is given descriptors, so neither letting a base go nor deleting its
 * files ever harms one that runs or starts.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { mkdir, open, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Logger } from 'pino'
import { publishDirectory } from '../host/files.ts'
import type { Step } from '../lib/step.ts'
import { type HeldMemory, loadBase, type MemorySum, makeBlank, storeBase } from './base-memory.ts'
import { isDamage, isThere } from './capture-files.ts'

export interface GoldenBootsUses {
  readonly dir: string
  readonly shimPath: string
  readonly log: Logger
  /** Disk that all golden boots together may take; the least recently used ones go first. */
  readonly maxBytes?: number
  /** The same for how many there may be. */
  readonly maxCount?: number
  /** One that was let go less than so long ago stays: the VM that came of it may not be on record yet. */
  readonly settleMs?: number
  /** Bases kept in memory though no VM is being started from them. */
  readonly maxLoaded?: number
  /** Does a VM, a sleeping state or a snapshot stand on it? Then it stays, stale or not. */
  readonly isNeeded?: (key: string) => boolean
}

/** Which golden boots go. One that something stands on, that is held, being made or was let go just now never does. */
export interface CollectGoldenBoots {
  /** Would it be made differently now? Those go first, whatever the limits say. */
  readonly isStale: IsStale
  /** Of the others the least recently used ones go, until no more than this is left. Those that must stay count, too. */
  readonly keepBytes: number
  readonly keepCount: number
  /** Those that go for want of room were not used for so long. */
  readonly unusedForMs: number
  readonly dryRun: boolean
}

/** A golden boot on disk. */
export interface KeptGoldenBoot {
  readonly key: string
  readonly bytes: number
  /** It cannot go now. */
  readonly isNeeded: boolean
}

type IsStale = (facts: GoldenShape['facts']) => boolean | Promise<boolean>

/** Everything that a golden boot depends on. Two shapes with the same facts wake from the same one. */
export interface GoldenShape {
  readonly memoryBytes: number
  readonly facts: Readonly<Record<string, string | number>>
}

/** Boots a machine on `memory`, parks it, writes its device state to `stateFile` and ends it. Must leave no process when it throws. */
export type CaptureGolden = (memory: FileHandle, stateFile: string, step: Step) => Promise<void>

/** A golden boot in use. Dispose it when the shim has been started. */
export interface GoldenBoot extends Disposable {
  readonly key: string
  readonly base: FileHandle
  /** Of its memory: one that was made anew under the same key is another. */
  readonly sum: string
  /** Opens the device state anew, from its beginning; also when its file is deleted or replaced meanwhile. */
  readonly stateFile: string
  /**
   * Says that it cannot be used. The next one who asks has it made anew, unless something stands on it: made anew it would be another
   * memory. Those who hold it may go on holding it. Repeat is harmless.
   */
  discard(): Promise<void>
}

interface Manifest {
  readonly version: 1
  readonly facts: GoldenShape['facts']
  readonly memory: MemorySum & { readonly bytes: number }
  readonly state: { readonly bytes: number; readonly sha256: string }
  readonly createdAt: string
}

interface Loaded {
  readonly key: string
  readonly base: HeldMemory
  readonly state: FileHandle
  users: number
  usedAtMs: number
}

interface OnDisk {
  readonly name: string
  readonly usedAtMs: number
  readonly bytes: number
}

type Load = (key: string, step: Step) => Promise<Loaded>

const MAKE_LIMIT_MS = 180_000
const SETTLE_MS = 300_000
/** After a failure no one tries again for so long: a boot that does not come up takes its whole time limit. */
const FAILURE_KEPT_MS = 60_000

export class GoldenBoots implements AsyncDisposable {
  readonly #uses: Required<GoldenBootsUses>
  readonly #loaded = new Map<string, Loaded>()
  readonly #underWay = new Map<string, Promise<Loaded>>()
  readonly #failures = new Map<string, { error: unknown; untilMs: number }>()
  /** Forgotten, and still held by someone. */
  readonly #discarded = new Set<Loaded>()
  /** Nothing is woken from them here, and others stand on them: their files stay as they are until no one does. */
  readonly #unusable = new Set<string>()
  /** Whose files are being removed: none may be read or made under that name meanwhile. */
  readonly #removals = new Map<string, Promise<void>>()
  /** When those were last used that are no longer loaded, or not yet anew. */
  readonly #letGoAtMs = new Map<string, number>()
  readonly #closing = new AbortController()

  constructor(uses: GoldenBootsUses) {
    this.#uses = { maxBytes: 8 * 2 ** 30, maxCount: 32, settleMs: SETTLE_MS, maxLoaded: 4, isNeeded: () => false, ...uses }
  }

  /**
   * The golden boot of `shape`: loaded, read from disk, or made by `capture`. Any number may ask at once, it is made once; who stops
   * waiting does not stop the making. Throws when there is one that cannot be used and that others stand on.
   */
  async goldenBoot(shape: GoldenShape, capture: CaptureGolden, step: Step): Promise<GoldenBoot> {
    const key = keyOf(shape)
    if (this.#unusable.has(key)) await this.#replace(key)
    return this.#hold(key, (key, limit) => this.#load(key, shape, capture, limit), step)
  }

  /** The golden boot that was known by `key` when something came to stand on it. Never made anew. Throws `snapshot_unusable`. */
  async standing(key: string, step: Step): Promise<GoldenBoot> {
    return this.#hold(key, (_, limit) => this.#loadStanding(key, limit), step)
  }

  /** Where the memory lies that something stands on, and what it holds. Throws `snapshot_unusable`. */
  async memoryOf(key: string): Promise<{ file: string; sum: MemorySum }> {
    const manifest = await this.#readManifest(key)
    const file = path.join(this.#uses.dir, key, 'memory')
    if (manifest === undefined || !isThere(file)) throw new AppError('snapshot_unusable', 'The golden boot that it stands on is gone')
    return { file, sum: manifest.memory }
  }

  async #hold(key: string, load: Load, step: Step): Promise<GoldenBoot> {
    let found = this.#loaded.get(key)
    // What has been waited for may have been let go again by the time we are told.
    while (found === undefined) {
      await this.#waitFor(this.#begin(key, load), step)
      found = this.#loaded.get(key)
    }
    const loaded = found
    loaded.users++
    loaded.usedAtMs = Date.now()
    let isHeld = true
    return {
      key,
      base: loaded.base.handle,
      sum: loaded.base.sum,
      stateFile: `/proc/${process.pid}/fd/${loaded.state.fd}`,
      discard: () => this.#discard(loaded),
      [Symbol.dispose]: () => {
        if (!isHeld) return
        isHeld = false
        loaded.users--
        loaded.usedAtMs = Date.now()
        this.#unloadSome()
      },
    }
  }

  /** Removes drafts that a dead daemon left, and golden boots for which `isStale` says so. Call it before the first start. */
  async sweep(isStale: IsStale): Promise<void> {
    for (const name of await this.#names()) {
      // What something stands on stays, also when it cannot be read today.
      if (!name.endsWith('.draft') && (this.#uses.isNeeded(name) || !(await this.#isGone(name, isStale)))) continue
      // Someone has begun to make or to use one meanwhile: what is left can wait for the next daemon.
      if (this.#underWay.size > 0 || (this.#loaded.get(name)?.users ?? 0) > 0) return
      await this.#remove(name)
    }
  }

  /** Stale, or without the manifest that makes it count. */
  async #isGone(name: string, isStale: IsStale): Promise<boolean> {
    try {
      const manifest = await this.#readManifest(name)
      return manifest === undefined || (await isStale(manifest.facts))
    } catch (error) {
      this.#uses.log.warn({ err: error, golden: name }, 'a golden boot cannot be read, and is left alone')
      return false
    }
  }

  /** Bytes that golden boots take on disk. */
  async diskUsage(): Promise<number> {
    return (await this.list()).reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /** What lies on disk, drafts with it. */
  async list(): Promise<KeptGoldenBoot[]> {
    const all: KeptGoldenBoot[] = []
    for (const key of await this.#names()) {
      const isNeeded = key.endsWith('.draft') ? this.#isBeingMade(key) : !this.#isFree(key)
      all.push({ key, bytes: await this.#bytesOf(key), isNeeded })
    }
    return all
  }

  /** Removes drafts that no one makes, those that are stale, and the least recently used ones beyond the limits. The names of what goes. */
  async collect(wanted: CollectGoldenBoots): Promise<{ readonly names: string[]; readonly bytes: number }> {
    const { isStale, dryRun, ...limits } = wanted
    const names: string[] = []
    let bytes = 0
    const drop = async ({ name, bytes: own }: OnDisk): Promise<void> => {
      if (!dryRun) await this.#remove(name)
      names.push(name)
      bytes += own
    }
    const kept: OnDisk[] = []
    for (const one of await this.#onDisk()) {
      const { name } = one
      const isGone = name.endsWith('.draft') ? !this.#isBeingMade(name) : await this.#isGone(name, isStale)
      // Asked last, since everything before it took its time.
      if (isGone && (name.endsWith('.draft') || this.#isFree(name))) await drop(one)
      else if (!name.endsWith('.draft')) kept.push(one)
    }
    for (const one of this.#beyond(kept, limits)) if (this.#isFree(one.name)) await drop(one)
    if (!dryRun && names.length > 0) this.#uses.log.info({ golden: names, bytes }, 'golden boots collected')
    return { names, bytes }
  }

  #isBeingMade(draft: string): boolean {
    return this.#underWay.has(draft.split('.', 1)[0] ?? '')
  }

  /** No one stands on it, makes it, holds it, or has held it a moment ago. */
  #isFree(name: string): boolean {
    const loaded = this.#loaded.get(name)
    if (this.#uses.isNeeded(name) || this.#underWay.has(name) || (loaded?.users ?? 0) > 0) return false
    return Date.now() - (loaded?.usedAtMs ?? this.#letGoAtMs.get(name) ?? 0) >= this.#uses.settleMs
  }

  /** Those that would have to go, least recently used first, for the rest to be within the limits. */
  #beyond(all: readonly OnDisk[], { keepBytes, keepCount, unusedForMs }: Omit<CollectGoldenBoots, 'isStale' | 'dryRun'>): OnDisk[] {
    let bytes = all.reduce((sum, one) => sum + one.bytes, 0)
    let count = all.length
    const going: OnDisk[] = []
    for (const one of [...all].sort((a, b) => a.usedAtMs - b.usedAtMs)) {
      if (bytes <= keepBytes && count <= keepCount) break
      if (!this.#isFree(one.name) || Date.now() - one.usedAtMs < unusedForMs) continue
      going.push(one)
      bytes -= one.bytes
      count--
    }
    return going
  }

  async #onDisk(): Promise<OnDisk[]> {
    const all: OnDisk[] = []
    for (const name of await this.#names()) {
      const readAtMs = await stat(path.join(this.#uses.dir, name, 'manifest.json')).then(
        (facts) => facts.mtimeMs,
        () => 0,
      )
      const usedAtMs = this.#loaded.get(name)?.usedAtMs ?? this.#letGoAtMs.get(name) ?? readAtMs
      all.push({ name, usedAtMs, bytes: await this.#bytesOf(name) })
    }
    return all
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new AppError('shutting_down', 'The daemon is shutting down'))
    await Promise.allSettled(this.#underWay.values())
    await Promise.allSettled(this.#removals.values())
    for (const loaded of this.#loaded.values()) await this.#rememberUse(loaded)
    for (const loaded of [...this.#loaded.values(), ...this.#discarded]) await close(loaded)
    this.#loaded.clear()
    this.#discarded.clear()
  }

  async #discard(loaded: Loaded): Promise<void> {
    // Someone has discarded it already, and what has its name now is another one.
    if (this.#loaded.get(loaded.key) !== loaded) return
    if (this.#uses.isNeeded(loaded.key)) this.#unusable.add(loaded.key)
    else await this.#forget(loaded)
  }

  async #forget(loaded: Loaded): Promise<void> {
    this.#loaded.delete(loaded.key)
    this.#discarded.add(loaded)
    await this.#remove(loaded.key)
  }

  /** Away with what could not be used, now that no one stands on it. */
  async #replace(key: string): Promise<void> {
    if (this.#uses.isNeeded(key)) throw stoodOn('it could not be woken, or is damaged')
    this.#unusable.delete(key)
    const loaded = this.#loaded.get(key)
    if (loaded !== undefined) await this.#forget(loaded)
  }

  #begin(key: string, load: Load): Promise<Loaded> {
    const underWay = this.#underWay.get(key)
    if (underWay !== undefined) return underWay
    const failure = this.#failures.get(key)
    if (failure !== undefined && failure.untilMs > Date.now()) return Promise.reject(failure.error)
    // Its own limit: many may be waiting for it, and none of them owns it.
    const step = { signal: AbortSignal.any([AbortSignal.timeout(MAKE_LIMIT_MS), this.#closing.signal]), log: this.#uses.log }
    const work = load(key, step)
      .then((loaded) => {
        this.#failures.delete(key)
        this.#loaded.set(key, loaded)
        return loaded
      })
      .catch((error) => {
        if (!this.#closing.signal.aborted) this.#failures.set(key, { error, untilMs: Date.now() + FAILURE_KEPT_MS })
        throw error
      })
      .finally(() => this.#underWay.delete(key))
    // Everyone may have stopped waiting by the time it fails.
    work.catch(() => undefined)
    this.#underWay.set(key, work)
    return work
  }

  async #waitFor(work: Promise<Loaded>, step: Step): Promise<Loaded> {
    const { promise: gaveUp, reject } = Promise.withResolvers<never>()
    const onAbort = (): void => reject(new AppError('timed_out', 'The golden boot was not ready in time', { cause: step.signal.reason }))
    if (step.signal.aborted) onAbort()
    else step.signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await Promise.race([work, gaveUp])
    } finally {
      step.signal.removeEventListener('abort', onAbort)
    }
  }

  async #load(key: string, shape: GoldenShape, capture: CaptureGolden, step: Step): Promise<Loaded> {
    const dir = path.join(this.#uses.dir, key)
    await this.#removalOf(key)
    const manifest = await this.#readManifest(key)
    if (manifest !== undefined) {
      const broken = await this.#tryLoad(key, manifest, step)
      if (typeof broken !== 'string') return broken
      this.#uses.log.warn({ golden: key, why: broken }, 'a golden boot is broken')
    }
    if (this.#uses.isNeeded(key) && isThere(dir)) {
      this.#unusable.add(key)
      throw stoodOn('it is damaged')
    }
    await this.#remove(key)
    const make = (): Promise<Loaded> => this.#make(key, shape, capture, step)
    const made = await make().catch((error: unknown) => {
      // An emulated kernel with several processors hangs or gives up now and then on its way up, and the next one does not.
      if (errorCodeOf(error) !== 'guest_unavailable' || step.signal.aborted) throw error
      this.#uses.log.warn({ err: error, golden: key }, 'the guest of a golden boot did not come up, booting another')
      return make()
    })
    await this.#makeRoom(key)
    this.#uses.log.info({ golden: key, dir }, 'golden boot made')
    return made
  }

  async #loadStanding(key: string, step: Step): Promise<Loaded> {
    await this.#removalOf(key)
    const manifest = await this.#readManifest(key)
    const broken = manifest === undefined ? 'it is gone' : await this.#tryLoad(key, manifest, step)
    if (typeof broken !== 'string') return broken
    throw new AppError('snapshot_unusable', `The golden boot that it stands on cannot be used: ${broken}`)
  }

  /** The loaded base, or in words why the files are no good. */
  async #tryLoad(key: string, manifest: Manifest, step: Step): Promise<Loaded | string> {
    const dir = path.join(this.#uses.dir, key)
    await using undo = new AsyncDisposableStack()
    let state: FileHandle
    try {
      if ((await stat(path.join(dir, 'memory'))).size !== manifest.memory.bytes) return 'its memory has another size'
      state = undo.use(await open(path.join(dir, 'state'), 'r'))
      if ((await sha256Of(state)) !== manifest.state.sha256) return 'its device state has another checksum'
    } catch (error) {
      // Any other error may be over in a moment, and says nothing of what is in the file.
      if (codeOf(error) === 'ENOENT') return 'a file is missing'
      throw error
    }
    const base = await loadBase(this.#uses.shimPath, path.join(dir, 'memory'), step)
    undo.use(base.handle)
    if (base.sum !== manifest.memory.sum || base.pages !== manifest.memory.pages) return 'its memory has another checksum'
    const now = new Date()
    await utimes(path.join(dir, 'manifest.json'), now, now).catch(() => undefined)
    undo.move()
    return { key, base, state, users: 0, usedAtMs: Date.now() }
  }

  async #make(key: string, shape: GoldenShape, capture: CaptureGolden, step: Step): Promise<Loaded> {
    const draft = path.join(this.#uses.dir, `${key}.${randomBytes(4).toString('hex')}.draft`)
    await using undo = new AsyncDisposableStack()
    await mkdir(draft, { recursive: true, mode: 0o700 })
    undo.defer(() => rm(draft, { recursive: true, force: true }))
    const memory = await makeBlank(this.#uses.shimPath, shape.memoryBytes, step)
    undo.defer(() => memory.handle.close())

    const stateFile = path.join(draft, 'state')
    await capture(memory.handle, stateFile, step)
    const state = undo.use(await open(stateFile, 'r'))
    const sum = await storeBase(this.#uses.shimPath, memory.handle, path.join(draft, 'memory'), step)
    const manifest: Manifest = {
      version: 1,
      facts: shape.facts,
      memory: { ...sum, bytes: shape.memoryBytes },
      state: { bytes: (await state.stat()).size, sha256: await sha256Of(state) },
      createdAt: new Date().toISOString(),
    }
    await writeFile(path.join(draft, 'manifest.json'), `${JSON.stringify(manifest, undefined, 2)}\n`, { flush: true })
    await state.sync()
    await publishDirectory(draft, path.join(this.#uses.dir, key))
    undo.move()
    return { key, base: { ...memory, ...sum }, state, users: 0, usedAtMs: Date.now() }
  }

  /** Deletes the least recently used golden boots until the rest fit; never `keep`. */
  async #makeRoom(keep: string): Promise<void> {
    const { maxBytes: keepBytes, maxCount: keepCount } = this.#uses
    const all = (await this.#onDisk()).filter(({ name }) => !name.endsWith('.draft'))
    for (const { name } of this.#beyond(all, { keepBytes, keepCount, unusedForMs: 0 })) {
      if (name === keep || !this.#isFree(name)) continue
      await this.#remove(name)
      this.#uses.log.info({ golden: name }, 'golden boot dropped to make room')
    }
  }

  async #remove(name: string): Promise<void> {
    const loaded = this.#loaded.get(name)
    this.#loaded.delete(name)
    this.#letGoAtMs.delete(name)
    const removal = this.#removalOf(name)
      .then(() => this.#removeFiles(name))
      .finally(() => {
        if (this.#removals.get(name) === removal) this.#removals.delete(name)
      })
    this.#removals.set(name, removal)
    if (loaded !== undefined) await close(loaded)
    await removal
  }

  /** Resolves when no one removes it any more. */
  async #removalOf(name: string): Promise<void> {
    // Who removes it is told when it fails.
    await this.#removals.get(name)?.catch(() => undefined)
  }

  async #removeFiles(name: string): Promise<void> {
    const dir = path.join(this.#uses.dir, name)
    // The manifest first: what is half removed must not look whole.
    await rm(path.join(dir, 'manifest.json'), { force: true })
    await rm(dir, { recursive: true, force: true })
  }

  /** Closes those that no one holds and `isMapped` does not name: a VM keeps the pages of its own. Bytes. */
  async unload(isMapped: (key: string) => boolean, { dryRun }: { readonly dryRun: boolean }): Promise<number> {
    let bytes = 0
    for (const loaded of [...this.#loaded.values()].filter(({ key, users }) => users === 0 && !isMapped(key))) {
      bytes += loaded.base.pages * 4096
      if (!dryRun) await this.#unload(loaded)
    }
    return bytes
  }

  /** Where the memories lie. */
  async files(): Promise<string[]> {
    return (await this.#names()).map((name) => path.join(this.#uses.dir, name, 'memory'))
  }

  #unloadSome(): void {
    for (const gone of this.#discarded) {
      if (gone.users > 0) continue
      this.#discarded.delete(gone)
      close(gone).catch(() => undefined)
    }
    const idle = [...this.#loaded.values()].filter(({ users }) => users === 0).sort((a, b) => a.usedAtMs - b.usedAtMs)
    for (const loaded of idle.slice(0, Math.max(0, idle.length - this.#uses.maxLoaded))) {
      this.#unload(loaded).catch(() => undefined)
    }
  }

  /** Its files stay, and remember when it was used. */
  async #unload(loaded: Loaded): Promise<void> {
    const { key, usedAtMs } = loaded
    this.#loaded.delete(key)
    this.#letGoAtMs.set(key, usedAtMs)
    await Promise.all([this.#rememberUse(loaded), close(loaded)])
  }

  async #rememberUse({ key, usedAtMs }: Loaded): Promise<void> {
    const usedAt = new Date(usedAtMs)
    await utimes(path.join(this.#uses.dir, key, 'manifest.json'), usedAt, usedAt).catch(() => undefined)
  }

  async #names(): Promise<string[]> {
    try {
      return (await readdir(this.#uses.dir)).filter((name) => /^[0-9a-f]{32}(\.[0-9a-f]+\.draft)?$/.test(name))
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return []
      throw error
    }
  }

  /** Undefined when there is none, or none that is whole. */
  async #readManifest(key: string): Promise<Manifest | undefined> {
    try {
      const manifest: unknown = JSON.parse(await readFile(path.join(this.#uses.dir, key, 'manifest.json'), 'utf8'))
      return isManifest(manifest) ? manifest : undefined
    } catch (error) {
      if (isDamage(error)) return undefined
      throw error
    }
  }

  async #bytesOf(name: string): Promise<number> {
    let bytes = 0
    for (const file of ['memory', 'state', 'manifest.json']) {
      bytes += await stat(path.join(this.#uses.dir, name, file)).then(
        (facts) => facts.blocks * 512,
        () => 0,
      )
    }
    return bytes
  }
}

/** The same facts in any order give the same key. */
function keyOf(shape: GoldenShape): string {
  const facts = Object.entries(shape.facts).sort(([a], [b]) => (a < b ? -1 : 1))
  return createHash('sha256')
    .update(JSON.stringify([1, shape.memoryBytes, facts]))
    .digest('hex')
    .slice(0, 32)
}

async function close({ base, state }: Loaded): Promise<void> {
  await Promise.all([base.handle.close(), state.close()])
}

const codeOf = (error: unknown): string | undefined => (error as NodeJS.ErrnoException).code

const stoodOn = (why: string): AppError =>
  new AppError(
    'snapshot_unusable',
    `The golden boot of this shape cannot be used (${why}), and cannot be made anew while something stands on it`,
  )

/** Of a file that has just been opened. */
const sha256Of = async (file: FileHandle): Promise<string> =>
  createHash('sha256')
    .update(await file.readFile())
    .digest('hex')

const isManifest = (value: unknown): value is Manifest =>
  typeof value === 'object' &&
  value !== null &&
  'version' in value &&
  value.version === 1 &&
  'facts' in value &&
  'memory' in value &&
  'state' in value
