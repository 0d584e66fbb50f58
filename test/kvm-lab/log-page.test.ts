import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type LogSources, logPage } from './log-page.ts'
import type { Run } from './runs.ts'

const facts = { machine: '2 × a processor, 9000 MiB', kernel: '6.1', distribution: 'Debian', node: 'v24', qemu: 'QEMU 7.2' }
const run = (story: string, at: string, more: Partial<Run> = {}): Run => ({
  ...{ story, at: `2026-01-${at}Z`, where: 'a machine', passed: 2, failed: 0, skipped: [], ms: 60_000 },
  facts: { ...facts, others: ['firecracker: not there'], guestKernel: '6.1', bootMs: 15_000, factor: 10 },
  ...more,
})
const page = (runs: readonly Run[], present = ''): string => {
  const sources: LogSources = { runs, bench: undefined, present, stories: ['one', 'two', 'three'], notHere: { four: 'it is slow' } }
  return logPage(sources)
}

test('what no run is newer than stays in the log: its row, its machine, what it skipped, and the figures', () => {
  const first = page([
    run('one', '01T10:00:00', { skipped: [{ test: 'a test', why: 'no disk' }] }),
    run('two', '01T11:00:00', { facts: { ...run('', '').facts, qemu: 'QEMU 6' } }),
  ])
  assert.match(first, /^2 of 3 stories, 4 tests passed, 0 failed, 1 skipped; between 2026-01-01 10:00 and 2026-01-01 11:00 UTC\.$/m)
  assert.match(first, /^\| three \| — \| — \| — \| not run yet \| \| \|$/m)
  assert.equal(page([], first), first)

  const second = page(
    [run('two', '02T10:00:00', { failed: 1 }), run('two', '01T12:00:00')],
    `${first.replace('### Figures', '### Figures\n\nfast')}`,
  )
  assert.match(second, /^2 of 3 stories, 4 tests passed, 1 failed, 1 skipped; between 2026-01-01 10:00 and 2026-01-02 10:00 UTC\.$/m)
  assert.match(second, /^\| one \| 2 \| 0 \| 1 \| 60 s \| × 10 \| 2026-01-01 10:00 \|$/m)
  assert.match(second, /^\| two \| 2 \| 1 \| 0 \| 60 s \| × 10 \| 2026-01-02 10:00 \|$/m)
  assert.match(second, /^- one: “a test” — no disk$/m)
  assert.match(second, /^fast$/m)
  assert.match(second, /QEMU 6/)
})

test('a run that is older than the row of the page is not written over it', () => {
  const later = page([run('one', '03T10:00:00')])
  assert.equal(page([run('one', '01T10:00:00', { failed: 5 })], later), later)
})
