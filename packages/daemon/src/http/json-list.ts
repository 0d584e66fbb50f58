import { Readable } from 'node:stream'

/** A list whose items are JSON already. */
export class JsonList {
  readonly items: readonly string[]

  constructor(items: readonly string[]) {
    this.items = items
  }
}

const SLICE = 250

/** The list as one text, or as a stream of slices when it is long: no list holds the event loop however long it is. */
export function writeJsonList({ items }: JsonList): string | Readable {
  return items.length <= SLICE ? `[${items.join(',')}]` : Readable.from(slices(items), { objectMode: true, highWaterMark: 2 })
}

function* slices(items: readonly string[]): Generator<string> {
  for (let at = 0; at < items.length; at += SLICE) yield `${at === 0 ? '[' : ','}${items.slice(at, at + SLICE).join(',')}`
  yield ']'
}
