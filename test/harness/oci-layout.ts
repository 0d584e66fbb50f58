/** An OCI layout directory with one image of one layer, made of a tar file. */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGzip } from 'node:zlib'

export interface OciLayout {
  /** The layout's directory. */
  readonly path: string
  /** The manifest's digest. */
  readonly digest: string
}

/** What the image says of how it wants to be run; the names are those of the OCI image specification. */
export interface RunConfig {
  readonly Env?: readonly string[]
  readonly Entrypoint?: readonly string[] | undefined
  readonly Cmd?: readonly string[] | undefined
  readonly WorkingDir?: string
  readonly User?: string
  readonly StopSignal?: string | undefined
}

const MEDIA = 'application/vnd.oci.image'
const CREATED = '2026-01-01T00:00:00Z'

/** The same tar, configuration and tag give the same digest. */
export async function writeOciLayout(path: string, image: { tar: string; config: RunConfig; tag: string }): Promise<OciLayout> {
  await mkdir(join(path, 'blobs/sha256'), { recursive: true })
  const { layer, diffId } = await packLayer(path, image.tar)
  const config = await writeBlob(path, `${MEDIA}.config.v1+json`, {
    architecture: 'amd64',
    os: 'linux',
    created: CREATED,
    config: image.config,
    rootfs: { type: 'layers', diff_ids: [diffId] },
    history: [{ created: CREATED, created_by: 'a test' }],
  })
  const mediaType = `${MEDIA}.manifest.v1+json`
  const manifest = await writeBlob(path, mediaType, { schemaVersion: 2, mediaType, config, layers: [layer] })
  const entry = {
    ...manifest,
    platform: { os: 'linux', architecture: 'amd64' },
    annotations: { 'org.opencontainers.image.ref.name': image.tag },
  }
  await writeFile(join(path, 'index.json'), JSON.stringify({ schemaVersion: 2, mediaType: `${MEDIA}.index.v1+json`, manifests: [entry] }))
  await writeFile(join(path, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
  return { path, digest: manifest.digest }
}

interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
}

async function packLayer(layout: string, tar: string): Promise<{ layer: Descriptor; diffId: string }> {
  const draft = join(layout, 'blobs/layer.draft')
  const plain = createHash('sha256')
  const packed = createHash('sha256')
  await pipeline(createReadStream(tar), through(plain), createGzip({ level: 1 }), through(packed), createWriteStream(draft))
  const hex = packed.digest('hex')
  await rename(draft, blobPath(layout, hex))
  const { size } = await stat(blobPath(layout, hex))
  return { layer: { mediaType: `${MEDIA}.layer.v1.tar+gzip`, digest: `sha256:${hex}`, size }, diffId: `sha256:${plain.digest('hex')}` }
}

const through = (hash: Hash): Transform =>
  new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      done(null, chunk)
    },
  })

async function writeBlob(layout: string, mediaType: string, content: object): Promise<Descriptor> {
  const bytes = Buffer.from(JSON.stringify(content))
  const hex = createHash('sha256').update(bytes).digest('hex')
  await writeFile(blobPath(layout, hex), bytes)
  return { mediaType, digest: `sha256:${hex}`, size: bytes.length }
}

const blobPath = (layout: string, hex: string): string => join(layout, 'blobs/sha256', hex)
