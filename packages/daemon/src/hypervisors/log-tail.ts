import { open } from 'node:fs/promises'

const MAX_LINES = 5
const MAX_CHARS = 1000

/**
 * The last lines of a VMM's log, for an error that outlives the log. The guest's kernel writes there too, so they are bounded and
 * hold nothing that a terminal would obey. None when there is no log.
 */
export async function logTail(file: string): Promise<string[]> {
  let text: string
  try {
    await using handle = await open(file, 'r')
    const { size } = await handle.stat()
    // A character has at most four bytes.
    const buffer = Buffer.alloc(Math.min(size, 4 * MAX_CHARS))
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, size - buffer.length)
    text = buffer.toString('utf8', 0, bytesRead)
  } catch {
    return []
  }
  const lines = text
    .split('\n')
    .map((line) => line.replaceAll(/\p{Cc}+/gu, ' ').trim())
    .filter((line) => line !== '')
    .slice(-MAX_LINES)
  return lines
    .join('\n')
    .slice(-MAX_CHARS)
    .split('\n')
    .filter((line) => line !== '')
}

/** What an error says of a VM that did not start: the last line in its message, all of them in `vmm_log`. */
export function wordsOf(tail: readonly string[]): { readonly last: string; readonly detail: { readonly vmm_log?: string } } {
  return { last: tail.at(-1) ?? 'it said nothing', detail: tail.length === 0 ? {} : { vmm_log: tail.join('\n') } }
}
