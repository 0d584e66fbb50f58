import { open } from 'node:fs/promises'

/** What the guest wrote down before it was gone. */
export type JournalFact =
  | { readonly event: 'started'; readonly atMs?: number; readonly boot?: string }
  | { readonly event: 'exited'; readonly atMs?: number; readonly boot?: string; readonly code: number; readonly message: string }

// Two lines are all that a guest has to say; the file is the guest's to fill, so only its end is read.
const READ_MAX = 64 << 10
const FACTS_MAX = 64

/** The facts in a journal, oldest first. A guest may write anything there: what is no fact is passed over. An absent file holds none. */
export async function readJournal(path: string): Promise<JournalFact[]> {
  const file = await open(path, 'r').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  if (!file) return []
  try {
    const { size } = await file.stat()
    const bytes = Buffer.alloc(Math.min(size, READ_MAX))
    const { bytesRead } = await file.read(bytes, 0, bytes.length, Math.max(0, size - READ_MAX))
    return parseJournal(bytes.toString('utf8', 0, bytesRead))
  } finally {
    await file.close()
  }
}

export function parseJournal(text: string): JournalFact[] {
  return text
    .split('\n')
    .map(factOf)
    .filter((fact) => fact !== undefined)
    .slice(-FACTS_MAX)
}

function factOf(line: string): JournalFact | undefined {
  if (line.length > 4096 || !line.startsWith('{')) return undefined
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return undefined
  }
  const { event, atMs, boot, code, message } = value as Record<string, unknown>
  const common = {
    ...(typeof atMs === 'number' && Number.isSafeInteger(atMs) && { atMs }),
    ...(typeof boot === 'string' && /^[0-9a-f]{32}$/.test(boot) && { boot }),
  }
  if (event === 'started') return { event, ...common }
  if (event !== 'exited' || typeof code !== 'number' || !Number.isInteger(code) || code < 0 || code > 255) return undefined
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
  const words = typeof message === 'string' ? message.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ').slice(0, 500) : ''
  return { event, code, message: words, ...common }
}
