/**
 * Pages of lists. Every list is newest first, and among those of one moment by key, downwards: an order that no two items share a place
 * in. A cursor names a place in it by time and key, whether an item still has it or not, so that pages neither skip nor repeat when
 * something is made or deleted in between.
 */
import { AppError } from '@dormouse/api/errors.ts'

/** Where an item stands in its list. */
export interface PlaceOf<T> {
  /** No two items have one. */
  readonly key: (item: T) => string
  /** As `Date.toISOString` writes it. */
  readonly createdAt: (item: T) => string
  /** Keys go upwards. Downwards when left out. */
  readonly isUpwards?: boolean
}

/** One page of a list that has that order already. Throws `invalid_request` for a cursor that no list can have given. */
export function pageOf<T>(
  items: readonly T[],
  placeOf: PlaceOf<T>,
  page: { readonly limit?: number | undefined; readonly cursor?: string | undefined },
): { readonly items: readonly T[]; readonly nextCursor: string | undefined } {
  const after = page.cursor === undefined ? items : itemsAfter(items, placeOf, decodeCursor(page.cursor))
  const shown = page.limit === undefined ? after : after.slice(0, page.limit)
  const last = shown.at(-1)
  return {
    items: shown,
    nextCursor:
      last !== undefined && shown.length < after.length
        ? encodeCursor({ createdAt: placeOf.createdAt(last), key: placeOf.key(last) })
        : undefined,
  }
}

interface Place {
  readonly createdAt: string
  readonly key: string
}

function itemsAfter<T>(items: readonly T[], placeOf: PlaceOf<T>, { createdAt, key }: Place): readonly T[] {
  const isBehind = (own: string): boolean => (placeOf.isUpwards ? own > key : own < key)
  const at = items.findIndex((item) => {
    const own = placeOf.createdAt(item)
    return own < createdAt || (own === createdAt && isBehind(placeOf.key(item)))
  })
  return at < 0 ? [] : items.slice(at)
}

const encodeCursor = ({ createdAt, key }: Place): string => Buffer.from(JSON.stringify([createdAt, key])).toString('base64url')

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/

function decodeCursor(text: string): Place {
  try {
    const value: unknown = JSON.parse(Buffer.from(text, 'base64url').toString())
    if (Array.isArray(value)) {
      const [createdAt, key] = value as unknown[]
      // Written anew it is the same, or it was written by someone else.
      if (typeof createdAt === 'string' && TIME.test(createdAt) && typeof key === 'string' && encodeCursor({ createdAt, key }) === text) {
        return { createdAt, key }
      }
    }
  } catch {
    // Said below.
  }
  throw new AppError('invalid_request', 'The cursor is not one that a list has given')
}
