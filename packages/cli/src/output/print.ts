/** The way out: standard output for results, standard error for what is said beside them. */
import { EXIT, type Told } from '../failure.ts'
import { safeText } from './format.ts'
import { styleOf } from './style.ts'
import { type Column, renderTable } from './table.ts'

/** A reader that went away (`dormouse logs web | head`) ends the command quietly, as SIGPIPE would. Called once, at the start. */
export function endOnBrokenPipe(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') process.exit(EXIT.brokenPipe)
      throw error
    })
  }
}

export const print = (text: string): void => void process.stdout.write(text.endsWith('\n') ? text : `${text}\n`)

export const printJson = (value: unknown): void => print(JSON.stringify(value, undefined, 2))
/** One value a line, for streams that a program reads as they come. */
export const printJsonLine = (value: unknown): void => print(JSON.stringify(value))

export const printTable = <Row>(columns: readonly Column<Row>[], rows: readonly Row[]): void =>
  print(renderTable(columns, rows, { width: process.stdout.isTTY ? process.stdout.columns : undefined, style: styleOf(process.stdout) }))

/** A remark for the person at the terminal; a pipe does not get it. */
export function remark(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`${styleOf(process.stderr).dim(text)}\n`)
}

export const warn = (text: string): void => void process.stderr.write(`${styleOf(process.stderr).yellow('Warning:')} ${text}\n`)

export function printFailure(told: Told, options: { json: boolean }): void {
  if (options.json) {
    const { exitCode: _, ...problem } = told
    process.stderr.write(`${JSON.stringify(problem)}\n`)
    return
  }
  const style = styleOf(process.stderr)
  process.stderr.write(`${style.red('Error:')} ${multiline(told.message)}\n`)
  for (const detail of told.details ?? []) process.stderr.write(`  ${multiline(detail.trim())}\n`)
  if (told.hint !== undefined) process.stderr.write(`${style.bold('Hint:')} ${multiline(told.hint)}\n`)
}

const multiline = (text: string): string => text.split('\n').map(safeText).join('\n')
