/**
 * The way out of a session whose guest no longer answers: Enter, `~`, `.` at a terminal that is raw, where Ctrl-C is only a key.
 * As ssh has it, so that no key that a shell uses is taken: `~` is held back until the next key shows what it was, and `~~` is one.
 */
const ENTER = 0x0d
const TILDE = 0x7e
const DOT = 0x2e

export class EscapeKeys {
  // The very first key counts as after an Enter.
  #previous = ENTER
  #holdsTilde = false

  /** What of `keys` is for the guest; `isLeaving` once the sequence was typed. */
  filter(keys: Uint8Array): { readonly forGuest: Uint8Array; readonly isLeaving: boolean } {
    const passed: number[] = []
    for (const key of keys) {
      if (this.#holdsTilde) {
        this.#holdsTilde = false
        if (key === DOT) return { forGuest: Uint8Array.from(passed), isLeaving: true }
        passed.push(TILDE)
        this.#previous = TILDE
        if (key === TILDE) continue
      } else if (key === TILDE && this.#previous === ENTER) {
        this.#holdsTilde = true
        continue
      }
      passed.push(key)
      this.#previous = key
    }
    return { forGuest: Uint8Array.from(passed), isLeaving: false }
  }
}
