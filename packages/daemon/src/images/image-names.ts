import type { Image } from '@dormouse/api/images.ts'
import type { Paths } from '../paths.ts'
import type { ImageNameRow, ImageRow, ImageRows } from '../store/images.ts'
import { type ImageConfig, parseImageConfig } from './image-config.ts'
import { formatPlatform, hostPlatform, parsePlatform } from './platform.ts'
import { presentImage } from './present-image.ts'
import { formatReference, isDigest, parseReference } from './reference.ts'

/** What an instance is made of. */
export interface ReadyImage {
  readonly digest: string
  readonly name: string
  readonly rootfs: { readonly path: string; readonly format: 'squashfs' }
  readonly platform: string
  readonly config: ImageConfig
  readonly sizeBytes: number
}

/** From what people write to the image that is meant, and what is shown of it. */
export class ImageNames {
  readonly #rows: ImageRows
  readonly #paths: Paths
  readonly #positionOf: (digest: string) => number | undefined

  constructor(uses: { rows: ImageRows; paths: Paths; positionOf: (digest: string) => number | undefined }) {
    this.#rows = uses.rows
    this.#paths = uses.paths
    this.#positionOf = uses.positionOf
  }

  /** Newest first. */
  list(filter: { tags?: Readonly<Record<string, string>> }): Image[] {
    const wanted = Object.entries(filter.tags ?? {})
    return this.#rows
      .names()
      .filter(({ tags }) => wanted.every(([key, value]) => tags[key] === value))
      .flatMap((name) => this.present(name) ?? [])
  }

  /** Without a platform the host's own comes first. Throws `invalid_name` and `invalid_platform`. */
  find(name: string, platform?: string): ImageNameRow | undefined {
    const rows = this.called(name)
    if (platform !== undefined) return rows.find((row) => row.platform === formatPlatform(parsePlatform(platform)))
    return rows.find((row) => row.platform === formatPlatform(hostPlatform())) ?? rows[0]
  }

  /** By name, for all platforms; by digest under a name of the same repository; by the bare digest. */
  called(name: string): ImageNameRow[] {
    if (isDigest(name)) return this.#rows.namesLeadingTo(name).slice(0, 1)
    const reference = parseReference(name)
    const exact = this.#rows.namesCalled(formatReference(reference))
    const { digest } = reference
    if (exact.length > 0 || digest === undefined) return exact
    const repository = `${reference.registry}/${reference.repository}`
    return this.#rows
      .namesLeadingTo(digest)
      .filter((row) => row.name.startsWith(`${repository}:`) || row.name.startsWith(`${repository}@`))
      .slice(0, 1)
  }

  /** What a name shows: what is on its way to it, or else what it leads to; a failure only when there is nothing better. */
  shown(row: ImageNameRow): ImageRow | undefined {
    const next = row.nextDigest === undefined ? undefined : this.#rows.find(row.nextDigest)
    const now = row.digest === undefined ? undefined : this.#rows.find(row.digest)
    return next && (next.status !== 'failed' || !now) ? next : now
  }

  present(row: ImageNameRow): Image | undefined {
    const image = this.shown(row)
    return image && presentImage(row, image, this.#positionOf(image.digest))
  }

  /** Undefined unless the image is ready. */
  ready(image: ImageRow, name: string): ReadyImage | undefined {
    if (image.status !== 'ready') return undefined
    return {
      digest: image.digest,
      name,
      rootfs: { path: this.#paths.imageRootfs(image.digest), format: 'squashfs' },
      platform: image.platform,
      config: parseImageConfig(image.config).config,
      sizeBytes: image.rootfsBytes ?? 0,
    }
  }
}
