/** Tables for people: aligned columns, cut to the terminal's width and never cut in a pipe. */
import { safeText } from './format.ts'
import type { Style } from './style.ts'

export interface Column<Row> {
  readonly title: string
  readonly value: (row: Row) => string
  readonly align?: 'left' | 'right'
  /** May be shortened when the terminal is narrow, down to so many characters. */
  readonly shrinksTo?: number
  readonly paint?: (text: string, row: Row) => string
}

export interface TableLook {
  /** Columns of the terminal; undefined in a pipe, where nothing is cut. */
  readonly width: number | undefined
  readonly style: Style
}

const GAP = '   '

/** The table's text, ending in a newline. An empty list still has its header, so that a reader knows what is empty. */
export function renderTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[], look: TableLook): string {
  const cells = rows.map((row) => columns.map((column) => safeText(column.value(row))))
  const widths = columns.map((column, index) => Math.max(column.title.length, ...cells.map((line) => widthOf(line[index] ?? ''))))
  if (look.width !== undefined) shrink(columns, widths, look.width)

  const line = (texts: readonly string[], decorate: (text: string, index: number) => string): string =>
    texts
      .map((text, index) => {
        const width = widths[index] ?? 0
        const cut = cutTo(text, width)
        const padding = ' '.repeat(Math.max(0, width - widthOf(cut)))
        const shown = decorate(cut, index)
        return columns[index]?.align === 'right' ? padding + shown : shown + padding
      })
      .join(GAP)
      .trimEnd()

  const header = line(
    columns.map((column) => column.title),
    (text) => look.style.bold(text),
  )
  const body = cells.map((texts, rowIndex) =>
    line(texts, (text, index) => {
      const row = rows[rowIndex]
      const paint = columns[index]?.paint
      return row === undefined || paint === undefined ? text : paint(text, row)
    }),
  )
  return `${[header, ...body].join('\n')}\n`
}

/** Facts of one thing, one a line: `Name   value`. */
export function renderFacts(facts: readonly (readonly [name: string, value: string | undefined])[], style: Style): string {
  const known = facts.filter((fact): fact is readonly [string, string] => fact[1] !== undefined)
  const width = Math.max(0, ...known.map(([name]) => name.length))
  return known.map(([name, value]) => `${style.bold(name.padEnd(width))}${GAP}${safeText(value)}\n`).join('')
}

/** Takes from the widest column that may shrink until the line fits, or nothing is left to take. */
function shrink<Row>(columns: readonly Column<Row>[], widths: number[], width: number): void {
  const gaps = GAP.length * (columns.length - 1)
  for (let excess = widths.reduce((sum, each) => sum + each, gaps) - width; excess > 0; excess--) {
    let widest = -1
    columns.forEach((column, index) => {
      const own = widths[index] ?? 0
      if (column.shrinksTo !== undefined && own > column.shrinksTo && (widest < 0 || own > (widths[widest] ?? 0))) widest = index
    })
    if (widest < 0) return
    widths[widest] = (widths[widest] ?? 0) - 1
  }
}

const cutTo = (text: string, width: number): string => {
  const characters = [...text]
  return widthOf(text) <= width ? text : `${characters.slice(0, Math.max(0, width - 1)).join('')}…`
}

const widthOf = (text: string): number => [...text].length
