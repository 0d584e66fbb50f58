/** Manifests and indexes, OCI's and Docker's. Strangers write them: each is parsed once, into the little that is used. */
import { AppError } from '@dormouse/api/errors.ts'
import type { ImageLimits } from './limits.ts'
import { fitOf, formatPlatform, type Platform } from './platform.ts'
import { isDigest } from './reference.ts'
import { invalidImage } from './tar-entry.ts'

export interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
}

export interface IndexEntry extends Descriptor {
  readonly platform: Platform | undefined
  readonly annotations: Readonly<Record<string, string>>
}

export interface Manifest {
  readonly kind: 'manifest'
  readonly config: Descriptor
  readonly layers: readonly Descriptor[]
}

export interface Index {
  readonly kind: 'index'
  readonly entries: readonly IndexEntry[]
}

const OCI_INDEX = 'application/vnd.oci.image.index.v1+json'
export const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json'
const DOCKER_INDEX = 'application/vnd.docker.distribution.manifest.list.v2+json'
const DOCKER_MANIFEST = 'application/vnd.docker.distribution.manifest.v2+json'

/** What we ask registries for. */
export const MANIFEST_TYPES = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST] as const

const CONFIG_TYPES = new Set(['application/vnd.oci.image.config.v1+json', 'application/vnd.docker.container.image.v1+json'])
export const OCI_CONFIG = 'application/vnd.oci.image.config.v1+json'
export const OCI_LAYER = 'application/vnd.oci.image.layer.v1.tar'

const LAYER_TYPES = new Set([
  OCI_LAYER,
  `${OCI_LAYER}+gzip`,
  `${OCI_LAYER}+zstd`,
  'application/vnd.oci.image.layer.nondistributable.v1.tar',
  'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip',
  'application/vnd.oci.image.layer.nondistributable.v1.tar+zstd',
  'application/vnd.docker.image.rootfs.diff.tar',
  'application/vnd.docker.image.rootfs.diff.tar.gzip',
  'application/vnd.docker.image.rootfs.diff.tar.zstd',
])
const MAX_ENTRIES = 1000

/**
 * `declared` is the media type that came with the document (a header, a descriptor), where there was one. With `anyLayers` they may
 * be something else than layers of a file system: what an index lists beside images, such as attestations.
 */
export function parseManifest(
  bytes: Buffer,
  declared: string | undefined,
  limits: ImageLimits,
  options: { anyLayers?: boolean } = {},
): Manifest | Index {
  const document = parseObject(bytes, 'manifest')
  const own = typeof document.mediaType === 'string' ? document.mediaType : undefined
  if (document.schemaVersion === 1) {
    throw invalidImage('The image has a manifest of schema version 1, which has been obsolete since 2017', {
      hint: 'Push the image again with a newer tool',
    })
  }
  // One document that is read as a manifest by one program and as an index by another is an attack (CVE-2021-41190).
  if (document.layers !== undefined && document.manifests !== undefined) throw invalidImage('The manifest is an index as well')
  const type = own ?? (isManifestType(declared) ? declared : undefined) ?? (Array.isArray(document.manifests) ? OCI_INDEX : OCI_MANIFEST)
  if (own !== undefined && isManifestType(declared) && own !== declared)
    throw invalidImage(`The manifest says that it is ${own}, but came as ${declared}`)
  switch (type) {
    case OCI_INDEX:
    case DOCKER_INDEX:
      return { kind: 'index', entries: list(document.manifests, MAX_ENTRIES, 'manifests').map(parseEntry) }
    case OCI_MANIFEST:
    case DOCKER_MANIFEST: {
      const config = parseDescriptor(document.config)
      if (!CONFIG_TYPES.has(config.mediaType)) {
        throw invalidImage(`This is no image of a file system, but something else kept in a registry: ${short(config.mediaType)}`)
      }
      const layers = list(document.layers, limits.maxLayers, 'layers').map(parseDescriptor)
      for (const { mediaType } of layers) {
        if (!options.anyLayers && !LAYER_TYPES.has(mediaType))
          throw invalidImage(`The image has a layer of a media type that is not known: ${short(mediaType)}`)
      }
      return { kind: 'manifest', config, layers }
    }
    default:
      throw invalidImage(`The manifest is of a media type that is not known: ${short(type)}`)
  }
}

/** The entry of an index to run on `platform`. Throws `platform_not_available`, saying what there is. */
export function selectPlatform(index: Index, platform: Platform, name: string): IndexEntry {
  const candidates = index.entries.filter(({ mediaType }) => isManifestType(mediaType))
  const [best] = candidates
    .map((entry) => ({ entry, fit: entry.platform ? fitOf(entry.platform, platform) : candidates.length === 1 ? 1 : 0 }))
    .filter(({ fit }) => fit > 0)
    .sort((a, b) => b.fit - a.fit)
  if (best) return best.entry
  const offered = [
    ...new Set(candidates.flatMap((entry) => (entry.platform && entry.platform.os !== 'unknown' ? [describe(entry.platform)] : []))),
  ]
  throw platformNotAvailable(name, platform, offered)
}

export function platformNotAvailable(name: string, platform: Platform, offered: readonly string[]): AppError {
  return new AppError('platform_not_available', `The image ${name} is not there for ${describe(platform)}`, {
    hint: offered.length > 0 ? `It is there for ${offered.slice(0, 20).join(', ')}` : 'It names no platform at all',
  })
}

export const isManifestType = (mediaType: string | undefined): mediaType is (typeof MANIFEST_TYPES)[number] =>
  MANIFEST_TYPES.some((type) => type === mediaType)

/** What a document says that it is, where it does. */
export function ownMediaTypeOf(manifest: Buffer): string | undefined {
  const { mediaType } = parseObject(manifest, 'manifest')
  return typeof mediaType === 'string' ? mediaType : undefined
}

/** What a document of ours is to be called: registries and clients tell manifests apart by it. */
export function mediaTypeOf(manifest: Buffer): string {
  const mediaType = ownMediaTypeOf(manifest)
  return isManifestType(mediaType) ? mediaType : OCI_MANIFEST
}

const describe = (platform: Platform): string => formatPlatform(platform) + (platform.variant === undefined ? '' : `/${platform.variant}`)

export function parseObject(bytes: Buffer, what: string): Record<string, unknown> {
  let document: unknown
  try {
    document = JSON.parse(bytes.toString('utf8'))
  } catch (cause) {
    throw invalidImage(`The image's ${what} is no JSON`, { cause })
  }
  if (typeof document !== 'object' || document === null || Array.isArray(document))
    throw invalidImage(`The image's ${what} is no JSON object`)
  return document as Record<string, unknown>
}

function parseEntry(value: unknown): IndexEntry {
  const descriptor = parseDescriptor(value)
  const { platform, annotations } = value as { platform?: Record<string, unknown>; annotations?: Record<string, unknown> }
  const text = (field: unknown): string => (typeof field === 'string' ? field.slice(0, 64) : '')
  return {
    ...descriptor,
    platform:
      typeof platform === 'object' && platform !== null
        ? {
            os: text(platform.os),
            architecture: text(platform.architecture),
            ...(text(platform.variant) === '' ? {} : { variant: text(platform.variant) }),
          }
        : undefined,
    annotations: Object.fromEntries(
      Object.entries(annotations ?? {}).flatMap(([key, value]) => (typeof value === 'string' ? [[key, value]] : [])),
    ),
  }
}

function parseDescriptor(value: unknown): Descriptor {
  const { mediaType, digest, size } = (value ?? {}) as Record<string, unknown>
  if (typeof digest !== 'string' || !isDigest(digest)) throw invalidImage('The manifest has a digest that is none')
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) throw invalidImage('The manifest has a size that is none')
  if (typeof mediaType !== 'string') throw invalidImage('The manifest has an entry without a media type')
  return { mediaType, digest, size }
}

function list(value: unknown, limit: number, what: string): unknown[] {
  if (!Array.isArray(value)) throw invalidImage(`The manifest has no list of ${what}`)
  if (value.length > limit) throw invalidImage(`The manifest lists ${value.length} ${what}; the limit is ${limit}`)
  return value
}

const short = (text: string): string => JSON.stringify(text.slice(0, 200))
