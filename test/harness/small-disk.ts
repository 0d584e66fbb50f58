/** A file system of its own for a test that fills it. Only root can make one. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, open, rm, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'

const step = () => ({ signal: AbortSignal.timeout(30_000) })

/** Mounts an ext4 of `bytes` at `at`, without blocks kept for root; its image is a sparse file beside it. */
export async function mountSmallDisk(at: string, bytes: number): Promise<AsyncDisposable> {
  const image = `${at}.ext4`
  {
    await using file = await open(image, 'wx')
    await file.truncate(bytes)
  }
  await runCommand(['mkfs.ext4', '-q', '-F', '-m', '0', image], { step: step() })
  await mkdir(at)
  await runCommand(['mount', '-o', 'loop', image, at], { step: step() })
  return {
    async [Symbol.asyncDispose]() {
      await runCommand(['umount', '--lazy', at], { step: step() })
      await rm(image)
    },
  }
}

// Takes what is left block by block, and then whatever is given up, as guests do that write to their disks.
const EATER = `
  const fs = require('node:fs')
  const file = fs.openSync(process.argv[1], 'a')
  const block = Buffer.alloc(4096, 1)
  const eat = () => {
    try {
      for (let i = 0; i < 64; i++) fs.writeSync(file, block)
    } catch (error) {
      if (error.code !== 'ENOSPC') throw error
    }
    setImmediate(eat)
  }
  eat()
`

/**
 * Fills the file system of `dir` and keeps it full, until it is disposed of: then there is room again. With `leaveBytes` so much stays
 * free for whoever comes first.
 */
export async function fillDisk(dir: string, { leaveBytes }: { leaveBytes?: number } = {}): Promise<AsyncDisposable> {
  const [bulk, crumbs] = [join(dir, 'bulk'), join(dir, 'crumbs')]
  const { bavail, bsize } = await statfs(dir)
  if (leaveBytes !== undefined) {
    await runCommand(['fallocate', '--length', `${bavail * bsize - leaveBytes}`, bulk], { step: step() })
    return { [Symbol.asyncDispose]: () => rm(bulk) }
  }
  await runCommand(['fallocate', '--length', `${Math.floor(bavail * bsize * 0.95)}`, bulk], { step: step() })
  const eater = spawn(process.execPath, ['-e', EATER, crumbs], { stdio: ['ignore', 'ignore', 'inherit'] })
  const gone = once(eater, 'exit')
  await pollUntil('the disk to be full', async () => (await statfs(dir)).bavail === 0, step())
  return {
    async [Symbol.asyncDispose]() {
      eater.kill('SIGKILL')
      await gone
      await rm(bulk)
      await rm(crumbs)
    },
  }
}
