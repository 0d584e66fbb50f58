import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

// V8 lets dead buffers gather up to 64 MiB before it looks; in a thread that turns gigabytes over, that is its standing size.
const EVERY_BYTES = 16 << 20

/**
 * Collects the short-lived buffers of a stream: call it with the size of each one that is done with. A collection takes a few
 * milliseconds in a thread that holds little else. Does nothing where the engine does not let itself be asked.
 */
export function bufferCollector(): (bytes: number) => void {
  let gathered = 0
  return (bytes) => {
    gathered += bytes
    if (gathered < EVERY_BYTES) return
    gathered = 0
    collect ??= findCollector()
    collect({ type: 'major' })
  }
}

let collect: ((options: { type: 'major' }) => void) | undefined

function findCollector(): (options: { type: 'major' }) => void {
  setFlagsFromString('--expose-gc')
  const found: unknown = runInNewContext('gc')
  return typeof found === 'function' ? (found as (options: { type: 'major' }) => void) : () => undefined
}
