/** Tars, layers and images for tests: well-formed ones from a few words, so that a test can then bend what it is about. */
import { createHash } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { OCI_CONFIG, OCI_LAYER, OCI_MANIFEST } from './manifest.ts'
import { NO_XATTRS, type TarEntry } from './tar-entry.ts'
import { TarReader } from './tar-reader.ts'
import { contentSizeOf, encodeHeader, padding, TAR_END } from './tar-writer.ts'

export type EntryWords = Partial<TarEntry> & { name: string; content?: string | Buffer }

export function entryOf(words: EntryWords): { entry: TarEntry; content: Buffer } {
  const content = Buffer.from(words.content ?? '')
  const kind = words.kind ?? 'file'
  const entry: TarEntry = {
    kind,
    mode: kind === 'dir' ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtime: 1_600_000_000,
    size: content.length,
    storedSize: content.length,
    devMajor: 0,
    devMinor: 0,
    xattrs: NO_XATTRS,
    ...words,
    name: Buffer.from(words.name).toString('latin1'),
    linkName: Buffer.from(words.linkName ?? '').toString('latin1'),
  }
  return { entry, content }
}

export const tarEntry = (words: EntryWords): Buffer => {
  const { entry, content } = entryOf(words)
  return Buffer.concat([encodeHeader(entry), content, padding(contentSizeOf(entry))])
}

/** A whole archive. A word alone is a directory. */
export const tarOf = (entries: readonly (EntryWords | string)[]): Buffer =>
  Buffer.concat([...entries.map((words) => tarEntry(typeof words === 'string' ? { name: words, kind: 'dir' } : words)), TAR_END])

export interface ReadEntry extends TarEntry {
  readonly content: Buffer
}

/** Reads an archive in pieces of `step` bytes. */
export function readTar(archive: Buffer, step = archive.length): ReadEntry[] {
  const entries: ReadEntry[] = []
  let current: TarEntry | undefined
  let content: Buffer[] = []
  const reader = new TarReader({
    entry: (entry) => {
      current = entry
      content = []
    },
    data: (slice) => content.push(Buffer.from(slice)),
    endEntry: () => {
      if (current) entries.push({ ...current, content: Buffer.concat(content) })
    },
  })
  for (let at = 0; at < archive.length; at += Math.max(1, step)) reader.write(archive.subarray(at, at + Math.max(1, step)))
  reader.end()
  return entries
}

export const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

export interface ImageFixture {
  readonly digest: string
  readonly manifest: Buffer
  readonly config: Buffer
  /** Config and layers, by digest. */
  readonly blobs: ReadonlyMap<string, Buffer>
  readonly layers: readonly { digest: string; size: number; mediaType: string }[]
}

/** An image of these layers (tars), gzipped unless `compress` does otherwise. */
export function imageOf(
  tars: readonly Buffer[],
  options: {
    compress?: (tar: Buffer) => Buffer
    layerType?: string
    config?: Record<string, unknown>
    platform?: { os: string; architecture: string }
  } = {},
): ImageFixture {
  const compress = options.compress ?? ((tar: Buffer) => gzipSync(tar, { level: 1 }))
  const blobs = new Map<string, Buffer>()
  const layers = tars.map((tar) => {
    const blob = compress(tar)
    const digest = sha256(blob)
    blobs.set(digest, blob)
    return { mediaType: options.layerType ?? `${OCI_LAYER}+gzip`, digest, size: blob.length }
  })
  const config = Buffer.from(
    JSON.stringify({
      os: 'linux',
      architecture: process.arch === 'x64' ? 'amd64' : process.arch,
      ...options.platform,
      config: { Cmd: ['/bin/true'], ...options.config },
      rootfs: { type: 'layers', diff_ids: tars.map(sha256) },
    }),
  )
  blobs.set(sha256(config), config)
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: { mediaType: OCI_CONFIG, digest: sha256(config), size: config.length },
      layers,
    }),
  )
  return { digest: sha256(manifest), manifest, config, blobs, layers }
}

/** The image as the files of an OCI layout, by name. */
export function layoutOf(image: ImageFixture, tag = 'latest'): Map<string, Buffer> {
  const files = new Map<string, Buffer>([['oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')]])
  const index = {
    schemaVersion: 2,
    manifests: [
      {
        mediaType: OCI_MANIFEST,
        digest: image.digest,
        size: image.manifest.length,
        annotations: { 'org.opencontainers.image.ref.name': tag },
      },
    ],
  }
  files.set('index.json', Buffer.from(JSON.stringify(index)))
  for (const [digest, blob] of [...image.blobs, [image.digest, image.manifest] as const])
    files.set(`blobs/${digest.replace(':', '/')}`, blob)
  return files
}
