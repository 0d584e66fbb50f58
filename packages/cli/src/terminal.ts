/**
 * The terminal of the person at it: raw while a guest's tty has it, and given back as it was in every way of ending: the end of the
 * command, an error, a signal, `process.exit`.
 */
import { spawnSync } from 'node:child_process'
import { createInterface } from 'node:readline/promises'

export interface TerminalSize {
  readonly rows: number
  readonly cols: number
}

export const terminalSize = (): TerminalSize | undefined =>
  process.stdout.isTTY && process.stdout.rows > 0 && process.stdout.columns > 0
    ? { rows: process.stdout.rows, cols: process.stdout.columns }
    : undefined

/** Keys go to the guest as they are typed, Ctrl-C too. Disposing gives the terminal back; a repeat is harmless. */
export class RawTerminal implements Disposable {
  #isRaw = true
  readonly #restore = (): void => this[Symbol.dispose]()

  constructor() {
    process.stdin.setRawMode(true)
    // Node's raw mode still turns each newline into two characters; the guest's terminal has done that already, and a full-screen
    // program there means a newline as it is. What setRawMode(false) brings back is the terminal as it was, this included.
    spawnSync('stty', ['-opost'], { stdio: ['inherit', 'ignore', 'ignore'] })
    process.on('exit', this.#restore)
  }

  [Symbol.dispose](): void {
    if (!this.#isRaw) return
    this.#isRaw = false
    process.off('exit', this.#restore)
    process.stdin.setRawMode(false)
  }
}

/** Calls `onResize` whenever the window changes its size, until disposed. */
export function watchSize(onResize: (size: TerminalSize) => void): Disposable {
  const listener = (): void => {
    const size = terminalSize()
    if (size !== undefined) onResize(size)
  }
  process.stdout.on('resize', listener)
  return { [Symbol.dispose]: () => void process.stdout.off('resize', listener) }
}

/** A question answered by y or n; anything but yes is no. */
export async function confirm(question: string): Promise<boolean> {
  const asking = createInterface({ input: process.stdin, output: process.stderr })
  try {
    return /^y(es)?$/i.test((await asking.question(`${question} [y/N] `)).trim())
  } finally {
    asking.close()
  }
}
