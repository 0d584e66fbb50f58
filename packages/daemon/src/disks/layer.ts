import { AppError } from '@dormouse/api/errors.ts'
import { createId } from '../lib/create-id.ts'

export type LayerFormat = 'raw' | 'qcow2'

/** A name for a layer that is to be made: of its own, and never given twice. */
export const nameLayer = (format: LayerFormat): string => `${createId()}.${format}`

/** What is in a layer, by its name: its contents are a guest's and are never asked. */
export function formatOf(name: string): LayerFormat {
  if (name.endsWith('.raw')) return 'raw'
  if (name.endsWith('.qcow2')) return 'qcow2'
  throw new AppError('internal_error', `${JSON.stringify(name)} is no layer of a disk`)
}

/** A single raw layer: nothing below it, so that its contents can be worked on as they are. */
export const isPlain = (chain: readonly string[]): boolean => chain.length === 1 && chain.every((name) => formatOf(name) === 'raw')
