// V8 lets dead buffers gather up to 64 MiB before it looks; where gigabytes pass through, that is its standing size.
const EVERY_BYTES = 8 << 20

let gathered = 0

/**
 * Tells of short-lived buffers that pass through, so that they are collected as they come. A collection takes a few milliseconds in
 * a process that holds little else. Does nothing where the engine may not be asked (`--expose-gc`).
 */
export function buffersPass(bytes: number): void {
  gathered += bytes
  if (gathered < EVERY_BYTES) return
  gathered = 0
  globalThis.gc?.()
}
