/**
 * Writable disks: sparse raw files that hold an ext4. Making one is on the way of every create, so mkfs runs once per size; what
 * it wrote (some hundred KiB, whatever the size) is kept as a template and written into each new file.
 *
 * A disk that a guest has had is hostile: only e2fsprogs look into it, as the VM's own user, never the host's kernel.
 */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'
import type { Paths } from '../paths.ts'
import type { DiskLayers } from '../store/disk-layers.ts'
import type { InstanceId } from '../store/instance-record.ts'
import { applyTemplate, packTemplate, readTemplate, type Template } from './template.ts'

export interface DiskOwner {
  readonly uid: number
  readonly gid: number
}

const BLOCK = 4096
const GROWTH = 8

export interface DisksUses {
  readonly paths: Pick<Paths, 'disk' | 'diskTemplatesDir'>
  readonly layers: Pick<DiskLayers, 'unnamed' | 'frozen'>
}

export class Disks {
  readonly #uses: DisksUses
  readonly #templates = new Map<number, Promise<Template>>()

  constructor(uses: DisksUses) {
    this.#uses = uses
  }

  /** A layer with an empty filesystem of `bytes`; none of that name may exist. Leaves nothing behind when it throws. */
  async createOverlay(name: string, bytes: number, options: { owner?: DiskOwner; step: Step }): Promise<void> {
    const path = this.#uses.paths.disk(name)
    const template = await this.#templateOf(bytes, options.step)
    try {
      await using file = await open(path, 'wx', 0o600)
      await file.truncate(bytes)
      await applyTemplate(template, file)
      if (options.owner) await file.chown(options.owner.uid, options.owner.gid)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') await rm(path, { force: true })
      throw error
    }
  }

  /**
   * Makes the disk and the filesystem in it `bytes` large. Only while no VM has it. Repeat is harmless, also after a daemon that
   * died in the middle; a smaller size than it has is refused.
   */
  async grow(name: string, bytes: number, options: { owner?: DiskOwner; step: Step }): Promise<void> {
    const path = this.#uses.paths.disk(name)
    {
      await using file = await open(path, 'r+')
      const { size } = await file.stat()
      if (size > bytes) throw new AppError('invalid_overlay_size', 'A disk cannot be made smaller')
      if (size < bytes) await file.truncate(bytes)
      await file.sync()
    }
    const run = { step: options.step, ...(options.owner === undefined ? {} : { user: options.owner }) }
    // Neither locks the file, so neither may outlive the daemon: the next one does the same again.
    const tied = ['setpriv', '--pdeathsig', 'KILL'] as const
    // resize2fs refuses a filesystem that was not checked since it was last mounted. 1: errors were corrected.
    await runCommand([...tied, 'e2fsck', '-f', '-p', path], { ...run, okCodes: [0, 1] })
    await runCommand([...tied, 'resize2fs', path], run)
  }

  /** Every layer of the chain is there, and it has one. */
  isWhole(chain: readonly string[]): boolean {
    return chain.length > 0 && chain.every((name) => existsSync(this.#uses.paths.disk(name)))
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

  /** What frozen layers take on the host's disk, each once however many stand on it. */
  async frozenBytes(): Promise<number> {
    const bytes = await Promise.all(this.#uses.layers.frozen().map((name) => this.#allocatedBytes(name)))
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
        await file.truncate(bytes)
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
