/**
 * The directory below a run directory that is the VMM's own (shim/own-dir.c): sockets that it binds itself are there. A VMM that was
 * taken over can put a link into it, so no name in it is ever followed.
 */
import { constants, existsSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { runCommand } from '../host/run-command.ts'
import { connectTo } from '../host/unix-socket.ts'
import type { Step } from '../lib/step.ts'

export const OWN_DIR = 'own'

// Linux's, which Node does not name: the file is only pointed at, not opened.
const O_PATH = 0o10000000

/** Connects to a socket that the VMM of `runDir` has bound. ENOENT and ECONNREFUSED when it has not (yet), `timed_out` when it takes too long. */
export async function connectToOwn(runDir: string, name: string, step: Pick<Step, 'signal'>): Promise<Socket> {
  await using file = await openSocket(path.join(runDir, OWN_DIR, name))
  return await connectTo(`/proc/self/fd/${file.fd}`, step)
}

async function openSocket(file: string): Promise<FileHandle & AsyncDisposable> {
  const handle = await open(file, O_PATH | constants.O_NOFOLLOW)
  if ((await handle.stat()).isSocket()) return handle
  await handle.close()
  throw new AppError('internal_error', `${path.basename(file)} of the VMM is no socket`)
}

/**
 * Removes it and whatever is in it, once its VMM is gone. It goes by descriptors, as Node's own `rm` does not: no link is followed, also
 * none that is put there meanwhile, and no directory is too deep for a path. Repeat is harmless.
 */
export async function removeOwnDir(runDir: string): Promise<void> {
  const own = path.join(runDir, OWN_DIR)
  const step = { signal: AbortSignal.timeout(REMOVAL_LIMIT_MS) }
  // Something may still be written there by one that ends.
  for (let tries = 1; existsSync(own); tries++) {
    try {
      await runCommand(['rm', '-rf', '--', own], { step })
    } catch (error) {
      if (tries === MOST_TRIES) throw error
      await sleep(20 * tries, undefined, { ref: false })
    }
  }
}

const REMOVAL_LIMIT_MS = 60_000
const MOST_TRIES = 6
