/**
 * Writes the log of docs/kvm-lab.md from the runs that are kept below build/kvm-lab/runs: the last one of each story.
 *
 *   node test/kvm-lab/log.ts
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { BENCHED, type BenchRun, RUNS, type Run } from './runs.ts'
import { NOT_HERE, STORIES } from './stories.ts'

const PAGE = join(REPOSITORY, 'docs/kvm-lab.md')
const MARK = '<!-- from here on written by test/kvm-lab/log.ts -->'

const minute = (at = ''): string => at.slice(0, 16).replace('T', ' ')
const duration = (ms: number): string => (ms < 120_000 ? `${Math.round(ms / 1000)} s` : `${Math.round(ms / 60_000)} min`)
const range = (values: readonly number[]): string => {
  const [least, most] = [Math.round(Math.min(...values)), Math.round(Math.max(...values))]
  return least === most ? `${least}` : `${least} to ${most}`
}

const runs = readdirSync(RUNS).map((name): Run => JSON.parse(readFileSync(join(RUNS, name), 'utf8')))
const [head = ''] = readFileSync(PAGE, 'utf8').split(MARK)
writeFileSync(PAGE, `${head}${MARK}\n\n${log(runs)}`)

function log(runs: readonly Run[]): string {
  const ends = runs.map(({ at }) => at).sort()
  const [first, last] = [ends[0], ends.at(-1)]
  const sum = (of: (run: Run) => number): number => runs.reduce((total, run) => total + of(run), 0)
  const failed = sum((run) => run.failed)
  return [
    `${runs.length} of ${STORIES.length} stories, ${sum((run) => run.passed)} tests passed, ${failed} failed, ${sum((run) => run.skipped.length)} skipped; between ${minute(first)} and ${minute(last)} UTC.`,
    '',
    ...machines(runs),
    '| Story | passed | failed | skipped | took | ended (UTC) |',
    '|---|---|---|---|---|---|',
    ...STORIES.map((story) =>
      row(
        story,
        runs.find((run) => run.story === story),
      ),
    ),
    '',
    ...bench(),
    '### Skipped there',
    '',
    ...(sum((run) => run.skipped.length) === 0
      ? ['Nothing.']
      : runs.flatMap(({ story, skipped }) => skipped.map((one) => `- ${story}: “${one.test}” — ${one.why}`))),
    '',
    '### Not run there',
    '',
    ...Object.entries(NOT_HERE).map(([story, why]) => `- ${story}: ${why}`),
    '',
  ].join('\n')
}

/** Each kind of machine once; how slow it was changes from run to run. */
function machines(runs: readonly Run[]): string[] {
  const kinds = new Map<string, Run[]>()
  for (const run of runs) {
    const { kernel, distribution, node, qemu, guestKernel, others } = run.facts
    const kind = [
      `on ${run.where}: ${distribution}, kernel ${kernel}`,
      `guests' kernel ${guestKernel}`,
      qemu,
      `Node ${node}`,
      ...others,
    ].join('; ')
    kinds.set(kind, [...(kinds.get(kind) ?? []), run])
  }
  return [...kinds].flatMap(([kind, those]) => {
    const boots = those.map(({ facts }) => facts.bootMs / 1000)
    const sizes = [...new Set(those.map(({ facts }) => facts.machine))]
    return [
      `- ${those.length} stories ${kind}. ${sizes.join('; ')}. From the start of QEMU to a guest that is parked: ${range(boots)} s, so limits ${range(those.map(({ facts }) => facts.factor))} times as long.`,
      '',
    ]
  })
}

function row(story: string, run: Run | undefined): string {
  if (run === undefined) return `| ${story} | — | — | — | not run yet | |`
  return `| ${story} | ${run.passed} | ${run.failed} | ${run.skipped.length} | ${duration(run.ms)} | ${minute(run.at)} |`
}

function bench(): string[] {
  if (!existsSync(BENCHED)) return ['### Figures', '', 'None were taken there yet: `make test-kvm STORIES=--bench`.', '']
  const { at, where, facts, outcomes } = JSON.parse(readFileSync(BENCHED, 'utf8')) as BenchRun
  return [
    '### Figures',
    '',
    `\`make test-kvm STORIES=--bench\`, on ${where} at ${minute(at)} UTC; QEMU with KVM, beside plain QEMU with KVM by hand in the same run. A guest took ${Math.round(facts.bootMs / 1000)} s to boot there, so the ratios say something, and the milliseconds and what is “missed” in them little.`,
    '',
    '| Promise | ours | by hand | ratio | target | | runs |',
    '|---|---|---|---|---|---|---|',
    ...outcomes.map(
      ({ id, ours, anchor, unit, ratio, target, met, runs }) =>
        `| \`${id}\` | ${ours} ${unit} | ${anchor === null ? '' : `${anchor} ${unit}`} | ${ratio ?? ''} | ${target} | ${met ? 'met' : 'missed'} | ${runs} |`,
    ),
    '',
  ]
}
