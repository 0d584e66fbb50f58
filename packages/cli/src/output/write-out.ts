/** Writes and waits while the reader is behind, so that a flood from the daemon is not held in memory. */
export function writeOut(stream: NodeJS.WriteStream, bytes: string | Uint8Array): Promise<void> | undefined {
  if (stream.write(bytes)) return undefined
  return new Promise((resolve) => stream.once('drain', resolve))
}

/** Resolves when the reader has all that was written: an exit drops what a pipe had no room for. */
export const allOut = (stream: NodeJS.WriteStream): Promise<void> => new Promise((resolve) => stream.write('', () => resolve()))
