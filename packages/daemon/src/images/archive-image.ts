/** Which image an archive holds: read from `manifest.json` (docker save) or `index.json` (OCI layout). */
import { AppError } from '@dormouse/api/errors.ts'
import type { Archive } from './archive.ts'
import { digestOf } from './digest.ts'
import { parseImageConfig } from './image-config.ts'
import type { ImageLimits } from './limits.ts'
import {
  type Descriptor,
  type IndexEntry,
  type Manifest,
  OCI_CONFIG,
  OCI_LAYER,
  OCI_MANIFEST,
  parseManifest,
  selectPlatform,
} from './manifest.ts'
import type { Platform } from './platform.ts'
import { normaliseReference, parseReference } from './reference.ts'
import { invalidImage } from './tar-entry.ts'

/** An image as it was found: from a registry or in an archive. */
export interface FoundImage {
  /** The manifest's. */
  readonly digest: string
  readonly manifest: Buffer
  readonly config: Buffer
  readonly layers: readonly Descriptor[]
}

export interface ArchiveImage extends FoundImage {
  /** The full name that the archive gives it. */
  readonly name: string | undefined
}

/** Finds the image called `name`, or the only one there is. All its layers are in the store afterwards. */
export async function imageInArchive(
  archive: Archive,
  wanted: { name?: string; platform: Platform },
  limits: ImageLimits,
): Promise<ArchiveImage> {
  const docker = await archive.document('manifest.json')
  if (docker) return await dockerImage(archive, docker, wanted, limits)
  const index = await archive.document('index.json')
  if (index) return await ociImage(archive, index, wanted, limits)
  throw invalidImage('This is no image: there is neither an index.json (OCI layout) nor a manifest.json (docker save) in it')
}

async function dockerImage(archive: Archive, document: Buffer, wanted: { name?: string }, limits: ImageLimits): Promise<ArchiveImage> {
  const images = parseDockerManifest(document, limits)
  const named = images.find(({ tags }) => wanted.name !== undefined && tags.includes(wanted.name))
  const image = named ?? (images.length === 1 ? images[0] : undefined)
  if (!image) throw several(images.flatMap(({ tags }) => tags))
  const config = (await archive.document(image.config)) ?? missing(image.config)
  const layers: Descriptor[] = []
  for (const name of image.layers) layers.push({ mediaType: OCI_LAYER, ...((await archive.blob(name)) ?? missing(name)) })
  // There is no manifest of the registry's kind in such an archive: this is the one that describes it.
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: { mediaType: OCI_CONFIG, digest: digestOf(config), size: config.length },
      layers,
    }),
  )
  return { digest: digestOf(manifest), manifest, config, layers, name: named ? wanted.name : image.tags[0] }
}

async function ociImage(
  archive: Archive,
  document: Buffer,
  wanted: { name?: string; platform: Platform },
  limits: ImageLimits,
): Promise<ArchiveImage> {
  const index = parseManifest(document, undefined, limits)
  if (index.kind !== 'index') throw invalidImage('The index.json of the layout is no index')
  const entries = index.entries
  const named = wanted.name === undefined ? [] : entries.filter((entry) => isCalled(entry, wanted.name ?? ''))
  const chosen = named.length > 0 ? named : entries
  const names = new Set(chosen.map((entry) => nameOf(entry) ?? refOf(entry) ?? ''))
  if (names.size > 1) throw several([...names])
  const entry = selectPlatform({ kind: 'index', entries: chosen }, wanted.platform, wanted.name ?? 'in the archive')
  const found = await manifestAt(archive, entry, wanted, limits, 0)
  const config = (await archive.document(blobName(found.parsed.config))) ?? missing(found.parsed.config.digest)
  if (digestOf(config, found.parsed.config.digest.startsWith('sha512:') ? 'sha512' : 'sha256') !== found.parsed.config.digest) {
    throw invalidImage("The image's configuration is damaged: its digest is another")
  }
  for (const layer of found.parsed.layers) {
    const blob = (await archive.blob(blobName(layer))) ?? missing(layer.digest)
    if (blob.size !== layer.size) throw invalidImage(`The blob ${layer.digest} has ${blob.size} bytes where ${layer.size} were declared`)
  }
  return { digest: found.digest, manifest: found.bytes, config, layers: found.parsed.layers, name: nameOf(entry) }
}

async function manifestAt(
  archive: Archive,
  descriptor: Descriptor,
  wanted: { platform: Platform },
  limits: ImageLimits,
  depth: number,
): Promise<{ digest: string; bytes: Buffer; parsed: Manifest }> {
  const bytes = (await archive.document(blobName(descriptor))) ?? missing(descriptor.digest)
  const digest = digestOf(bytes, descriptor.digest.startsWith('sha512:') ? 'sha512' : 'sha256')
  if (digest !== descriptor.digest || bytes.length !== descriptor.size) throw invalidImage(`The manifest ${descriptor.digest} is damaged`)
  const parsed = parseManifest(bytes, descriptor.mediaType, limits)
  if (parsed.kind === 'manifest') return { digest, bytes, parsed }
  if (depth >= MAX_DEPTH) throw invalidImage('The image has indexes within indexes')
  return await manifestAt(archive, selectPlatform(parsed, wanted.platform, 'in the archive'), wanted, limits, depth + 1)
}

const MAX_DEPTH = 2

function parseDockerManifest(document: Buffer, limits: ImageLimits): { config: string; layers: string[]; tags: string[] }[] {
  let list: unknown
  try {
    list = JSON.parse(document.toString('utf8'))
  } catch (cause) {
    throw invalidImage('The manifest.json of the archive is no JSON', { cause })
  }
  if (!Array.isArray(list) || list.length === 0 || list.length > 1000)
    throw invalidImage('The manifest.json of the archive lists no images')
  return list.map((item) => {
    const { Config: config, Layers: layers, RepoTags: tags } = (item ?? {}) as Record<string, unknown>
    if (typeof config !== 'string' || !isTexts(layers)) throw invalidImage('The manifest.json of the archive is malformed')
    if (layers.length > limits.maxLayers) throw invalidImage(`The image has ${layers.length} layers; the limit is ${limits.maxLayers}`)
    return { config, layers, tags: (isTexts(tags) ? tags : []).flatMap(fullName) }
  })
}

const isTexts = (value: unknown): value is string[] => Array.isArray(value) && value.every((item) => typeof item === 'string')

/** What the annotations of an entry call it in full; a plain tag is no name. */
function nameOf(entry: IndexEntry): string | undefined {
  const containerd = entry.annotations['io.containerd.image.name']
  if (containerd !== undefined) return fullName(containerd)[0]
  const ref = refOf(entry)
  return ref?.includes('/') || ref?.includes(':') ? fullName(ref)[0] : undefined
}

const refOf = (entry: IndexEntry): string | undefined => entry.annotations['org.opencontainers.image.ref.name']

function isCalled(entry: IndexEntry, name: string): boolean {
  return nameOf(entry) === name || refOf(entry) === parseReference(name).tag
}

function fullName(text: string): string[] {
  try {
    return [normaliseReference(text)]
  } catch {
    return []
  }
}

const blobName = ({ digest }: { digest: string }): string => `blobs/${digest.replace(':', '/')}`

function several(names: readonly string[]): AppError {
  return new AppError('invalid_request', 'The archive holds several images', { hint: `Name one of them: ${names.slice(0, 20).join(', ')}` })
}

function missing(name: string): never {
  throw invalidImage(`The archive is not complete: ${name.slice(0, 200)} is missing`)
}

/** Throws unless the configuration fits the layers. */
export function checkedConfig(found: FoundImage): ReturnType<typeof parseImageConfig> {
  const parsed = parseImageConfig(found.config)
  if (parsed.diffIds.length !== found.layers.length) {
    throw invalidImage(`The image has ${found.layers.length} layers, but its configuration speaks of ${parsed.diffIds.length}`)
  }
  return parsed
}
