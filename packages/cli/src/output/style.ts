/** Colours for people: only on a terminal, never under NO_COLOR. */
import type { WriteStream } from 'node:tty'
import { environment } from '../environment.ts'

type Paint = (text: string) => string
export interface Style {
  readonly bold: Paint
  readonly dim: Paint
  readonly red: Paint
  readonly green: Paint
  readonly yellow: Paint
  readonly blue: Paint
}

const plain: Paint = (text) => text
const paint =
  (on: number, off: number): Paint =>
  (text) =>
    text === '' ? '' : `\u001b[${on}m${text}\u001b[${off}m`

const PLAIN: Style = { bold: plain, dim: plain, red: plain, green: plain, yellow: plain, blue: plain }
const COLOURED: Style = {
  bold: paint(1, 22),
  dim: paint(2, 22),
  red: paint(31, 39),
  green: paint(32, 39),
  yellow: paint(33, 39),
  blue: paint(34, 39),
}

export const styleOf = (stream: Partial<Pick<WriteStream, 'isTTY'>>): Style =>
  stream.isTTY && !environment.wantsNoColour() ? COLOURED : PLAIN

/** The colour in which a state is shown: what runs is green, what sleeps is blue, what needs someone is red. */
export function paintState(style: Style, state: string): string {
  switch (state) {
    case 'Running':
    case 'ready':
      return style.green(state)
    case 'Standby':
      return style.blue(state)
    case 'Unknown':
    case 'failed':
      return style.red(state)
    case 'Stopped':
      return style.dim(state)
    default:
      return style.yellow(state)
  }
}
