import { stat } from 'node:fs/promises'
import type { Paths } from '../paths.ts'
import type { ImageRows } from '../store/images.ts'
import { planCollection } from './collection-plan.ts'

/** What images take of the disk. */
export interface ImageUsage {
  readonly images: UsageOf
  readonly layers: UsageOf
  readonly rootfs: UsageOf
}

export interface UsageOf {
  readonly count: number
  /** How many an instance or a snapshot stands on. */
  readonly inUse: number
  readonly bytes: number
  /** Of these, what more than one image has. */
  readonly sharedBytes: number
  /** What would go if all went that can. */
  readonly reclaimableBytes: number
}

interface ImageUsageUses {
  readonly rows: ImageRows
  readonly paths: Paths
  readonly isBusy: (digest: string) => boolean
  /** Does no one need the layer? What was pushed to us is no image's layer yet, or is no layer at all. */
  readonly isStrayLayer: (digest: string) => boolean
}

/** `files`: digests of what lies there; what no row speaks of can go, too. */
export async function imageUsage(
  { rows, paths, isBusy, isStrayLayer }: ImageUsageUses,
  files: { readonly layers: readonly string[]; readonly rootfs: readonly string[] },
): Promise<ImageUsage> {
  const [images, layers] = [rows.all(), rows.layers()]
  const plan = planCollection({ names: rows.names(), images, layers, isBusy }, { which: 'unused', unusedForMs: 0 }, Date.now())
  const busy = new Set(images.filter(({ digest }) => isBusy(digest)).map(({ digest }) => digest))
  const users = Map.groupBy(layers, ({ digest }) => digest)
  const blocksOf = async (path: string): Promise<number> => ((await stat(path).catch(() => undefined))?.blocks ?? 0) * 512
  const layer = { count: 0, inUse: 0, bytes: 0, sharedBytes: 0, reclaimableBytes: 0 }
  for (const digest of files.layers) {
    const bytes = await blocksOf(paths.imageLayer(digest))
    const own = users.get(digest) ?? []
    layer.count++
    layer.bytes += bytes
    if (own.some(({ imageDigest }) => busy.has(imageDigest))) layer.inUse++
    if (new Set(own.map(({ imageDigest }) => imageDigest)).size > 1) layer.sharedBytes += bytes
    if (plan.layers.includes(digest) || isStrayLayer(digest)) layer.reclaimableBytes += bytes
  }
  const known = new Set(images.map(({ digest }) => digest))
  const rootfs = { count: 0, inUse: 0, bytes: 0, sharedBytes: 0, reclaimableBytes: 0 }
  for (const digest of files.rootfs) {
    const bytes = await blocksOf(paths.imageRootfs(digest))
    rootfs.count++
    rootfs.bytes += bytes
    if (isBusy(digest)) rootfs.inUse++
    if (plan.digests.includes(digest) || (!known.has(digest) && !isBusy(digest))) rootfs.reclaimableBytes += bytes
  }
  return {
    images: {
      count: images.length,
      inUse: busy.size,
      bytes: layer.bytes + rootfs.bytes,
      sharedBytes: layer.sharedBytes,
      reclaimableBytes: layer.reclaimableBytes + rootfs.reclaimableBytes,
    },
    layers: layer,
    rootfs,
  }
}
