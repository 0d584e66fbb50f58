/**
 * Writable disks: sparse raw files that hold an ext4. Making one is on the way of every create, so mkfs runs once per size; what
 * it wrote (some hundred KiB, whatever the size) is kept as a template and written into each new file.
 *
 * A disk that a guest has had is hostile: only e2fsprogs look into it, as the VM's own user, never the host's kernel.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'
import { applyTemplate, packTemplate, readTemplate, type Template } from './template.ts'

export interface DiskOwner {
  readonly uid: number
  readonly gid: number
}

const BLOCK = 4096
const GROWTH = 8

export class Disks {
  readonly #templatesDir: string
  readonly #templates = new Map<number, Promise<Template>>()

  constructor(uses: { templatesDir: string }) {
    this.#templatesDir = uses.templatesDir
  }

  /** An empty filesystem of `bytes` at `path`, which must not exist. Leaves nothing behind when it throws. */
  async createOverlay(path: string, bytes: number, options: { owner?: DiskOwner; step: Step }): Promise<void> {
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
  async grow(path: string, bytes: number, options: { owner?: DiskOwner; step: Step }): Promise<void> {
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

  /** Bytes that a file takes on the host's disk; 0 when it is not there. */
  async allocatedBytes(path: string): Promise<number> {
    try {
      return (await stat(path)).blocks * 512
    } catch {
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
    const path = join(this.#templatesDir, `ext4-${bytes}`)
    try {
      return readTemplate(await readFile(path), bytes)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        step.log.warn({ err: error, path }, 'a disk template was unusable and is made anew')
    }
    await mkdir(this.#templatesDir, { recursive: true, mode: 0o700 })
    const draft = join(this.#templatesDir, `draft-${randomBytes(6).toString('hex')}`)
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
