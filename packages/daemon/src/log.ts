import { type Logger, pino } from 'pino'

export type { Logger } from 'pino'

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

/** The daemon's logger: one JSON line per fact on stderr, so that stdout stays free for what a command prints. */
export function createLogger(options: { level: LogLevel; destination?: { write(line: string): void } }): Logger {
  const settings = {
    level: options.level,
    base: undefined,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    serializers: { err: serializeError, error: serializeError },
    redact: ['password', 'token', 'authorization', '*.password', '*.token', '*.authorization', 'credentials'],
  }
  return pino(settings, options.destination ?? pino.destination({ fd: 2, sync: true }))
}

/** A logger that drops everything: for tests. */
export const silentLogger: Logger = pino({ level: 'silent' })

const MAX_CAUSES = 8

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
