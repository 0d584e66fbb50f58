import { open } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { syncFile } from '../host/files.ts'
import { CommandError, runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'

export type RootfsCompression = 'lz4' | 'zstd'

// Both read fast in the guest. zstd's own default level would take forty times as long as lz4 for a tenth less.
const COMPRESSOR: Readonly<Record<RootfsCompression, readonly string[]>> = { lz4: ['-c', 'lz4'], zstd: ['-c', 'zstd', '-X', 'level=3'] }
const BLOCK_BYTES = 128 * 1024

/**
 * Makes the squashfs `file` of a tar stream, flushed. Throws what the stream throws. `inodes` is asked for afterwards and must be
 * what is in the file: tar2sqfs ends with success on a stream that it stopped reading half way.
 */
export async function writeRootfs(
  file: string,
  tar: AsyncIterable<Buffer>,
  options: { compression: RootfsCompression; inodes: () => number; step: Pick<Step, 'signal'> },
): Promise<{ sizeBytes: number }> {
  const argv = [
    'tar2sqfs',
    '--quiet',
    '--force',
    '--no-skip',
    ...COMPRESSOR[options.compression],
    '-b',
    String(BLOCK_BYTES),
    '-j',
    String(availableParallelism()),
    // Directories that no layer describes: root's, like an unpacking root would make them.
    '-d',
    'uid=0,gid=0,mode=0755,mtime=0',
    file,
  ] as const
  try {
    // A queue of its own: the merge goes on while tar2sqfs takes what it was given.
    const input = Readable.from(tar, { objectMode: false, highWaterMark: 1 << 20 })
    await runCommand(argv as unknown as [string, ...string[]], { step: options.step, input })
  } catch (error) {
    if (error instanceof CommandError) throw whatWentWrong(error)
    throw error
  }
  const { inodes, bytes } = await readSuperblock(file)
  const expected = options.inodes()
  if (inodes !== expected) {
    throw new AppError('internal_error', `The root file system has ${inodes} inodes where ${expected} were written`, { detail: { file } })
  }
  await syncFile(file)
  return { sizeBytes: bytes }
}

function whatWentWrong(error: CommandError): Error {
  if (error.cause instanceof Error && error.message.includes('lost its input')) return error.cause
  if (/No space left on device/.test(error.stderr)) {
    return new AppError('insufficient_resources', 'The disk is full: the root file system could not be written', { cause: error })
  }
  return new AppError('internal_error', 'The root file system could not be made', {
    cause: error,
    hint: 'The message of tar2sqfs is in the log',
  })
}

/** Source: the squashfs format, "Superblock": magic, inode count, …, size of the archive at byte 40. */
async function readSuperblock(file: string): Promise<{ inodes: number; bytes: number }> {
  await using handle = await open(file, 'r')
  const block = Buffer.alloc(96)
  const { bytesRead } = await handle.read(block, 0, block.length, 0)
  if (bytesRead < block.length || block.toString('latin1', 0, 4) !== 'hsqs') {
    throw new AppError('internal_error', 'tar2sqfs left something that is no squashfs', { detail: { file } })
  }
  return { inodes: block.readUInt32LE(4), bytes: (await handle.stat()).size }
}
