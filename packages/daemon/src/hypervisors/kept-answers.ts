/** What a host was asked once, about a VMM that others may exchange while the daemon runs. */
import { isStill, type VmmBinary } from './vmm-binary.ts'

/** They hold for as long as the program that was asked is the one that is there. A failure is not kept: what was missing may be installed. */
export class KeptAnswers<T> {
  readonly #ask: () => Promise<T>
  readonly #programOf: (answers: T) => VmmBinary
  #asked: Promise<T> | undefined

  constructor(ask: () => Promise<T>, programOf: (answers: T) => VmmBinary) {
    this.#ask = ask
    this.#programOf = programOf
  }

  /** Any number may want them at once: the host is asked once. */
  async get(): Promise<T> {
    for (;;) {
      this.#asked ??= this.#ask()
      const asked = this.#asked
      try {
        const answers = await asked
        if (await isStill(this.#programOf(answers))) return answers
        this.#forget(asked)
      } catch (error) {
        this.#forget(asked)
        throw error
      }
    }
  }

  #forget(asked: Promise<T>): void {
    if (this.#asked === asked) this.#asked = undefined
  }
}
