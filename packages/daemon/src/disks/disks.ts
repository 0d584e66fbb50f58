/**
 * Writable disks. Each is a chain of layers, top first:
 *
 *     what is written ──► top ─► ... ─► bottom          bottom: a sparse raw file that holds an ext4
 *                         one's own  ╰─ frozen: shared, never written again by anyone
 *
 * A row names the chain; a layer says nothing of it. Making an empty filesystem is on the way of every create, so mkfs runs once per
 * size; what it wrote (some hundred KiB, whatever the size) is kept as a template and written into each new file.
 *
 * A disk that a guest has had is hostile: only e2fsprogs and QEMU look into it, as the VM's own user, never the host's kernel.
 */
import { randomBytes } from 'node:crypto'
import { constants, statSync } from 'node:fs'
import { chown, copyFile, type FileHandle, mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import { syncDirectory, syncFile } from '../host/files.ts'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'
import type { Paths } from '../paths.ts'
import type { DiskLayers } from '../store/disk-layers.ts'
import type { InstanceId } from '../store/instance-record.ts'
import { copyChain, type OpenLayer } from './flatten.ts'
import { formatOf, isPlain, nameLayer } from './layer.ts'
import { readQcow2Size, writeEmptyQcow2 } from './qcow2.ts'
import { applyTemplate, packTemplate, readTemplate, type Template } from './template.ts'

export interface DiskOwner {
  readonly uid: number
  readonly gid: number
}

interface LayerOptions {
  readonly owner?: DiskOwner | undefined
  readonly limitBytes?: number | undefined
}

const BLOCK = 4096
const GROWTH = 8
/** How file systems and kernels say that they cannot share blocks. */
const NO_REFLINK: ReadonlySet<string> = new Set(['ENOTSUP', 'EOPNOTSUPP', 'EXDEV', 'ENOSYS', 'ENOTTY', 'EINVAL'])

export interface DisksUses {
  readonly paths: Pick<Paths, 'disk' | 'diskTemplatesDir'>
  readonly layers: Pick<DiskLayers, 'unnamed' | 'frozen'>
}

export class Disks {
  readonly #uses: DisksUses
  readonly #templates = new Map<number, Promise<Template>>()
  #canReflink: boolean | undefined

  constructor(uses: DisksUses) {
    this.#uses = uses
  }

  /** A layer with an empty filesystem of `bytes`; none of that name may exist. Leaves nothing behind when it throws. */
  async createOverlay(name: string, bytes: number, options: { owner?: DiskOwner | undefined; step: Step }): Promise<void> {
    await this.makeEmpty(this.#uses.paths.disk(name), bytes, options)
  }

  /** The same at any path, for a machine that is no instance's. */
  async makeEmpty(path: string, bytes: number, options: { owner?: DiskOwner | undefined; step: Step }): Promise<void> {
    const template = await this.#templateOf(bytes, options.step)
    try {
      await using file = await open(path, 'wx', 0o600)
      const { owner } = options
      // In any order: it only ever grows, and closing it waits for what is under way.
      await Promise.all([setLength(file, bytes), applyTemplate(template, file), owner && file.chown(owner.uid, owner.gid)])
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') await rm(path, { force: true })
      throw error
    }
  }

  /**
   * A layer of a disk of `bytes` in which nothing has been written yet, to be put on top of a chain. One that is to take no more than
   * `limitBytes` has a file as large, all hole. Not flushed; see `flush`.
   */
  async newLayer(bytes: number, { owner, limitBytes }: LayerOptions): Promise<string> {
    const name = nameLayer('qcow2')
    const path = this.#uses.paths.disk(name)
    await using file = await open(path, 'wx', 0o600)
    try {
      await writeEmptyQcow2(file, bytes)
      if (limitBytes !== undefined && (await file.stat()).size < limitBytes) await file.truncate(limitBytes)
      if (owner) await file.chown(owner.uid, owner.gid)
      return name
    } catch (error) {
      await rm(path, { force: true })
      throw error
    }
  }

  /**
   * A copy of a layer that shares its blocks, made in a millisecond or so. Undefined where the file system has no such thing, which is
   * asked once. Not flushed.
   */
  async reflink(name: string, { owner }: { owner?: DiskOwner | undefined }): Promise<string | undefined> {
    if (this.#canReflink === false) return undefined
    const copy = nameLayer(formatOf(name))
    const path = this.#uses.paths.disk(copy)
    try {
      await copyFile(this.#uses.paths.disk(name), path, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL)
      this.#canReflink = true
    } catch (error) {
      await rm(path, { force: true })
      if (!NO_REFLINK.has((error as NodeJS.ErrnoException).code ?? '')) throw error
      this.#canReflink = false
      return undefined
    }
    try {
      if (owner) await chown(path, owner.uid, owner.gid)
      return copy
    } catch (error) {
      await rm(path, { force: true })
      throw error
    }
  }

  /**
   * Makes one disk, which no VM has, into two: what its instance goes on with, and a copy for another, or for no one to write when
   * `copy` is absent. The layers there were become frozen; where the file system shares blocks and there is only one, it is cloned and
   * stays its owner's. Nothing is in force until rows name the two; what no row names goes at the next start of the daemon. When it
   * throws, nothing has been made.
   */
  async freeze(
    chain: readonly string[],
    options: { bytes: number; copy?: LayerOptions } & LayerOptions,
  ): Promise<{ source: readonly string[]; copy: readonly string[] }> {
    const { bytes, copy, ...own } = options
    const { owner } = own
    const clone = await this.#clone(chain, copy ?? { owner })
    if (clone !== undefined) return { source: chain, copy: clone }
    const source = await this.branch(chain, { bytes, ...own })
    if (copy === undefined) return { source, copy: chain }
    try {
      return { source, copy: await this.branch(chain, { bytes, ...copy }) }
    } catch (error) {
      await this.release(source.slice(0, 1))
      throw error
    }
  }

  /**
   * A disk with the contents of layers that are frozen, or are about to be: a new top over them, or a clone where there is only one and
   * the file system shares blocks. Throws when what was written last is damaged, so that no one else comes to stand on it.
   */
  async branch(frozen: readonly string[], options: { bytes: number } & LayerOptions): Promise<readonly string[]> {
    const [top] = frozen
    if (top === undefined) throw new AppError('internal_error', 'There is nothing that a disk could stand on')
    const clone = await this.#clone(frozen, options)
    if (clone !== undefined) return clone
    await this.assertSound(top)
    return [await this.newLayer(options.bytes, options), ...frozen]
  }

  async #clone(chain: readonly string[], options: { owner?: DiskOwner | undefined }): Promise<readonly string[] | undefined> {
    const clone = isPlain(chain) ? await this.reflink(String(chain[0]), options) : undefined
    return clone === undefined ? undefined : [clone]
  }

  /**
   * The contents of a chain, which no VM has, as one raw layer of its own; the chain stays as it is. One that is a raw layer already is
   * answered as it is. Flushed. When it throws, nothing has been made.
   */
  async flatten(chain: readonly string[], options: { owner?: DiskOwner | undefined; step: Step }): Promise<string> {
    const [top] = chain
    if (top === undefined) throw new AppError('internal_error', 'A disk without a layer cannot be flattened')
    if (isPlain(chain)) return top
    if (chain.slice(0, -1).some((name) => formatOf(name) === 'raw')) {
      throw new AppError('internal_error', 'A raw layer has something below it, which it would hide')
    }
    return await this.#intoRaw(chain, await this.#sizeOf(top), options)
  }

  /**
   * A raw layer with the contents of another as they are now, which only whoever writes to it knows: sharing its blocks where the file
   * system can, else copied. Not flushed when it shares them; see `flush`. A VMM may hold it locked. When it throws, nothing has been made.
   */
  async copy(name: string, options: { owner?: DiskOwner | undefined; step: Step }): Promise<string> {
    return (await this.reflink(name, options)) ?? (await this.#intoRaw([name], await this.#sizeOf(name), { ...options, isHeld: true }))
  }

  async #intoRaw(
    chain: readonly string[],
    bytes: number,
    { owner, step, isHeld = false }: { owner?: DiskOwner | undefined; step: Step; isHeld?: boolean },
  ): Promise<string> {
    for (const name of chain.slice(1)) await this.#sizeOf(name)
    const name = nameLayer('raw')
    const path = this.#uses.paths.disk(name)
    try {
      await using opened = new AsyncDisposableStack()
      const layers: OpenLayer[] = []
      for (const layer of chain) {
        const { fd } = opened.use(await open(this.#uses.paths.disk(layer), 'r'))
        layers.push({ fd, format: formatOf(layer) })
      }
      const target = opened.use(await open(path, 'wx+', 0o600))
      await target.truncate(bytes)
      if (owner) await target.chown(owner.uid, owner.gid)
      await copyChain(layers, target, { step, isHeld, ...(owner === undefined ? {} : { user: owner }) })
      await target.sync()
    } catch (error) {
      await rm(path, { force: true })
      throw error
    }
    await syncDirectory(dirname(path))
    return name
  }

  /** From here on the layers outlive a power cut, as long as what a guest wrote to them was flushed by it. */
  async flush(names: readonly string[]): Promise<void> {
    const paths = names.map((name) => this.#uses.paths.disk(name))
    // Side by side: the file system's journal writes them at once, where one after the other would be written twice.
    await Promise.all([...paths.map(syncFile), ...[...new Set(paths.map(dirname))].map(syncDirectory)])
  }

  /** Throws when the layer is damaged: no one else may come to stand on one that leads elsewhere. */
  async assertSound(name: string): Promise<void> {
    await this.#sizeOf(name)
  }

  /** How large the disk is that a layer is of. Throws when the layer is damaged. */
  async #sizeOf(name: string): Promise<number> {
    await using file = await open(this.#uses.paths.disk(name), 'r')
    return formatOf(name) === 'raw' ? (await file.stat()).size : await readQcow2Size(file)
  }

  /**
   * Makes the disk and the filesystem in it `bytes` large: a raw layer, with nothing below it. Only while no VM has it. Repeat is
   * harmless, also after a daemon that died in the middle; a smaller size than it has is refused.
   */
  async grow(name: string, bytes: number, options: { owner?: DiskOwner | undefined; step: Step }): Promise<void> {
    const path = this.#uses.paths.disk(name)
    const { size } = await stat(path)
    if (size > bytes) throw new AppError('invalid_overlay_size', 'A disk cannot be made smaller')
    await resizeFile(path, bytes)
    const run = { step: options.step, ...(options.owner === undefined ? {} : { user: options.owner }) }
    // Neither locks the file, so neither may outlive the daemon: the next one does the same again.
    const tied = ['setpriv', '--pdeathsig', 'KILL'] as const
    // resize2fs refuses a filesystem that was not checked since it was last mounted. 1: errors were corrected.
    await runCommand([...tied, 'e2fsck', '-f', '-p', path], { ...run, okCodes: [0, 1] }).catch(async (error) => {
      // The filesystem has not been touched: a later growth, to less than this one wanted, shall not find a file too large.
      await resizeFile(path, size)
      throw error
    })
    await runCommand([...tied, 'resize2fs', path], run)
  }

  /** Every layer of the chain is there, and it has one. Throws when that cannot be found out. */
  isWhole(chain: readonly string[]): boolean {
    return chain.length > 0 && chain.every((name) => statSync(this.#uses.paths.disk(name), { throwIfNoEntry: false }) !== undefined)
  }

  /**
   * Removes the files of those layers that no row names, but perhaps that of `except`, and says which they were. Repeat is harmless.
   */
  async release(names: readonly string[], except?: InstanceId): Promise<string[]> {
    if (names.length === 0) return []
    const unnamed = this.#uses.layers.unnamed(names, except)
    await Promise.all(unnamed.map((name) => rm(this.#uses.paths.disk(name), { force: true })))
    return unnamed
  }

  /** From here on it is no user's but the daemon's. */
  async takeBack(name: string): Promise<void> {
    await chown(this.#uses.paths.disk(name), process.getuid?.() ?? 0, process.getgid?.() ?? 0)
  }

  /** Makes a raw layer `bytes` large, and not what is in it. Only while no VM has it; repeat is harmless. */
  async extend(name: string, bytes: number): Promise<void> {
    const path = this.#uses.paths.disk(name)
    const { size } = await stat(path)
    if (size < bytes) await resizeFile(path, bytes)
  }

  /** Does another row than that of `owner` name the layer? */
  isShared(name: string, owner: string): boolean {
    return this.#uses.layers.unnamed([name], owner).length === 0
  }

  /** What frozen layers take on the host's disk, each once however many stand on it. */
  frozenBytes(): Promise<number> {
    return this.allocatedBytes(this.#uses.layers.frozen())
  }

  /** What these layers take on the host's disk. */
  async allocatedBytes(names: readonly string[]): Promise<number> {
    const bytes = await Promise.all(names.map((name) => this.#allocatedBytes(name)))
    return bytes.reduce((sum, one) => sum + one, 0)
  }

  async #allocatedBytes(name: string): Promise<number> {
    try {
      return (await stat(this.#uses.paths.disk(name))).blocks * 512
    } catch {
      // It went meanwhile.
      return 0
    }
  }

  #templateOf(bytes: number, step: Step): Promise<Template> {
    let template = this.#templates.get(bytes)
    if (!template) {
      template = this.#loadOrMakeTemplate(bytes, step)
      this.#templates.set(bytes, template)
      // A failure is not kept, so that the next one tries again.
      template.catch(() => this.#templates.delete(bytes))
    }
    return template
  }

  async #loadOrMakeTemplate(bytes: number, step: Step): Promise<Template> {
    const path = join(this.#uses.paths.diskTemplatesDir, `ext4-${bytes}`)
    try {
      return readTemplate(await readFile(path), bytes)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        step.log.warn({ err: error, path }, 'a disk template was unusable and is made anew')
    }
    await mkdir(this.#uses.paths.diskTemplatesDir, { recursive: true, mode: 0o700 })
    const draft = join(this.#uses.paths.diskTemplatesDir, `draft-${randomBytes(6).toString('hex')}`)
    try {
      {
        await using file = await open(draft, 'wx', 0o600)
        await setLength(file, bytes)
      }
      // The file is all zeros, so nothing needs to be zeroed, neither now nor by the guest's kernel in the background. Left to
      // itself mkfs writes 4 MiB of tables for a growth to a thousand times the size; room for eight times is some blocks.
      const growth = Math.ceil((bytes * GROWTH) / BLOCK)
      await runCommand(['mkfs.ext4', '-q', '-F', '-b', String(BLOCK), '-m', '0', '-E', `lazy_journal_init=1,resize=${growth}`, draft], {
        step,
      })
      const packed = await packTemplate(draft, bytes, step)
      {
        await using file = await open(draft, 'w')
        await file.writeFile(packed)
        await file.sync()
      }
      await rename(draft, path)
      return readTemplate(packed, bytes)
    } finally {
      await rm(draft, { force: true })
    }
  }
}

async function resizeFile(path: string, bytes: number): Promise<void> {
  await using file = await open(path, 'r+')
  await setLength(file, bytes)
  await file.sync()
}

/** Throws `insufficient_resources` for more than the file system lets a file have, whatever room it has: ext4 takes 16 TiB. */
async function setLength(file: FileHandle, bytes: number): Promise<void> {
  try {
    await file.truncate(bytes)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EFBIG') throw cause
    throw new AppError('insufficient_resources', `The file system of the data directory takes no file of ${formatSize(bytes)}`, { cause })
  }
}
