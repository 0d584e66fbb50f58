import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type LogSources, logPage } from './log-page.ts'
import type { Figure, Run } from './runs.ts'

const facts = { machine: '2 × a processor, 9000 MiB', kernel: '6.1', distribution: 'Debian', node: 'v24', qemu: 'QEMU 7.2' }
const run = (story: string, at: string, more: Partial<Run> = {}): Run => ({
  ...{ story, at: `2026-01-${at}Z`, where: 'a machine', passed: 2, failed: 0, skipped: [], ms: 60_000 },
  facts: { ...facts, others: ['firecracker: not there'], guestKernel: '6.1', bootMs: 15_000, factor: 10 },
  ...more,
})
const figure = (id: string, at: string, ours: number): Figure => ({
  ...{ at: `2026-01-${at}Z`, where: 'a machine', facts: run('', '').facts },
  outcome: { id, ours, anchor: 20, unit: 'ms', ratio: 2, target: 'less', met: true, runs: 3, what: '' },
})
const page = (runs: readonly Run[], present = '', figures: readonly Figure[] = []): string => {
  const sources: LogSources = { runs, figures, present, stories: ['one', 'two', 'three'], notHere: { four: 'it is slow' } }
  return logPage(sources)
}

test('what no run is newer than stays in the log: its row, its machine, and what it skipped', () => {
  const first = page([
    run('one', '01T10:00:00', { skipped: [{ test: 'a test', why: 'no disk' }] }),
    run('two', '01T11:00:00', { facts: { ...run('', '').facts, qemu: 'QEMU 6' } }),
  ])
  assert.match(first, /^2 of 3 stories, 4 tests passed, 0 failed, 1 skipped; between 2026-01-01 10:00 and 2026-01-01 11:00 UTC\.$/m)
  assert.match(first, /^\| three \| — \| — \| — \| not run yet \| \| \|$/m)
  assert.equal(page([], first), first)

  const second = page([run('two', '02T10:00:00', { failed: 1 }), run('two', '01T12:00:00')], first)
  assert.match(second, /^2 of 3 stories, 4 tests passed, 1 failed, 1 skipped; between 2026-01-01 10:00 and 2026-01-02 10:00 UTC\.$/m)
  assert.match(second, /^\| one \| 2 \| 0 \| 1 \| 60 s \| × 10 \| 2026-01-01 10:00 \|$/m)
  assert.match(second, /^\| two \| 2 \| 1 \| 0 \| 60 s \| × 10 \| 2026-01-02 10:00 \|$/m)
  assert.match(second, /^- one: “a test” — no disk$/m)
  assert.match(second, /QEMU 6/)
})

test('a run that is older than the row of the page is not written over it', () => {
  const later = page([run('one', '03T10:00:00')])
  assert.equal(page([run('one', '01T10:00:00', { failed: 5 })], later), later)
})

test('of each promise the last figure is in the log, beside those of other drivers; what none is newer than stays', () => {
  assert.match(page([]), /^None yet\.$/m)
  const first = page([], '', [
    figure('restore_b', '01T10:00:00', 11),
    figure('create', '01T10:00:00', 12),
    figure('restore', '01T10:00:00', 13),
  ])
  const rowsOf = (text: string) => [...text.matchAll(/^\| `(\w+)` \| ([\d.]+) ms \|/gm)].map(([, id, ours]) => `${id} ${ours}`)
  assert.deepEqual(rowsOf(first), ['create 12', 'restore 13', 'restore_b 11'])
  assert.match(first, /^\| `create` \| 12 ms \| 20 ms \| 2 \| less \| met \| 3 \| 15 s \| 2026-01-01 10:00 \|$/m)
  assert.equal(page([], first), first)
  const second = page([], first, [
    figure('restore', '02T10:00:00', 14),
    figure('restore', '01T12:00:00', 15),
    figure('create', '01T09:00:00', 16),
  ])
  assert.deepEqual(rowsOf(second), ['create 12', 'restore 14', 'restore_b 11'])
})
