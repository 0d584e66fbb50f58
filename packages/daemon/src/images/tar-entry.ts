/**
 * One entry of a tar archive. Names are byte strings: a JavaScript string in which each character is one byte (latin1), so that a
 * name that is not UTF-8 survives as it is, and splitting and comparing stay cheap. `printableName` is for people.
 */
import { AppError, type AppErrorOptions } from '@dormouse/api/errors.ts'

export type EntryKind = 'file' | 'link' | 'symlink' | 'char' | 'block' | 'dir' | 'fifo'

export interface TarEntry {
  /** Bytes as latin1, as the archive has them. */
  readonly name: string
  readonly kind: EntryKind
  /** Permission bits with setuid, setgid and sticky; nothing of the file type. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Whole seconds since 1970, rounded down; may be negative. */
  readonly mtime: number
  /** What the file measures once it is laid out, holes included. */
  readonly size: number
  /** What of it is in the archive; less than `size` for a sparse file. */
  readonly storedSize: number
  /** Where a link or symbolic link leads; bytes as latin1. */
  readonly linkName: string
  readonly devMajor: number
  readonly devMinor: number
  /** Values byte for byte, by name as latin1. */
  readonly xattrs: ReadonlyMap<string, Buffer>
  /** The parts of a sparse file that are in the archive, in order, not overlapping. */
  readonly sparse?: readonly SparseRegion[]
}

export interface SparseRegion {
  readonly offset: number
  readonly length: number
}

export const BLOCK = 512

export const NO_XATTRS: ReadonlyMap<string, Buffer> = new Map()

/** How many bytes follow up to the next block. */
export const paddingOf = (size: number): number => (BLOCK - (size % BLOCK)) % BLOCK

/** For messages: UTF-8 where it is, control characters and length tamed. */
export function printableName(name: string): string {
  const text = Buffer.from(name.slice(0, 400), 'latin1').toString('utf8')
  return JSON.stringify(name.length > 400 ? `${text}…` : text)
}

export const invalidImage = (message: string, options?: AppErrorOptions): AppError => new AppError('invalid_image', message, options)
export const tooLarge = (message: string, options?: AppErrorOptions): AppError =>
  new AppError('image_too_large', message, {
    hint: 'The limits are in the daemon’s configuration: DORMOUSE_MAX_IMAGE_SIZE, DORMOUSE_MAX_IMAGE_ENTRIES',
    ...options,
  })
