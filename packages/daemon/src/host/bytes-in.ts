import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'

/** Bytes that the files of a directory take on the host's disk; 0 when it is not there. */
export async function bytesIn(dir: string): Promise<number> {
  let bytes = 0
  for (const name of await readdir(dir).catch((): string[] => [])) {
    bytes += await stat(join(dir, name)).then(
      ({ blocks }) => blocks * 512,
      () => 0,
    )
  }
  return bytes
}
