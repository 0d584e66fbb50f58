/** What `cp` takes: `NAME:PATH` in a guest, `-` for a stream, or a path of this host. */
import { usageFailure } from '../failure.ts'

export type CopyEnd =
  | { readonly kind: 'guest'; readonly instance: string; readonly path: string }
  | { readonly kind: 'host'; readonly path: string }
  | { readonly kind: 'stream' }

/**
 * A colon before the first slash makes it a guest path; a host file with a colon in its name is written `./a:b`. A guest path
 * without a leading slash starts at the root, as with Docker.
 */
export function parseCopyEnd(text: string): CopyEnd {
  if (text === '-') return { kind: 'stream' }
  const colon = text.indexOf(':')
  const slash = text.indexOf('/')
  if (colon < 0 || (slash >= 0 && slash < colon) || text.startsWith('.')) return { kind: 'host', path: text }
  const instance = text.slice(0, colon)
  const path = text.slice(colon + 1)
  if (instance === '' || path === '') throw usageFailure(`${JSON.stringify(text)} is not NAME:PATH`)
  return { kind: 'guest', instance, path: path.startsWith('/') ? path : `/${path}` }
}
