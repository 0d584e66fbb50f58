/**
 * Limits of time where everything is slow: `TEST_TIME_FACTOR` times as long as they say, for tests and for the daemons that they start.
 * Loaded before them (`node --import`). What a limit is for stays as it is; what is waited for without one, too.
 */
import { registerHooks } from 'node:module'

const factor = Number(process.env.TEST_TIME_FACTOR || 1)
/** Timers hold no more (Node: setTimeout). */
const LONGEST_MS = 2 ** 31 - 1

export const longer = (ms: number): number => Math.min(ms * factor, LONGEST_MS)

if (factor > 1) {
  const timeout = AbortSignal.timeout.bind(AbortSignal)
  AbortSignal.timeout = (ms) => timeout(longer(ms))
  const patient = new URL('patient-test.ts', import.meta.url).href
  registerHooks({
    resolve: (what, context, next) =>
      what === 'node:test' && context.parentURL !== patient ? { url: patient, shortCircuit: true } : next(what, context),
  })
}
