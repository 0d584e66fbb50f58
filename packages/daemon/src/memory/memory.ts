/**
 * Guest memory as layers: a base that VMs map and never write, and what each has written since.
 *
 *     golden boot ──┐                      ┌── delta of a nap ── consolidated ──► base of its own ── delta of the next nap …
 *     zero (none) ──┴─ mapped privately by a VM
 *
 * docs/memory.md explains it with a drawing. Who stands on what is in the rows; `isNeeded` asks them.
 */
import { readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { Compression } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import type { BaseRef, Capture, MachineRecord } from '../hypervisors/hypervisor.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import { forgetFiles, sumUp } from './base-memory.ts'
import { Bases, type FreshBase, type Ground, type Leisure } from './bases.ts'
import { type CaptureManifest, checkState, DELTA, type DeltaSum, dimmFile, isThere, linkCapture, readManifest } from './capture-files.ts'
import { compressDelta, type MemoryFile } from './compress-delta.ts'
import { type CaptureGolden, type CollectGoldenBoots, type GoldenBoot, GoldenBoots, type GoldenShape } from './golden-boots.ts'

export type { FreshBase, Leisure } from './bases.ts'
export type { CaptureGolden, CollectGoldenBoots, GoldenBoot, GoldenShape } from './golden-boots.ts'

export interface MemoryUses {
  readonly goldenDir: string
  readonly basesDir: string
  readonly shimPath: string
  readonly log: Logger
  /** Does a VM, a sleeping state or a snapshot stand on it? */
  readonly isNeeded: (ref: BaseRef) => boolean
  /** Of golden boots, beyond which the least recently used ones go. */
  readonly maxGoldenBytes?: number
  readonly maxGoldenBoots?: number
}

/** A base as a shim hands it to its VMM. Dispose it when the shim has been started. */
export type HeldBase = Disposable &
  (
    | { readonly kind: 'descriptor'; readonly fd: number }
    | { readonly kind: 'file'; readonly path: string }
    /** Nothing but zeros: a file that the shim makes in `dir`. Pages of a memfd would count twice, there and in the VM's own. */
    | { readonly kind: 'scratch'; readonly dir: string }
  )

type Standing = Pick<CaptureManifest, 'base' | 'baseSum'>
const ON_NOTHING: Standing = { base: 'zero', baseSum: '0'.repeat(16) }

/** A capture that has been compressed, and what it stands on now. */
export interface CompressedCapture extends AsyncDisposable {
  readonly base: BaseRef
  readonly delta: DeltaSum
}

/** What the name of a file for added memory begins with, for as long as it has one. */
export const SCRATCH = '.dimm-'

/** A layer of memory on disk, or a draft of one. */
export interface KeptMemory {
  readonly ref: BaseRef
  readonly bytes: number
  /** It cannot go now. */
  readonly isNeeded: boolean
}

/** What is done with what lies on disk. */
export type CollectableMemory = Pick<Memory, 'collectBases' | 'collectGoldenBoots' | 'list'>

/** What is done with captures at rest. */
export type LayeredMemory = Pick<Memory, 'assertThere' | 'compress' | 'consolidate' | 'release' | 'sweepBases' | 'verify'>

export class Memory implements AsyncDisposable {
  readonly #golden: GoldenBoots
  readonly #bases: Bases
  /** For memory that begins with nothing but zeros: no user but ours gets through to it. */
  readonly scratchDir: string
  /** Golden boots that something is about to stand on: how many. */
  readonly #grounds = new Map<string, number>()
  readonly #shimPath: string

  constructor({ goldenDir, basesDir, shimPath, log, isNeeded, maxGoldenBytes, maxGoldenBoots }: MemoryUses) {
    const isGoldenNeeded = (key: string): boolean => this.#grounds.has(key) || isNeeded(`golden/${key}`)
    const limits = {
      ...(maxGoldenBytes === undefined ? {} : { maxBytes: maxGoldenBytes }),
      ...(maxGoldenBoots === undefined ? {} : { maxCount: maxGoldenBoots }),
    }
    this.#golden = new GoldenBoots({ dir: goldenDir, shimPath, log, isNeeded: isGoldenNeeded, ...limits })
    this.#bases = new Bases({ dir: basesDir, shimPath, isNeeded })
    this.scratchDir = basesDir
    this.#shimPath = shimPath
  }

  goldenBoot(shape: GoldenShape, capture: CaptureGolden, step: Step): Promise<GoldenBoot> {
    return this.#golden.goldenBoot(shape, capture, step)
  }

  /** Golden boots for which `isStale` says so, unless something stands on them. */
  sweepGoldenBoots(isStale: (facts: GoldenShape['facts']) => boolean | Promise<boolean>): Promise<void> {
    return this.#golden.sweep(isStale)
  }

  /** Removes files of memory that was being added when a daemon died: they lose their names only once they are open. At a daemon's start. */
  async sweepScratch(): Promise<void> {
    const names = await readdir(this.scratchDir).catch(() => [])
    for (const name of names) if (name.startsWith(SCRATCH)) await rm(path.join(this.scratchDir, name), { force: true })
  }

  /** Removes bases that no one stands on any more. */
  sweepBases(): Promise<void> {
    return this.#bases.sweep()
  }

  collectGoldenBoots(wanted: CollectGoldenBoots): Promise<{ readonly names: string[]; readonly bytes: number }> {
    return this.#golden.collect(wanted)
  }

  /** Bases that no one stands on any more, and drafts that no one makes. */
  collectBases(wanted: { readonly dryRun: boolean }): Promise<{ readonly names: string[]; readonly bytes: number }> {
    return this.#bases.collect(wanted)
  }

  /** All that lies on disk. */
  async list(): Promise<KeptMemory[]> {
    const [golden, bases] = await Promise.all([this.#golden.list(), this.#bases.list()])
    return [
      ...golden.map(({ key, ...one }) => ({ ...one, ref: `golden/${key}` as const })),
      ...bases.map(({ id, ...one }) => ({ ...one, ref: `base/${id}` as const })),
    ]
  }

  /** What `capture` stands on, for a VM that is to map it. Throws `snapshot_unusable` when it is gone, damaged or another one. */
  async holdBase({ base, isShared }: Pick<Capture, 'base' | 'isShared'>, sum: string, step: Step): Promise<HeldBase> {
    const [kind, id = ''] = base.split('/')
    switch (kind) {
      case 'golden': {
        const golden = await this.#golden.standing(id, step)
        if (golden.sum === sum) return { kind: 'descriptor', fd: golden.base.fd, [Symbol.dispose]: golden[Symbol.dispose] }
        golden[Symbol.dispose]()
        throw new AppError('snapshot_unusable', 'The golden boot that it stands on was damaged, and has been made anew since')
      }
      case 'base': {
        if (isShared !== true) {
          const { file } = await this.#bases.memoryOf(id, sum)
          return { kind: 'file', path: file, [Symbol.dispose]: () => undefined }
        }
        const held = await this.#bases.hold(id, sum, step)
        return { kind: 'descriptor', fd: held.fd, [Symbol.dispose]: held[Symbol.dispose] }
      }
      default:
        return { kind: 'scratch', dir: this.scratchDir, [Symbol.dispose]: () => undefined }
    }
  }

  /**
   * Base and delta of a capture as one new base. What becomes of the capture is the caller's affair. As fast as it goes, unless it is
   * said to take its time.
   */
  async consolidate(capture: Capture, step: Step, leisure?: Leisure): Promise<FreshBase> {
    const manifest = await readManifest(capture.dir)
    const from = await this.#fileOf(capture.base, manifest.baseSum)
    return this.#bases.consolidate(from, capture.dir, manifest.memoryBytes, step, leisure)
  }

  /**
   * The same capture in the directory `into`, compressed. With `isAlone`, what it stands on becomes a part of it, unless that is a golden
   * boot, which others have too: it then stands on the golden boot that its base goes back to, or on nothing. Undefined, with nothing made,
   * when there is nothing to compress. Dispose it when the row that names it is written, or will not be.
   */
  async compress(
    { dir, base }: Pick<Capture, 'dir' | 'base'>,
    { into, compression, isAlone }: { readonly into: string; readonly compression: Compression; readonly isAlone: boolean },
    step: Step,
  ): Promise<CompressedCapture | undefined> {
    const manifest = await readManifest(dir)
    const own = isAlone && base.startsWith('base/') ? await this.#fileOf(base, manifest.baseSum) : undefined
    if (own === undefined && (manifest.delta === undefined || isDeepStrictEqual(manifest.delta.compression, compression))) return undefined
    await using undo = new AsyncDisposableStack()
    const ground = own?.ground === undefined ? undefined : await this.#holdGround(own.ground, undo)
    const source = {
      delta: manifest.delta && path.join(dir, DELTA),
      out: path.join(into, DELTA),
      ...(own === undefined ? {} : { fold: { base: own, ground } }),
    }
    const delta = await compressDelta(this.#shimPath, source, compression, step)
    const standing = own === undefined ? { base, baseSum: manifest.baseSum } : (ground?.standing ?? ON_NOTHING)
    await linkCapture(dir, into, { ...manifest, ...standing, delta })
    const held = undo.move()
    return { base: standing.base, delta, [Symbol.asyncDispose]: () => held.disposeAsync() }
  }

  /** Undefined when it is gone or another one. As long as it is held it is not given up. */
  async #holdGround(
    { ref, sum }: Ground,
    holds: AsyncDisposableStack,
  ): Promise<(MemoryFile & { readonly standing: Standing }) | undefined> {
    const key = ref.replace(/^golden\//, '')
    this.#grounds.set(key, (this.#grounds.get(key) ?? 0) + 1)
    holds.defer(() => {
      const left = (this.#grounds.get(key) ?? 1) - 1
      if (left > 0) this.#grounds.set(key, left)
      else this.#grounds.delete(key)
    })
    const found = await this.#golden.memoryOf(key).catch(() => undefined)
    return found?.sum.sum === sum ? { ...found, standing: { base: ref, baseSum: sum } } : undefined
  }

  /**
   * Reads all that a capture consists of and stands on, from end to end, in a process of its own. Throws `snapshot_unusable` when any of
   * it is not as it was written.
   */
  async verify({ dir, base }: Pick<Capture, 'dir' | 'base'>, step: Step): Promise<void> {
    const manifest = await readManifest(dir)
    await checkState(dir, manifest)
    const from = await this.#fileOf(base, manifest.baseSum)
    for (const [index, dimm] of (manifest.dimms ?? []).entries()) {
      const found = await sumUp(this.#shimPath, { base: undefined, delta: path.join(dir, dimmFile(index)) }, step)
      if (found.delta?.sum !== dimm.delta.sum)
        throw new AppError('snapshot_unusable', 'Memory that was added to it is damaged: its checksum is another')
    }
    const delta = manifest.delta && path.join(dir, DELTA)
    if (delta !== undefined && !isThere(delta)) throw new AppError('snapshot_unusable', 'What the VM has written is gone')
    const found = await sumUp(this.#shimPath, { base: from?.file, delta }, step)
    if (found.base?.sum !== from?.sum.sum || found.base?.pages !== from?.sum.pages || found.delta?.sum !== manifest.delta?.sum) {
      throw new AppError('snapshot_unusable', 'Its memory is damaged: its checksum is another')
    }
  }

  /** That what a VM was started on can be found by whoever is to go on from it. Throws `snapshot_unusable`. */
  async assertThere({ base, baseSum }: Pick<MachineRecord, 'base' | 'baseSum'>): Promise<void> {
    await this.#fileOf(base, baseSum)
  }

  /** Where a base lies on disk, and what it should hold; undefined for nothing but zeros. Throws `snapshot_unusable`. */
  async #fileOf(base: BaseRef, sum: string): Promise<(MemoryFile & { readonly ground?: Ground }) | undefined> {
    const [kind, id = ''] = base.split('/')
    const from =
      kind === 'golden'
        ? { ...(await this.#golden.memoryOf(id)), ground: { ref: base, sum } }
        : kind === 'base'
          ? await this.#bases.memoryOf(id, sum)
          : undefined
    if (from === undefined || from.sum.sum === sum) return from
    throw new AppError('snapshot_unusable', 'The memory that it stands on is not the one that it was')
  }

  /**
   * Lets go of what is kept of bases for the next start: those in memory that no VM maps, and what of their files is in the page cache and
   * mapped by no one. All of it is on disk, and comes back when it is asked for. Resolves with how many bytes the host has again; with
   * `dryRun`, how many it would have at most.
   */
  async release(isMapped: (base: BaseRef) => boolean, step: Step, { dryRun = false } = {}): Promise<number> {
    const unloaded = await this.#golden.unload((key) => isMapped(`golden/${key}`), { dryRun })
    const files = [...(await this.#golden.files()), ...(await this.#bases.files())]
    return unloaded + (await forgetFiles(this.#shimPath, files, step, { dryRun }))
  }

  async diskUsage(): Promise<{ readonly goldenBytes: number; readonly basesBytes: number }> {
    return { goldenBytes: await this.#golden.diskUsage(), basesBytes: await this.#bases.diskUsage() }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#golden[Symbol.asyncDispose]()
    await this.#bases[Symbol.asyncDispose]()
  }
}
