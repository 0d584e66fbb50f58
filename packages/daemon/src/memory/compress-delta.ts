import type { Compression } from '@dormouse/api/compression.ts'
import { workerError } from '../host/disk-full.ts'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'
import type { MemorySum } from './base-memory.ts'
import type { DeltaSum } from './capture-files.ts'

export interface MemoryFile {
  readonly file: string
  readonly sum: MemorySum
}

export interface DeltaSource {
  readonly delta: string | undefined
  /** Of which the delta becomes one, too: all that both hold otherwise than `ground`, or than zeros. */
  readonly fold?: { readonly base: MemoryFile; readonly ground: MemoryFile | undefined }
  /** Must not exist. */
  readonly out: string
}

/** A delta, compressed and flushed, written by a process that gives way to all others. Leaves nothing behind when it throws. */
export async function compressDelta(
  shimPath: string,
  { delta = '-', fold, out }: DeltaSource,
  compression: Compression,
  step: Step,
): Promise<DeltaSum> {
  const { algorithm, level } = compression
  const layer = ({ file, sum: { sum, pages } }: MemoryFile): string[] => [file, sum, `${pages}`]
  const layers = fold === undefined ? [] : [...layer(fold.base), ...(fold.ground === undefined ? ['-', '0', '0'] : layer(fold.ground))]
  const argv = ['compress', algorithm, `${level}`, delta, out, ...layers]
  const { stdout } = await runCommand([shimPath, ...argv], { step, okCodes: [0, 1] })
  const match = /^packed ([0-9a-f]{16}) (\d+) (\d+) (\d+)$/m.exec(stdout)
  if (match === null) throw workerError('The memory could not be compressed', stdout)
  return { sum: match[1] ?? '', pages: Number(match[2]), bytes: Number(match[3]), plainBytes: Number(match[4]), compression }
}
