/**
 * The directory below a run directory that is the VMM's own (shim/own-dir.c): sockets that it binds itself are there. A VMM that was
 * taken over can put a link into it, so no name in it is ever followed.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
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
