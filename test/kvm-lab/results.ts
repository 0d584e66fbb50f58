/** A reporter for the lab: a line for each file of tests, `lab: result JSON`, beside what people read. */
import { basename } from 'node:path'
import type { TestEvent } from 'node:test/reporters'

/** What became of one file's tests. */
export interface Result {
  readonly story: string
  readonly passed: number
  readonly failed: number
  readonly ms: number
  readonly skipped: readonly { readonly test: string; readonly why: string }[]
}

export const RESULT = 'lab: result '

export default async function* results(events: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  let skipped: Result['skipped'][number][] = []
  let within: Pick<Result, 'passed' | 'failed' | 'skipped'> | undefined
  for await (const event of events) {
    if (event.type === 'test:pass' && event.data.skip !== undefined && event.data.skip !== false) {
      skipped.push({ test: event.data.name, why: typeof event.data.skip === 'string' ? event.data.skip : 'no reason given' })
    }
    // The runner tells why only at the very end, which may be hours away.
    if (event.type === 'test:fail') yield `  ${event.data.name}: ${whyOf(event.data.details.error)}\n`
    if (event.type === 'test:diagnostic') within = countsIn(event.data.message) ?? within
    if (event.type !== 'test:summary' || event.data.file === undefined) continue
    const { file, counts, duration_ms: ms } = event.data
    const { passed, failed } = within ?? { passed: counts.passed, failed: counts.tests - counts.passed - counts.skipped - counts.todo }
    const result: Result = {
      story: basename(file).replace(/\.test\.ts$/, ''),
      passed,
      // One that found nothing wrong within may still have failed as a whole.
      failed: counts.passed + counts.skipped === counts.tests ? failed : Math.max(1, failed),
      ms: Math.round(ms),
      skipped: within?.skipped ?? skipped,
    }
    // Files run one after another, and each is summed up at its end.
    skipped = []
    within = undefined
    yield `${RESULT}${JSON.stringify(result)}\n`
  }
}

const whyOf = ({ cause, message }: Error): string => (cause instanceof Error ? cause.message : message)

/** Tests that ran in a network of their own are one test here, which repeats what their runner said (own-network.ts). */
function countsIn(said: string): Pick<Result, 'passed' | 'failed' | 'skipped'> | undefined {
  const of = (what: string): number => Number(new RegExp(`^ℹ ${what} (\\d+)$`, 'm').exec(said)?.[1] ?? 0)
  if (!/^ℹ tests \d+$/m.test(said) || !said.includes('\nℹ pass')) return undefined
  const skipped = [...said.matchAll(/^(?:ℹ )?﹣ (.+) \([\d.]+ms\) # (.+)$/gm)].map(([, test = '', why = '']) => ({ test, why }))
  return { passed: of('pass'), failed: of('fail') + of('cancelled'), skipped }
}
