/**
 * Bases that were consolidated from captures:
 *
 *     dir/<id>/memory          RAM, sparse; never written once published
 *     dir/<id>/manifest.json   its sum and size, and the golden boot that it goes back to
 *     dir/<id>.draft/          one in the making
 *
 * One that a single VM maps is given to it as its file: nothing has to be loaded, whatever its size. One that several map is loaded
 * into a sealed memfd, out of the reach of each.
 */

import { mkdir, readdir, readFile, rm, stat, statfs, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import { publishDirectory } from '../host/files.ts'
import type { BaseRef } from '../hypervisors/hypervisor.ts'
import { createId } from '../lib/create-id.ts'
import type { Step } from '../lib/step.ts'
import { consolidateBase, type HeldMemory, loadBase, type MemorySum } from './base-memory.ts'
import { DELTA, isDamage } from './capture-files.ts'
import type { MemoryFile } from './compress-delta.ts'
import { SharedHolds } from './shared-holds.ts'

interface Manifest extends MemorySum {
  readonly version: 1
  readonly bytes: number
  readonly ground?: Ground
}

/** The golden boot that a base goes back to, through however many naps: all that it holds otherwise is what was written since. */
export interface Ground {
  readonly ref: BaseRef
  readonly sum: string
}

export interface BasesUses {
  readonly dir: string
  readonly shimPath: string
  /** Does a VM, a sleeping state or a snapshot stand on it? */
  readonly isNeeded: (ref: BaseRef) => boolean
}

/** For a base that no one waits for: others come first. */
export interface Leisure {
  /** Read and written together; 0: as fast as it goes. */
  readonly maxBytesPerSecond: number
  /** What is to stay free on the disk. */
  readonly spareBytes: number
}

const LOAD_LIMIT_MS = 300_000
const mib = (bytes: number): string => formatSize(Math.ceil(bytes / 2 ** 20) * 2 ** 20)

export class Bases implements AsyncDisposable {
  readonly #uses: BasesUses
  readonly #loaded: SharedHolds<HeldMemory>
  /** Made, and on their way to the row that will name them. */
  readonly #fresh = new Set<string>()

  constructor(uses: BasesUses) {
    this.#uses = uses
    this.#loaded = new SharedHolds((base) => base.handle.close())
  }

  /** Where a VM that has it to itself finds it. Throws `snapshot_unusable` when it is gone or cut. */
  async memoryOf(id: string, sum: string): Promise<MemoryFile & { readonly ground?: Ground }> {
    const { ground, ...manifest } = await this.#manifestOf(id, sum)
    return { file: this.#memoryOf(id), sum: manifest, ...(ground === undefined ? {} : { ground }) }
  }

  /** The base in a sealed memfd, loaded once for all who hold it at the same time. Dispose it when the shim has been started. */
  async hold(id: string, sum: string, step: Step): Promise<{ fd: number } & Disposable> {
    const held = await this.#loaded.hold(id, async () => {
      const manifest = await this.#manifestOf(id, sum)
      // Its own limit: others may have joined, and none of them is to fail because the first has given up.
      const base = await loadBase(this.#uses.shimPath, this.#memoryOf(id), { ...step, signal: AbortSignal.timeout(LOAD_LIMIT_MS) })
      if (base.sum === manifest.sum && base.pages === manifest.pages) return base
      await base.handle.close()
      throw new AppError('snapshot_unusable', 'The memory that it stands on is damaged: its checksum is another')
    })
    return { fd: held.value.handle.fd, [Symbol.dispose]: held[Symbol.dispose] }
  }

  /**
   * A new base: `from` with the delta of `captureDir` applied. It is safe from the sweep until `settle` says that the row which
   * names it is written, or that none will be. Leaves nothing behind when it throws, as it does with `insufficient_resources` where the
   * disk would be left with less than is to be spared.
   */
  async consolidate(
    from: (MemoryFile & { readonly ground?: Ground }) | undefined,
    captureDir: string,
    bytes: number,
    step: Step,
    leisure?: Leisure,
  ): Promise<FreshBase> {
    const delta = path.join(captureDir, DELTA)
    if (leisure !== undefined) await this.#assertSpared(leisure.spareBytes, from?.file, delta)
    const id = createId()
    const draft = path.join(this.#uses.dir, `${id}.draft`)
    this.#fresh.add(id)
    await using undo = new AsyncDisposableStack()
    undo.defer(() => void this.#fresh.delete(id))
    await mkdir(draft, { recursive: true, mode: 0o700 })
    undo.defer(() => rm(draft, { recursive: true, force: true }))
    const out = path.join(draft, 'memory')
    const base = from === undefined ? { base: undefined } : { base: from.file, baseSum: from.sum }
    const pace = leisure === undefined ? {} : { maxBytesPerSecond: leisure.maxBytesPerSecond }
    const sum = await consolidateBase(this.#uses.shimPath, { ...base, delta, out, ...pace }, step)
    const ground = from?.ground === undefined ? {} : { ground: from.ground }
    const manifest: Manifest = { version: 1, ...sum, bytes, ...ground }
    await writeFile(path.join(draft, 'manifest.json'), JSON.stringify(manifest), { flush: true })
    await publishDirectory(draft, path.join(this.#uses.dir, id))
    undo.move()
    return {
      ref: `base/${id}`,
      sum: sum.sum,
      settle: async () => {
        this.#fresh.delete(id)
        if (!this.#uses.isNeeded(`base/${id}`)) await this.#remove(id)
      },
    }
  }

  /** As if none of the base's blocks could be shared: whether they can is known only once it has been tried. */
  async #assertSpared(spareBytes: number, base: string | undefined, delta: string): Promise<void> {
    const { bavail, bsize } = await statfs(this.#uses.dir)
    const files = await Promise.all([base, delta].filter((file) => file !== undefined).map((file) => stat(file)))
    const needed = files.reduce((bytes, { blocks }) => bytes + blocks * 512, 0)
    if (bavail * bsize - needed >= spareBytes) return
    throw new AppError(
      'insufficient_resources',
      `A base of ${mib(needed)} would leave less than ${mib(spareBytes)} of the ${mib(bavail * bsize)} that are free`,
      { hint: 'Free space on the file system of the data directory' },
    )
  }

  /** Removes bases that no one stands on any more, and drafts that a dead daemon left. */
  async sweep(): Promise<void> {
    await this.collect({ dryRun: false })
  }

  /** The same, or with `dryRun` what would go. */
  async collect({ dryRun }: { readonly dryRun: boolean }): Promise<{ readonly names: string[]; readonly bytes: number }> {
    const names: string[] = []
    let bytes = 0
    for (const name of await this.#names()) {
      const own = this.#isNeeded(name) ? undefined : await this.#bytesOf(name)
      // Asked last: looking took its time.
      if (own === undefined || this.#isNeeded(name)) continue
      if (!dryRun) await this.#remove(name)
      names.push(name)
      bytes += own
    }
    return { names, bytes }
  }

  /** What lies on disk, drafts with it. */
  async list(): Promise<{ readonly id: string; readonly bytes: number; readonly isNeeded: boolean }[]> {
    const all = []
    for (const name of await this.#names()) {
      all.push({ id: name, bytes: await this.#bytesOf(name), isNeeded: this.#isNeeded(name) })
    }
    return all
  }

  #isNeeded(name: string): boolean {
    const id = name.replace(/\.draft$/, '')
    return this.#fresh.has(id) || this.#uses.isNeeded(`base/${id}`)
  }

  async #bytesOf(name: string): Promise<number> {
    return await stat(path.join(this.#uses.dir, name, 'memory')).then(
      ({ blocks }) => blocks * 512,
      () => 0,
    )
  }

  /** Where the memories lie. */
  async files(): Promise<string[]> {
    return (await this.#names()).map((name) => path.join(this.#uses.dir, name, 'memory'))
  }

  /** Bytes that all of them take on disk. */
  async diskUsage(): Promise<number> {
    return (await this.list()).reduce((sum, { bytes }) => sum + bytes, 0)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#loaded[Symbol.asyncDispose]()
  }

  #memoryOf(id: string): string {
    return path.join(this.#uses.dir, id, 'memory')
  }

  async #manifestOf(id: string, sum: string): Promise<Manifest> {
    try {
      const manifest = JSON.parse(await readFile(path.join(this.#uses.dir, id, 'manifest.json'), 'utf8')) as Manifest
      const { size } = await stat(this.#memoryOf(id))
      if (manifest.version === 1 && size === manifest.bytes && manifest.sum === sum) return manifest
    } catch (cause) {
      if (!isDamage(cause)) throw cause
      throw new AppError('snapshot_unusable', 'The memory that it stands on is gone or damaged', { cause })
    }
    throw new AppError('snapshot_unusable', 'The memory that it stands on is not the one that it was')
  }

  async #names(): Promise<string[]> {
    try {
      return (await readdir(this.#uses.dir)).filter((name) => /^[a-z0-9]{24}(\.draft)?$/.test(name))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
      throw error
    }
  }

  async #remove(name: string): Promise<void> {
    const dir = path.join(this.#uses.dir, name)
    await rm(path.join(dir, 'manifest.json'), { force: true })
    await rm(dir, { recursive: true, force: true })
  }
}

export interface FreshBase {
  readonly ref: BaseRef
  readonly sum: string
  /** Once the row that names it is written, or will not be. Removes it when no one stands on it. */
  settle(): Promise<void>
}
