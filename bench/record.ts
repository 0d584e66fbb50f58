/**
 * Writes the figures of the last bench into docs/promises.md, between its two marks, with the day and what they were measured on.
 * Of promises that it did not measure the figures stay as they are.
 */
import { readFile, stat, writeFile } from 'node:fs/promises'
import { cpus, release } from 'node:os'
import { join } from 'node:path'
import type { Outcome } from './promise.ts'

const BEGIN = '<!-- figures: begin -->'
const END = '<!-- figures: end -->'

const results = join(import.meta.dirname, 'out/promises.json')
const page = join(import.meta.dirname, '../docs/promises.md')
const outcomes = JSON.parse(await readFile(results, 'utf8')) as Outcome[]
const day = (await stat(results)).mtime.toISOString().slice(0, 10)
const text = await readFile(page, 'utf8')
const [before, after] = [text.slice(0, text.indexOf(BEGIN)), text.slice(text.indexOf(END))]
if (!text.includes(BEGIN) || !text.includes(END)) throw new Error(`${page} has lost its marks`)
await writeFile(page, `${before}${BEGIN}\n${tableOf(outcomes)}\n${after}`)

function tableOf(outcomes: readonly Outcome[]): string {
  const measured = outcomes.map(({ id, ours, anchor, unit, ratio, target, met, runs }) => {
    const cells = [`\`${id}\``, `${ours} ${unit}`, anchor === null ? '' : `${anchor} ${unit}`, ratio === null ? '' : `${ratio}`]
    return `| ${[...cells, target, met ? 'met' : '**missed**', runs, day].join(' | ')} |`
  })
  const idOf = (row: string): string => row.split('`')[1] ?? ''
  const known = text.slice(before.length, -after.length).match(/^\| `.*$/gm) ?? []
  const rows = new Map([...known, ...measured].map((row) => [idOf(row), row]))
  return [
    `\`make bench\`, the last time on ${cpus().length} × ${cpus()[0]?.model.trim() ?? 'unknown'}, Linux ${release()}.`,
    '',
    '| Promise | Ours | Anchor | Anchor / ours | Target | | Runs | Day |',
    '|---|---|---|---|---|---|---|---|',
    ...rows.values(),
    '',
  ].join('\n')
}
