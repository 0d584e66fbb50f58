import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

/** A tool's standard output as bytes. */
export async function spawnOutput(argv: readonly [string, ...string[]]): Promise<Buffer> {
  const { stdout } = await promisify(execFile)(argv[0], argv.slice(1), { encoding: 'buffer', maxBuffer: 256 << 20, timeout: 60_000 })
  return stdout
}
