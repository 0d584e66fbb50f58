import { Readable } from 'node:stream'

const SLICE = 250

/** A long list as JSON, written slice by slice, so that no list holds the event loop however long it is. */
export function jsonListStream(items: readonly unknown[]): Readable {
  return Readable.from(slices(items), { objectMode: true, highWaterMark: 2 })
}

export const isLongList = (value: unknown): value is readonly unknown[] => Array.isArray(value) && value.length > SLICE

function* slices(items: readonly unknown[]): Generator<string> {
  for (let at = 0; at < items.length; at += SLICE) {
    const text = JSON.stringify(items.slice(at, at + SLICE))
    yield `${at === 0 ? '[' : ','}${text.slice(1, -1)}`
  }
  yield ']'
}
