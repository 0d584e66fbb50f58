/** How far something is: one line that redraws itself on a terminal, a plain line per step in a pipe or a log. Always on standard error. */
import { humanBytes, safeText } from './format.ts'
import { styleOf } from './style.ts'

export interface ProgressState {
  /** What is being done now: `pulling`, `converting`. */
  readonly step: string
  readonly doneBytes?: number
  readonly totalBytes?: number
}

export interface Progress extends Disposable {
  update(state: ProgressState): void
  /** The last word; the line stays. */
  finish(text: string): void
}

type Out = Pick<NodeJS.WriteStream, 'write'> & Partial<Pick<NodeJS.WriteStream, 'isTTY' | 'columns'>>

export const showProgress = (title: string, out: Out = process.stderr): Progress =>
  out.isTTY ? new LineProgress(safeText(title), out) : new PlainProgress(safeText(title), out)

/** So many times a second is as much as eyes follow. */
const REDRAW_MS = 100
const BAR_MAX = 30
const CLEAR_LINE = '\r\u001b[2K'

class LineProgress implements Progress {
  readonly #title: string
  readonly #out: Out
  #drawnAt = 0
  #step = ''

  constructor(title: string, out: Out) {
    this.#title = title
    this.#out = out
  }

  update(state: ProgressState): void {
    const now = performance.now()
    if (state.step === this.#step && now - this.#drawnAt < REDRAW_MS && state.doneBytes !== state.totalBytes) return
    this.#drawnAt = now
    this.#step = state.step
    this.#out.write(CLEAR_LINE + progressLine(this.#title, state, (this.#out.columns ?? 80) - 1))
  }

  finish(text: string): void {
    this.#out.write(`${CLEAR_LINE}${styleOf(this.#out).dim(text)}\n`)
    this.#step = ''
  }

  /** Takes the line away when nothing was finished, so that an error does not stand behind it. */
  [Symbol.dispose](): void {
    if (this.#step !== '') this.#out.write(CLEAR_LINE)
  }
}

class PlainProgress implements Progress {
  readonly #title: string
  readonly #out: Out
  #step = ''

  constructor(title: string, out: Out) {
    this.#title = title
    this.#out = out
  }

  update(state: ProgressState): void {
    if (state.step === this.#step) return
    this.#step = state.step
    const size = state.totalBytes ? ` (${humanBytes(state.totalBytes)})` : ''
    this.#out.write(`${this.#title}: ${state.step}${size}\n`)
  }

  finish(text: string): void {
    this.#out.write(`${text}\n`)
  }

  [Symbol.dispose](): void {}
}

/** `alpine  [=======>      ]  52%  1.8MB/3.4MB  pulling`, no longer than `width`. */
export function progressLine(title: string, state: ProgressState, width: number): string {
  const { doneBytes, totalBytes } = state
  const known = doneBytes !== undefined && totalBytes !== undefined && totalBytes > 0
  const bytes = known ? `${humanBytes(doneBytes)}/${humanBytes(totalBytes)}` : doneBytes ? humanBytes(doneBytes) : ''
  const ratio = known ? Math.min(1, doneBytes / totalBytes) : undefined
  const tail = [ratio === undefined ? '' : `${Math.floor(ratio * 100)}%`.padStart(4), bytes, state.step]
    .filter((part) => part !== '')
    .join('  ')
  const barRoom = Math.min(BAR_MAX, width - title.length - tail.length - 6)
  const bar = ratio === undefined || barRoom < 8 ? '' : `[${barOf(ratio, barRoom)}]  `
  const line = `${title}  ${bar}${tail}`
  return line.length <= width ? line : `${line.slice(0, Math.max(0, width - 1))}…`
}

function barOf(ratio: number, room: number): string {
  const full = Math.round(ratio * room)
  return full >= room ? '='.repeat(room) : `${'='.repeat(Math.max(0, full - 1))}${full > 0 ? '>' : ''}`.padEnd(room)
}

/** The same bytes, each told of as it is sent; then what is made of them is waited for. */
export async function* counted(
  bytes: AsyncIterable<Uint8Array>,
  total: number | undefined,
  progress: Progress | undefined,
): AsyncGenerator<Uint8Array> {
  let done = 0
  for await (const piece of bytes) {
    yield piece
    done += piece.length
    progress?.update({ step: 'sending', doneBytes: done, ...(total !== undefined && { totalBytes: total }) })
  }
  progress?.update({ step: 'converting' })
}
