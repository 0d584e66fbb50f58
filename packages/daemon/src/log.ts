import { type Logger, pino } from 'pino'

export type { Logger } from 'pino'

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

interface Destination {
  write(line: string): void
}

// pino keeps a logger's destination to itself, and a logger that also writes elsewhere needs it.
const destinations = new WeakMap<Logger, Destination>()

/** The daemon's logger: one JSON line per fact on stderr, so that stdout stays free for what a command prints. */
export function createLogger(options: { level: LogLevel; destination?: Destination }): Logger {
  const destination = options.destination ?? pino.destination({ fd: 2, sync: true })
  const log = pino({ ...SETTINGS, level: options.level }, destination)
  destinations.set(log, destination)
  return log
}

/** A logger with `bindings` that writes each line to `sink` as well. */
export function teeLogger(log: Logger, bindings: Readonly<Record<string, unknown>>, sink: (line: string) => void): Logger {
  const destination = destinations.get(log)
  if (!destination) return log.child(bindings)
  const both = {
    write(line: string): void {
      destination.write(line)
      sink(line)
    },
  }
  return pino({ ...SETTINGS, level: log.level }, both).child(bindings)
}

/** A logger that drops everything: for tests. */
export const silentLogger: Logger = pino({ level: 'silent' })

/** An error as fields: code, message and hint of each link of its cause chain, the stack once and only where the fault is ours. */
function serializeError(error: unknown): unknown {
  const chain: Record<string, unknown>[] = []
  let link: unknown = error
  while (link !== undefined && link !== null && chain.length < MAX_CAUSES) {
    if (!(link instanceof Error)) {
      chain.push({ message: String(link) })
      break
    }
    const { code, hint, detail } = link as { code?: unknown; hint?: unknown; detail?: unknown }
    chain.push({ code, message: link.message, hint, detail, stack: code === undefined ? link.stack : undefined })
    link = link.cause
  }
  const [first, ...causes] = chain
  return causes.length > 0 ? { ...first, causes } : first
}

const MAX_CAUSES = 8

const SETTINGS = {
  base: undefined,
  timestamp: pino.stdTimeFunctions.isoTime,
  formatters: { level: (label: string) => ({ level: label }) },
  serializers: { err: serializeError, error: serializeError },
  redact: ['password', 'token', 'authorization', '*.password', '*.token', '*.authorization', 'credentials'],
}
