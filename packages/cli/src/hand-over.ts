/** `serve` and `doctor` are the daemon's own: its program takes this process over, with arguments, streams and signals as they are. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { environment } from './environment.ts'
import { Failure } from './failure.ts'

// Beside the CLI in an install, and in the source tree.
const PLACES = ['../daemon/main.js', '../../daemon/src/main.ts']

export function handOver(args: readonly string[]): never {
  const main = PLACES.map((place) => join(import.meta.dirname, place)).find((path) => existsSync(path))
  if (main === undefined) throw new Failure('The daemon is not installed beside this CLI', { hint: 'Install both: make install' })
  const { execve } = process
  if (execve === undefined) throw new Failure('This Node cannot hand over to the daemon', { hint: 'Use Node 24' })
  return execve(
    process.execPath,
    [process.execPath, '--disable-warning=ExperimentalWarning', main, ...args],
    definedOnly(environment.all()),
  )
}

const definedOnly = (env: NodeJS.ProcessEnv): Record<string, string> =>
  Object.fromEntries(Object.entries(env).flatMap(([name, value]) => (value === undefined ? [] : [[name, value] as const])))
