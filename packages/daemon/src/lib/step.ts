import type { Logger } from 'pino'

/** What anything that may take long is given last: when to give up, and where to write. */
export interface Step {
  readonly signal: AbortSignal
  readonly log: Logger
}
