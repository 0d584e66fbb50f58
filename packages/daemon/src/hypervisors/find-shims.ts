import { readdir, readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { identityOf, type ProcessIdentity } from '../host/process-identity.ts'

/**
 * The shims of this daemon's user that hold `runDir`, found by their command lines (which anyone can choose). For what a daemon started and died before it could write down; a
 * socket may not be there yet, or no longer.
 */
export async function findShims(runDir: string): Promise<ProcessIdentity[]> {
  const found: ProcessIdentity[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const argv = (await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '')).split('\0')
    if (path.basename(argv[0] ?? '') !== 'dormouse-shim' || argv[1] !== 'run' || argv[argv.indexOf('--dir') + 1] !== runDir) continue
    const owner = await stat(`/proc/${name}`).catch(() => undefined)
    if (owner?.uid !== process.geteuid?.()) continue
    const identity = identityOf(Number(name))
    if (identity !== undefined) found.push(identity)
  }
  return found
}
