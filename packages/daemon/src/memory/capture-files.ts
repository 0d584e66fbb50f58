/**
 * A capture on disk: what a VM that was paused needs to go on. Its files are never changed once it is published.
 *
 *     state           the devices and CPUs
 *     delta           the pages that differ from the base, compressed or not; absent when none do
 *     dimm-N          the same of memory that was added while it ran, over nothing but zeros
 *     manifest.json   what it stands on, what a machine must be like to wake it, sizes and checksums
 */
import { createHash } from 'node:crypto'
import { existsSync, statSync } from 'node:fs'
import { link, mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Compression } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import type { BaseRef } from '../hypervisors/hypervisor.ts'

export interface CaptureManifest {
  readonly version: 1
  /** The machine, as far as a state depends on it: the driver compares them with what it would start. */
  readonly facts: Readonly<Record<string, string | number>>
  readonly memoryBytes: number
  readonly base: BaseRef
  /** Of the base's pages: a golden boot that was made anew is another. */
  readonly baseSum: string
  readonly state: { readonly bytes: number; readonly sha256: string }
  readonly delta?: DeltaSum
  /** Memory that was added to the machine, in the order of their files: all that was written to it, over zeros. */
  readonly dimms?: readonly CapturedDimm[]
  readonly createdAt: string
}

export interface CapturedDimm {
  readonly slot: number
  readonly address: number
  readonly bytes: number
  readonly delta: DeltaSum
}

export interface DeltaSum {
  readonly bytes: number
  readonly pages: number
  readonly sum: string
  /** What it is compressed with, and how large it would be otherwise. */
  readonly compression?: Compression
  readonly plainBytes?: number
}

export const STATE = 'state'
export const DELTA = 'delta'
const MANIFEST = 'manifest.json'
export const dimmFile = (index: number): string => `dimm-${index}`

/** Says that `dir` is whole; the last thing that is written into a capture, and flushed. */
export async function writeManifest(dir: string, manifest: CaptureManifest): Promise<void> {
  const text = JSON.stringify(manifest)
  await writeFile(path.join(dir, MANIFEST), JSON.stringify({ sha256: sha256Of(text), text }), { flag: 'wx', flush: true })
}

/**
 * An error that says of a file that it is gone, or that it is not what was written. Any other may be over in a moment, and is no reason to
 * give anything up.
 */
export const isDamage = (error: unknown): boolean =>
  error instanceof SyntaxError || error instanceof TypeError || (error as NodeJS.ErrnoException).code === 'ENOENT'

/** Throws when that cannot be found out. */
export const isThere = (file: string): boolean => statSync(file, { throwIfNoEntry: false }) !== undefined

/** Throws `snapshot_unusable` when it is not there or not as it was written. */
export async function readManifest(dir: string): Promise<CaptureManifest> {
  let cause: unknown
  try {
    const { sha256, text } = JSON.parse(await readFile(path.join(dir, MANIFEST), 'utf8')) as { sha256: unknown; text: unknown }
    if (typeof text === 'string' && sha256Of(text) === sha256) {
      const manifest = JSON.parse(text) as CaptureManifest
      if (manifest.version === 1) return manifest
    }
  } catch (error) {
    if (!isDamage(error)) throw error
    cause = error
  }
  throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its manifest is missing or damaged', { cause })
}

/** The device state, checked. Throws `snapshot_unusable`. */
export async function checkState(dir: string, { state }: CaptureManifest): Promise<void> {
  let found: Buffer
  try {
    found = await readFile(path.join(dir, STATE))
  } catch (cause) {
    if (!isDamage(cause)) throw cause
    throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its device state is gone', { cause })
  }
  if (found.length !== state.bytes || sha256Of(found) !== state.sha256) {
    throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its device state is damaged')
  }
}

/** What is to be said of the device state that was written into `dir`. */
export async function describeState(dir: string): Promise<CaptureManifest['state']> {
  const state = await readFile(path.join(dir, STATE))
  return { bytes: state.length, sha256: sha256Of(state) }
}

/** The same capture in another new directory: its files are shared, not copied, but for a delta that is there already. */
export async function linkCapture(from: string, to: string, manifest: CaptureManifest): Promise<void> {
  await mkdir(to, { recursive: true, mode: 0o700 })
  await link(path.join(from, STATE), path.join(to, STATE))
  if (manifest.delta !== undefined && !existsSync(path.join(to, DELTA))) await link(path.join(from, DELTA), path.join(to, DELTA))
  for (const index of (manifest.dimms ?? []).keys()) await link(path.join(from, dimmFile(index)), path.join(to, dimmFile(index)))
  await writeManifest(to, manifest)
}

const sha256Of = (content: string | Buffer): string => createHash('sha256').update(content).digest('hex')
