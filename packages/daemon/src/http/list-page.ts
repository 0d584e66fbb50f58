import { AppError } from '@dormouse/api/errors.ts'

/** Where an item stands in its list. */
export interface PlaceOf<T> {
  readonly key: (item: T) => string
  readonly createdAt: (item: T) => string
}

/**
 * One page of a list that is newest first. The cursor names the place after the last item by its time and key, not by its number,
 * so that pages neither skip nor repeat when something is made or deleted in between.
 */
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
    nextCursor: last !== undefined && shown.length < after.length ? encodeCursor(placeOf.createdAt(last), placeOf.key(last)) : undefined,
  }
}

interface Cursor {
  readonly createdAt: string
  readonly key: string
}

function itemsAfter<T>(items: readonly T[], placeOf: PlaceOf<T>, { createdAt, key }: Cursor): readonly T[] {
  const at = items.findIndex((item) => placeOf.key(item) === key && placeOf.createdAt(item) === createdAt)
  if (at >= 0) return items.slice(at + 1)
  // It is gone: go on with what is older than it was.
  const older = items.findIndex((item) => placeOf.createdAt(item) < createdAt)
  return older < 0 ? [] : items.slice(older)
}

const encodeCursor = (createdAt: string, key: string): string => Buffer.from(JSON.stringify([createdAt, key])).toString('base64url')

function decodeCursor(text: string): Cursor {
  try {
    const value: unknown = JSON.parse(Buffer.from(text, 'base64url').toString())
    if (Array.isArray(value) && typeof value[0] === 'string' && typeof value[1] === 'string') return { createdAt: value[0], key: value[1] }
  } catch {
    // Said below.
  }
  throw new AppError('invalid_request', 'The cursor is not one that a list has given')
}
