import { appendFileSync, renameSync, statSync } from 'node:fs'
import { type Logger, teeLogger } from '../log.ts'

/** A logger bound to an instance: its lines go where all lines go, and into the instance's own file, which is rotated once. */
export function instanceLogger(log: Logger, instance: { id: string; name: string }, file: { path: string; maxBytes: number }): Logger {
  let bytes: number | undefined
  return teeLogger(log, { instance: instance.id, name: instance.name }, (line) => {
    try {
      bytes ??= sizeOf(file.path)
      if (bytes > file.maxBytes) {
        renameSync(file.path, `${file.path}.1`)
        bytes = 0
      }
      appendFileSync(file.path, line, { mode: 0o600 })
      bytes += Buffer.byteLength(line)
    } catch {
      // Before its directory is made and after it is gone there is nowhere to write; the daemon's own log has the line.
    }
  })
}

function sizeOf(path: string): number {
  try {
    return statSync(path).size
  } catch {
    return 0
  }
}
