import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import type { Command } from 'commander'
import { cannotRead } from '../../copy/cannot-read.ts'
import { packedSize, packTree } from '../../copy/pack-tree.ts'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { counted, showProgress } from '../../output/progress.ts'
import { collect, parseGigabytes, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly size: string
  readonly id?: string
  readonly tag?: string[]
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<path>', 'a tar, compressed with gzip or zstd or not at all; a directory; or - for standard input')
    .argument('<name>', 'of the volume')
    .option('-s, --size <size>', 'such as 10g; what is in the archive must fit', '10g')
    .option('--id <id>', 'an id of your own; made up when left out')
    .option('-t, --tag <key=value>', 'a tag of your own; may be repeated', collect)
    .option('-q, --quiet', 'no progress')
    .option('--json', 'for programs: the volume')
    .action((path: string, name: string) => importVolume(path, name, command.optsWithGlobals()))
}

async function importVolume(path: string, name: string, options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const query = {
    name,
    size_gb: parseGigabytes(options.size),
    ...(options.id !== undefined && { id: options.id }),
    ...(tags !== undefined && { tags }),
  }
  const source = await open(path)
  const daemon = connect(options)
  using progress = options.quiet || options.json ? undefined : showProgress(path === '-' ? 'Importing' : `Importing ${path}`)
  const bytes = counted(source.bytes, source.size, progress)
  const volume = await daemon.call('createVolumeFromArchive', { query, upload: { type: 'application/gzip', bytes } })
  progress?.finish(`${volume.name}: filled`)
  if (options.json) printJson(volume)
  else print(volume.id)
}

async function open(path: string): Promise<{ readonly bytes: AsyncIterable<Uint8Array>; readonly size?: number }> {
  if (path === '-') return { bytes: process.stdin }
  const found = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw cannotRead(path, cause)
  })
  if (!found.isDirectory()) return { bytes: createReadStream(path), size: found.size }
  return { bytes: packTree(path), size: await packedSize(path) }
}
