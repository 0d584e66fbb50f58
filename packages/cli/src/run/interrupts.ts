/**
 * Ctrl-C and its kin while an instance is being run: the first asks the workload to end, the second ends it, the third gives up
 * waiting. What comes before anyone listens is kept, so that a Ctrl-C during the start still stops what was started.
 */
import { EXIT } from '../failure.ts'

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const

export class Interrupts implements Disposable {
  #count = 0
  #listener: ((count: number) => void) | undefined
  readonly #onSignal = (): void => {
    this.#count++
    if (this.#count > 2) process.exit(EXIT.interrupted)
    this.#listener?.(this.#count)
  }

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.#onSignal)
  }

  get count(): number {
    return this.#count
  }

  /** `listener` gets 1 for the first, 2 for the second; at once when they have been. */
  listen(listener: (count: number) => void): void {
    this.#listener = listener
    if (this.#count > 0) listener(this.#count)
  }

  /** Gives the signals to someone else. */
  [Symbol.dispose](): void {
    for (const signal of SIGNALS) process.off(signal, this.#onSignal)
  }
}
