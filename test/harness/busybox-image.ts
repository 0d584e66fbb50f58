/**
 * A real OCI image without a registry: Debian's static busybox, its links, and the few files that a program expects in /etc.
 * One layer, one configuration, one manifest, written as an OCI layout directory.
 */
import { createHash } from 'node:crypto'
import { chmod, copyFile, mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'

export interface BusyboxImageOptions {
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
  readonly env?: readonly string[]
  readonly workingDir?: string
  readonly user?: string
  readonly stopSignal?: string
  /** Further files by absolute path; those below a `bin` directory are executable. */
  readonly files?: Readonly<Record<string, string>>
  /** The tag in the layout's index. */
  readonly tag?: string
}

export interface OciLayout {
  /** The layout's directory. */
  readonly path: string
  /** The manifest's digest. */
  readonly digest: string
}

const BUSYBOX = '/bin/busybox'
const MEDIA = 'application/vnd.oci.image'

/** Says its name, then counts seconds until it is told to stop. */
export const TICKER = [
  '/bin/sh',
  '-c',
  'echo "hello from $(hostname)"; trap "echo bye; exit 0" TERM; n=0; while :; do n=$((n+1)); echo "tick $n"; sleep 1 & wait $!; done',
] as const

/** Writes the image into `dir/oci`. The same options give the same digest. */
export async function makeBusyboxImage(dir: string, options: BusyboxImageOptions = {}): Promise<OciLayout> {
  const path = join(dir, 'oci')
  const layer = await packTree(join(dir, 'tree'), options.files ?? {})
  await mkdir(join(path, 'blobs/sha256'), { recursive: true })
  const packed = await writeBlob(path, gzipSync(layer, { level: 1 }))
  const config = await writeBlob(path, {
    architecture: 'amd64',
    os: 'linux',
    created: '2026-01-01T00:00:00Z',
    config: {
      Env: ['PATH=/bin:/sbin', ...(options.env ?? [])],
      Entrypoint: options.entrypoint,
      Cmd: options.cmd ?? TICKER,
      WorkingDir: options.workingDir ?? '/',
      User: options.user ?? '',
      StopSignal: options.stopSignal,
    },
    rootfs: { type: 'layers', diff_ids: [digestOf(layer)] },
    history: [{ created: '2026-01-01T00:00:00Z', created_by: "Debian's busybox-static" }],
  })
  const manifest = await writeBlob(path, {
    schemaVersion: 2,
    mediaType: `${MEDIA}.manifest.v1+json`,
    config: { mediaType: `${MEDIA}.config.v1+json`, ...config },
    layers: [{ mediaType: `${MEDIA}.layer.v1.tar+gzip`, ...packed }],
  })
  await writeFile(
    join(path, 'index.json'),
    JSON.stringify({
      schemaVersion: 2,
      mediaType: `${MEDIA}.index.v1+json`,
      manifests: [
        {
          mediaType: `${MEDIA}.manifest.v1+json`,
          ...manifest,
          platform: { os: 'linux', architecture: 'amd64' },
          annotations: { 'org.opencontainers.image.ref.name': options.tag ?? 'latest' },
        },
      ],
    }),
  )
  await writeFile(join(path, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
  return { path, digest: manifest.digest }
}

const step = () => ({ signal: AbortSignal.timeout(60_000) })

async function packTree(tree: string, files: Readonly<Record<string, string>>): Promise<Buffer> {
  for (const name of ['bin', 'dev', 'etc', 'proc', 'root', 'run', 'sbin', 'sys', 'tmp', 'usr', 'var']) {
    await mkdir(join(tree, name), { recursive: true })
  }
  await copyFile(BUSYBOX, join(tree, 'bin/busybox'))
  await chmod(join(tree, 'bin/busybox'), 0o755)
  await chmod(join(tree, 'tmp'), 0o1777)
  const { stdout } = await runCommand([BUSYBOX, '--list'], { step: step() })
  for (const applet of stdout.trim().split('\n')) {
    if (applet !== 'busybox') await symlink('busybox', join(tree, 'bin', applet))
  }
  const contents = {
    '/etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n',
    '/etc/group': 'root:x:0:\nnogroup:x:65534:\n',
    ...files,
  }
  for (const [name, content] of Object.entries(contents)) {
    await mkdir(join(tree, dirname(name)), { recursive: true })
    await writeFile(join(tree, name), content)
    await chmod(join(tree, name), /\/s?bin\//.test(name) ? 0o755 : 0o644)
  }
  const archive = `${tree}.tar`
  const owners = ['--sort=name', '--mtime=@1767225600', '--owner=0', '--group=0', '--numeric-owner']
  await runCommand(['tar', '-C', tree, ...owners, '-cf', archive, '.'], { step: step() })
  const layer = await readFile(archive)
  await rm(tree, { recursive: true })
  await rm(archive)
  return layer
}

async function writeBlob(layout: string, content: object): Promise<{ digest: string; size: number }> {
  const bytes = Buffer.isBuffer(content) ? content : Buffer.from(JSON.stringify(content))
  const digest = digestOf(bytes)
  await writeFile(join(layout, 'blobs/sha256', digest.slice('sha256:'.length)), bytes)
  return { digest, size: bytes.length }
}

const digestOf = (bytes: Buffer): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`
