/** From an OCI layout to a root disk that can be booted, beside the tools that a script would use: skopeo copy, then tar2sqfs. */
import { spawn } from 'node:child_process'
import { createReadStream } from 'node:fs'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { startDaemon } from '../../test/harness/daemon-process.ts'
import { importImage } from '../../test/harness/import-image.ts'
import type { Bench } from '../bench.ts'
import { makeDebianImage } from '../debian-image.ts'
import { atLeastTimesFaster, type Measurement } from '../promise.ts'

const NAME = 'bench/debian:latest'
const MAX_RUNS = 5

export async function measureImageConversion({ dir, installed, runs, tell }: Bench): Promise<Measurement[]> {
  tell('making an image of Debian packages')
  const { path, rootTarBytes } = await makeDebianImage(join(dir, 'debian'))
  await using daemon = await startDaemon({ dir: join(dir, 'convert'), argv: installed.daemon, env: installed.env })
  const ours: number[] = []
  const anchor: number[] = []
  for (let run = 0; run < Math.min(runs, MAX_RUNS); run += 1) {
    const from = performance.now()
    await importImage(daemon, path, NAME)
    ours.push(performance.now() - from)
    await daemon.client.post('/images/prune')
    anchor.push(await copyAndPack(path, join(dir, 'by-hand')))
  }
  return [
    {
      id: 'image_convert',
      what: `\`dormouse image import\` of an OCI layout of one gzip layer (${Math.round(rootTarBytes / 1e6)} MB of tar) until it can be run; the anchor is skopeo copy of the same layout and tar2sqfs -c lz4 of its layer`,
      unit: 'ms',
      target: atLeastTimesFaster(1),
      ours,
      anchor,
    },
  ]
}

async function copyAndPack(layout: string, dir: string): Promise<number> {
  await rm(dir, { recursive: true, force: true })
  await mkdir(dir, { recursive: true })
  const from = performance.now()
  const copy = join(dir, 'copy')
  await runCommand(['skopeo', 'copy', '--quiet', `oci:${layout}:latest`, `oci:${copy}:latest`], {
    step: { signal: AbortSignal.timeout(300_000) },
    env: { PATH: process.env.PATH ?? '', HOME: dir },
  })
  const layer = await onlyLayerOf(copy)
  const packer = spawn('tar2sqfs', ['-q', '-f', '-c', 'lz4', '-b', '131072', join(dir, 'rootfs.squashfs')], {
    stdio: ['pipe', 'ignore', 'inherit'],
  })
  const packed = new Promise<number | null>((resolve) => packer.once('close', resolve))
  await pipeline(createReadStream(layer), createGunzip(), packer.stdin)
  if ((await packed) !== 0) throw new Error('tar2sqfs could not pack the layer')
  return performance.now() - from
}

async function onlyLayerOf(layout: string): Promise<string> {
  const blob = (digest: string): string => join(layout, 'blobs/sha256', digest.replace('sha256:', ''))
  const json = async <T>(path: string): Promise<T> => JSON.parse(await readFile(path, 'utf8')) as T
  const { manifests } = await json<{ manifests: { digest: string }[] }>(join(layout, 'index.json'))
  const { layers } = await json<{ layers: { digest: string }[] }>(blob(manifests[0]?.digest ?? ''))
  return blob(layers[0]?.digest ?? '')
}
