import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Command } from 'commander'
import { cannotRead } from '../../copy/cannot-read.ts'
import { packedSize, packTree } from '../../copy/pack-tree.ts'
import { connect, type HostOption } from '../../daemon.ts'
import { Failure } from '../../failure.ts'
import { followPull } from '../../image-pull.ts'
import { humanBytes } from '../../output/format.ts'
import { print, printJson } from '../../output/print.ts'
import { counted, showProgress } from '../../output/progress.ts'

interface Options extends HostOption {
  readonly platform?: string
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<path>', 'a docker-archive or oci-archive tar, an OCI layout directory, or - for standard input')
    .argument('[name]', 'what to call it; else its own name from the archive')
    .option('--platform <os/arch>', 'which one of several; the host’s own when left out')
    .option('-q, --quiet', 'no progress')
    .option('--json', 'for programs')
    .action((path: string, name: string | undefined) => importImage(path, name, command.optsWithGlobals()))
}

async function importImage(path: string, name: string | undefined, options: Options): Promise<void> {
  const source = await open(path)
  const daemon = connect(options)
  using progress = options.quiet || options.json ? undefined : showProgress(path === '-' ? 'Importing' : `Importing ${path}`)
  const sent = await daemon.call('importImage', {
    query: {
      ...(name !== undefined && { name }),
      ...(options.platform !== undefined && { platform: options.platform }),
    },
    upload: { type: 'application/x-tar', bytes: counted(source.bytes, source.size, progress) },
  })
  const image =
    sent.status === 'ready'
      ? sent
      : await followPull(daemon, sent, { quiet: true, onProgress: ({ status }) => progress?.update({ step: status }) })
  progress?.finish(`${image.name}: ready${image.size_bytes ? ` (${humanBytes(image.size_bytes)})` : ''}`)
  if (options.json) printJson(image)
  else print(image.name)
}

interface Source {
  readonly bytes: AsyncIterable<Uint8Array>
  readonly size?: number
}

async function open(path: string): Promise<Source> {
  if (path === '-') return { bytes: process.stdin }
  const found = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw cannotRead(path, cause)
  })
  if (!found.isDirectory()) return { bytes: createReadStream(path), size: found.size }
  const isLayout = await stat(join(path, 'index.json')).then(
    () => true,
    () => false,
  )
  if (!isLayout)
    throw new Failure(`${path} is a directory without an index.json, so it is no OCI layout`, {
      hint: 'Make one with: skopeo copy docker://alpine oci:DIR:alpine',
    })
  return { bytes: packTree(path), size: await packedSize(path) }
}
