/**
 * What a name in a layer means: where in the root file system it is, or which path below it removes. Pure, and strict: a name that
 * tries to leave the root is a mistake or an attack, so the image is refused rather than mended (docs/decisions/0022).
 */
import { invalidImage, printableName } from './tar-entry.ts'

export type LayerPath =
  | { readonly kind: 'root' }
  | { readonly kind: 'entry'; readonly path: readonly string[] }
  /** Removes `path`, as far as lower layers have it. */
  | { readonly kind: 'whiteout'; readonly path: readonly string[] }
  /** Empties the directory `path` of what lower layers put there. */
  | { readonly kind: 'opaque'; readonly path: readonly string[] }

export interface PathLimits {
  readonly maxPathBytes: number
  readonly maxDepth: number
}

// NAME_MAX of Linux; squashfs holds 256.
const MAX_NAME = 255
const WHITEOUT = '.wh.'
const OPAQUE = '.wh..wh..opq'

export function readLayerPath(name: string, limits: PathLimits): LayerPath {
  const path = splitPath(name, 'The name', limits)
  const last = path.at(-1)
  if (last === undefined) return { kind: 'root' }
  const parents = path.slice(0, -1)
  if (parents.some((part) => part.startsWith(WHITEOUT))) throw invalidImage(`The name ${printableName(name)} has a whiteout for a parent`)
  if (last === OPAQUE) return { kind: 'opaque', path: parents }
  if (!last.startsWith(WHITEOUT)) return { kind: 'entry', path }
  const removed = last.slice(WHITEOUT.length)
  if (removed === '' || removed === '.' || removed === '..') throw invalidImage(`The whiteout ${printableName(name)} names nothing`)
  return { kind: 'whiteout', path: [...parents, removed] }
}

/** The same in an archive that is no layer: there a whiteout is a file like any other. */
export function readPlainPath(name: string, limits: PathLimits): LayerPath {
  const path = splitPath(name, 'The name', limits)
  return path.length === 0 ? { kind: 'root' } : { kind: 'entry', path }
}

/** The target of a hard link: a path from the root, like an entry's own name. */
export function readLinkTarget(target: string, name: string, limits: PathLimits): readonly string[] {
  const path = splitPath(target, `The hard link ${printableName(name)} leads to a name that`, limits)
  if (path.length === 0) throw invalidImage(`The hard link ${printableName(name)} leads to the root directory`)
  return path
}

/** `./a//b/` is `a`, `b`. Throws for `..` and for absolute names. */
function splitPath(name: string, what: string, limits: PathLimits): string[] {
  if (name === '') throw invalidImage(`${what} is empty`)
  if (name.length > limits.maxPathBytes) throw invalidImage(`${what} ${printableName(name)} is longer than ${limits.maxPathBytes} bytes`)
  if (name.startsWith('/'))
    throw invalidImage(`${what} ${printableName(name)} is absolute: names in a layer begin at the root of the image`)
  const path: string[] = []
  for (const part of name.split('/')) {
    if (part === '' || part === '.') continue
    if (part === '..') throw invalidImage(`${what} ${printableName(name)} climbs out with '..'`)
    if (part.length > MAX_NAME) throw invalidImage(`${what} ${printableName(name)} has a part longer than ${MAX_NAME} bytes`)
    path.push(part)
  }
  if (path.length > limits.maxDepth) throw invalidImage(`${what} ${printableName(name)} is deeper than ${limits.maxDepth} directories`)
  return path
}
