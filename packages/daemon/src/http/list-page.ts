import { AppError } from '@dormouse/api/errors.ts'

export interface Listed {
  readonly created_at: string
}

/**
 * One page of a list that is newest first. The cursor names the place after the last item by its time and key, not by its number,
 * so that pages neither skip nor repeat when something is made or deleted in between.
 */
export function pageOf<T extends Listed>(
  items: readonly T[],
  keyOf: (item: T) => string,
  page: { readonly limit?: number | undefined; readonly cursor?: string | undefined },
): { readonly items: readonly T[]; readonly nextCursor: string | undefined } {
  const after = page.cursor === undefined ? items : itemsAfter(items, keyOf, decodeCursor(page.cursor))
  const shown = page.limit === undefined ? after : after.slice(0, page.limit)
  const last = shown.at(-1)
  return {
    items: shown,
    nextCursor: last !== undefined && shown.length < after.length ? encodeCursor(last.created_at, keyOf(last)) : undefined,
  }
}

interface Cursor {
  readonly createdAt: string
  readonly key: string
}

function itemsAfter<T extends Listed>(items: readonly T[], keyOf: (item: T) => string, { createdAt, key }: Cursor): readonly T[] {
  const at = items.findIndex((item) => item.created_at === createdAt && keyOf(item) === key)
  if (at >= 0) return items.slice(at + 1)
  // It is gone: go on with what is older than it was.
  const older = items.findIndex((item) => item.created_at < createdAt)
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
