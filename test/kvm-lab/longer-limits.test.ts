/** In a process of its own, as they are loaded before anything else. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { scratchDir } from '../harness/scratch.ts'

/** Each has a limit that is over at once, and waits for what is not there at once. */
const SLOW = `
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
test('of a test', { timeout: 1 }, () => sleep(50))
describe('of a suite', { timeout: 1 }, () => void test('and within', () => sleep(50)))
test('of a signal', async () => {
  const limit = AbortSignal.timeout(1)
  await sleep(50)
  assert.equal(limit.aborted, false)
})
`

test('limits of tests, suites and signals are as many times as long as asked for', async (t) => {
  const file = join(await scratchDir(t), 'slow.test.mjs')
  await writeFile(file, SLOW)
  const preload = `--import=${join(import.meta.dirname, 'longer-limits.ts')}`
  const run = (factor: string) =>
    promisify(execFile)(process.execPath, ['--test', '--test-reporter=tap', file], {
      env: { PATH: process.env.PATH, NODE_OPTIONS: preload, TEST_TIME_FACTOR: factor },
    })
  assert.match((await run('100000')).stdout, /^# fail 0$/m)
  await assert.rejects(run('1'), ({ stdout }: { stdout: string }) => /^# pass 0$/m.test(stdout))
})
