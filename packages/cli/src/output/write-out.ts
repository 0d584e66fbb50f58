/** Writes and waits while the reader is behind, so that a flood from the daemon is not held in memory. */
export function writeOut(stream: NodeJS.WriteStream, bytes: string | Uint8Array): Promise<void> | undefined {
  if (stream.write(bytes)) return undefined
  return new Promise((resolve) => stream.once('drain', resolve))
}
