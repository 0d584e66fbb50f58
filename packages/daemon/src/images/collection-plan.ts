import type { ImageNameRow, ImageRow } from '../store/images.ts'

/** Which images go. */
export interface CollectImages {
  /** `dangling`: those that failed, and those that no name leads to. `unused`: also every other one that nothing stands on. */
  readonly which: 'dangling' | 'unused'
  /** Only those that were last named, pulled or stood on so long ago. */
  readonly unusedForMs: number
  /** Only those all of whose names it is true of. */
  readonly isAllowed?: (name: string) => boolean
  /** Of `unused`, only what can be had again: not what was pushed to us or imported, of which ours may be the only copy. */
  readonly onlyReplaceable?: boolean
  /** The least recently used ones first. */
  readonly atMost?: number
}

interface Shelf {
  readonly names: readonly ImageNameRow[]
  readonly images: readonly Pick<ImageRow, 'digest' | 'status' | 'origin' | 'usedAtMs'>[]
  readonly layers: readonly { readonly imageDigest: string; readonly digest: string }[]
  /** Something stands on it, or is about to. */
  readonly isBusy: (digest: string) => boolean
}

export interface CollectionPlan {
  readonly digests: readonly string[]
  /** Those that lead to nothing else. */
  readonly names: readonly ImageNameRow[]
  /** Those that keep what they lead to and no longer wait for another. */
  readonly kept: readonly ImageNameRow[]
  /** Those that no image which stays has. */
  readonly layers: readonly string[]
}

/** Pure: what goes. An image goes with all of its names or not at all. */
export function planCollection({ names, images, layers, isBusy }: Shelf, wanted: CollectImages, nowMs: number): CollectionPlan {
  const { which, unusedForMs, isAllowed = () => true, onlyReplaceable = false, atMost = Number.POSITIVE_INFINITY } = wanted
  const leading = new Map<string, ImageNameRow[]>()
  for (const row of names) for (const digest of digestsOf(row)) leading.set(digest, [...(leading.get(digest) ?? []), row])
  const idle = new Set(
    images.filter(({ digest, usedAtMs }) => !isBusy(digest) && nowMs - usedAtMs >= unusedForMs).map(({ digest }) => digest),
  )
  const mayGo = ({ digest, status, origin }: Shelf['images'][number]): boolean => {
    const rows = leading.get(digest) ?? []
    if (!idle.has(digest) || !rows.every((row) => isAllowed(row.name))) return false
    if (rows.length === 0 || status === 'failed') return true
    if (onlyReplaceable && origin === undefined) return false
    return which === 'unused' && rows.every((row) => digestsOf(row).every((one) => idle.has(one)))
  }
  const digests = images
    .filter(mayGo)
    .sort((a, b) => a.usedAtMs - b.usedAtMs)
    .slice(0, atMost)
    .map(({ digest }) => digest)
  const gone = new Set(digests)
  const touched = names.filter((row) => digestsOf(row).some((digest) => gone.has(digest)))
  const staying = new Set(layers.filter(({ imageDigest }) => !gone.has(imageDigest)).map(({ digest }) => digest))
  const going = layers.filter(({ imageDigest, digest }) => gone.has(imageDigest) && !staying.has(digest)).map(({ digest }) => digest)
  return {
    digests,
    names: touched.filter((row) => row.digest === undefined || gone.has(row.digest)),
    kept: touched.filter((row) => row.digest !== undefined && !gone.has(row.digest)).map((row) => ({ ...row, nextDigest: undefined })),
    layers: [...new Set(going)],
  }
}

const digestsOf = ({ digest, nextDigest }: ImageNameRow): string[] => [digest, nextDigest].filter((one) => one !== undefined)
