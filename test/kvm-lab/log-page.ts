/** The log of docs/kvm-lab.md: what became of each story, and of each promise, when it was last run, wherever that was. */
import type { Figure, Run } from './runs.ts'

export interface LogSources {
  readonly runs: readonly Run[]
  readonly figures: readonly Figure[]
  /** The log as it is on the page: what no run of these sources is newer than is taken over from it. */
  readonly present: string
  readonly stories: readonly string[]
  readonly notHere: Readonly<Record<string, string>>
}

const HEADER = '| Story | passed | failed | skipped | took | limits | ended (UTC) |'
const FIGURES = '### Figures'
const SKIPPED = '### Skipped there'

const minute = (at = ''): string => at.slice(0, 16).replace('T', ' ')
const duration = (ms: number): string => (ms < 120_000 ? `${Math.round(ms / 1000)} s` : `${Math.round(ms / 60_000)} min`)

export function logPage({ runs: given, figures, present, stories, notHere }: LogSources): string {
  const runs = lastOfEach(given)
  const rows = stories.map((story) => later(rowOf(runs.find((run) => run.story === story)), presentRow(story, present)))
  const told = rows.filter((row) => row !== undefined)
  const ends = told.map(({ ended }) => ended).sort()
  const sum = (of: 'passed' | 'failed' | 'skipped'): number => told.reduce((total, row) => total + row[of], 0)
  const from = new Set(told.filter(({ isNew }) => !isNew).map(({ story }) => story))
  const newRuns = runs.filter(({ story }) => told.some((row) => row.story === story && row.isNew))
  const skipped = [
    ...newRuns.flatMap(({ story, skipped }) => skipped.map((one) => `- ${story}: “${one.test}” — ${one.why}`)),
    ...linesOf(present, SKIPPED).filter((line) => from.has(/^- ([^:]+): “/.exec(line)?.[1] ?? '')),
  ]
  const machines = new Set([
    ...machinesOf([...newRuns, ...figures]),
    ...(from.size > 0 || figures.length === 0 ? linesOf(present, '').filter((line) => /^- On /.test(line)) : []),
  ])
  return [
    `${told.length} of ${stories.length} stories, ${sum('passed')} tests passed, ${sum('failed')} failed, ${sum('skipped')} skipped; between ${ends[0] ?? ''} and ${ends.at(-1) ?? ''} UTC.`,
    'Limits of time were so many times as long there as the tests say.',
    '',
    ...machines,
    '',
    HEADER,
    '|---|---|---|---|---|---|---|',
    ...rows.map((row, at) => row?.text ?? `| ${stories[at]} | — | — | — | not run yet | | |`),
    '',
    FIGURES,
    '',
    ...figuresOf(figures, linesOf(present, FIGURES)),
    '',
    SKIPPED,
    '',
    ...(skipped.length === 0 ? ['Nothing.'] : skipped),
    '',
    '### Not run there',
    '',
    ...Object.entries(notHere).map(([story, why]) => `- ${story}: ${why}`),
    '',
  ].join('\n')
}

interface Row {
  readonly story: string
  readonly text: string
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  readonly ended: string
  readonly isNew: boolean
}

function lastOfEach(runs: readonly Run[]): Run[] {
  const last = new Map<string, Run>()
  for (const run of runs) if (run.at > (last.get(run.story)?.at ?? '')) last.set(run.story, run)
  return [...last.values()]
}

const later = (ofRun: Row | undefined, ofPage: Row | undefined): Row | undefined =>
  ofRun !== undefined && (ofPage === undefined || ofRun.ended >= ofPage.ended) ? ofRun : ofPage

function rowOf(run: Run | undefined): Row | undefined {
  if (run === undefined) return undefined
  const { story, passed, failed, skipped, ms, at, facts } = run
  const ended = minute(at)
  const text = `| ${story} | ${passed} | ${failed} | ${skipped.length} | ${duration(ms)} | × ${facts.factor} | ${ended} |`
  return { story, text, passed, failed, skipped: skipped.length, ended, isNew: true }
}

function presentRow(story: string, present: string): Row | undefined {
  const text = present.split('\n').find((line) => line.startsWith(`| ${story} | `))
  const cells = /^\| [^|]+ \| (\d+) \| (\d+) \| (\d+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$/.exec(text ?? '')
  if (text === undefined || cells === null) return undefined
  const [, passed, failed, skipped, ended = ''] = cells
  return { story, text, passed: Number(passed), failed: Number(failed), skipped: Number(skipped), ended, isNew: false }
}

/** Each kind of machine once. */
function machinesOf(runs: readonly (Run | Figure)[]): string[] {
  const kinds = runs.map(({ where, facts: { kernel, distribution, node, qemu, guestKernel, others, machine } }) => {
    const programs = [qemu, `Node ${node}`, ...others.filter((other) => !other.endsWith(': not there'))]
    return `- On ${where} (${machine.replace(/, \d+ MiB$/, '')}): ${distribution}, kernel ${kernel}; guests' kernel ${guestKernel}; ${programs.join('; ')}.`
  })
  return [...new Set(kinds)]
}

const FIGURES_HEADER = '| Promise | ours | by hand | ratio | target | | runs | a boot there | measured (UTC) |'

/** Of each promise the last; figures of a driver stand beside those of the others. */
function figuresOf(figures: readonly Figure[], present: readonly string[]): string[] {
  const shown = present.flatMap((text) => {
    const cells = /^\| `(\w+)` \|.*\| (\d{4}-[^|]+) \|$/.exec(text)
    return cells === null ? [] : [{ id: cells[1] ?? '', at: cells[2] ?? '', text }]
  })
  const last = new Map<string, (typeof shown)[number]>()
  for (const row of [...shown, ...figures.map(figureRow)]) if (row.at >= (last.get(row.id)?.at ?? '')) last.set(row.id, row)
  const rows = [...last.values()].sort((a, b) => (a.id < b.id ? -1 : 1))
  if (rows.length === 0) return ['None yet.']
  return [
    '`make test-kvm STORIES=--bench`: each driver with KVM, beside its own VMM with KVM by hand in the same run; without a driver’s name it is QEMU.',
    'A guest took so long to boot there as a row says, so the ratios say something, and the milliseconds and what is “missed” in them little.',
    '',
    FIGURES_HEADER,
    '|---|---|---|---|---|---|---|---|---|',
    ...rows.map(({ text }) => text),
  ]
}

function figureRow({ at, facts, outcome }: Figure): { readonly id: string; readonly at: string; readonly text: string } {
  const { id, ours, anchor, unit, ratio, target, met, runs } = outcome
  const cells = [
    `\`${id}\``,
    `${ours} ${unit}`,
    anchor === null ? '' : `${anchor} ${unit}`,
    ratio ?? '',
    target,
    met ? 'met' : 'missed',
    runs,
  ]
  return { id, at: minute(at), text: `| ${[...cells, duration(facts.bootMs), minute(at)].join(' | ')} |` }
}

/** Of the part of the log below that heading, without empty lines around it. The first part has none. */
function linesOf(present: string, heading: string): string[] {
  const parts = `\n${present}`.split(/\n(?=### )/)
  const part = parts.find((text) => (heading === '' ? !text.startsWith('### ') : text.startsWith(`${heading}\n`))) ?? ''
  return part.slice(heading.length).trim().split('\n')
}
