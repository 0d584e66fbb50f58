import type { Stats } from 'node:fs'
import { readdir, readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { identityOf, type ProcessIdentity } from '../host/process-identity.ts'

/**
 * The shims of this daemon's user that hold `runDir`: those that stand in it, since it may have been renamed under them, and those that
 * were told to, which may not have come so far. For what a daemon started and died before it could write down; a socket may not be
 * there yet, or no longer.
 */
export async function findShims(runDir: string): Promise<ProcessIdentity[]> {
  const found: ProcessIdentity[] = []
  const dir = await lookAt(runDir)
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const argv = (await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '')).split('\0')
    if (path.basename(argv[0] ?? '') !== 'dormouse-shim' || argv[1] !== 'run') continue
    if (argv[argv.indexOf('--dir') + 1] !== runDir && !isSame(dir, await lookAt(`/proc/${name}/cwd`))) continue
    const owner = await lookAt(`/proc/${name}`)
    if (owner?.uid !== process.geteuid?.()) continue
    const identity = identityOf(Number(name))
    if (identity !== undefined) found.push(identity)
  }
  return found
}

const lookAt = (file: string): Promise<Stats | undefined> => stat(file).catch(() => undefined)

const isSame = (one: Stats | undefined, other: Stats | undefined): boolean =>
  one !== undefined && one.dev === other?.dev && one.ino === other.ino
