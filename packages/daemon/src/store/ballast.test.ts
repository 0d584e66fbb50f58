import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { pollUntil } from '../host/poll-until.ts'
import { silentLogger } from '../log.ts'
import { Ballast } from './ballast.ts'

const full = () => Object.assign(new Error('database or disk is full'), { errcode: 13 })

async function madeBallast(t: TestContext): Promise<{ ballast: Ballast; bytes: () => number }> {
  const dir = mkdtempSync(join(tmpdir(), 'ballast-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 'ballast')
  const ballast = new Ballast({ path, log: silentLogger })
  const bytes = () => statSync(path, { throwIfNoEntry: false })?.blocks ?? 0
  using _tended = ballast.tend()
  await pollUntil('the ballast to be made', () => bytes() * 512 >= 8 << 20, { signal: AbortSignal.timeout(10_000) })
  return { ballast, bytes: () => bytes() * 512 }
}

test('work that finds no room is done again, each time with a piece less, and what it gives is given', async (t) => {
  const { ballast, bytes } = await madeBallast(t)
  const whole = bytes()
  let tries = 0
  const work = () => {
    if (++tries < 4) throw full()
    return 'done'
  }
  assert.equal(ballast.spend(work), 'done')
  assert.equal(bytes(), whole - 3 * 512 * 1024)
})

test('when none is left the work’s own error is told, and other errors cost nothing', async (t) => {
  const { ballast, bytes } = await madeBallast(t)
  const other = new Error('other')
  const throwing = (error: Error) => () => {
    throw error
  }
  assert.throws(() => ballast.spend(throwing(other)), other)
  assert.ok(bytes() >= 8 << 20)
  const error = full()
  assert.throws(() => ballast.spend(throwing(error)), error)
  assert.equal(bytes(), 0)
})

test('without a ballast the work’s own error is told', () => {
  const error = full()
  const ballast = new Ballast({ path: '/no/such/directory/ballast', log: silentLogger })
  assert.throws(
    () =>
      ballast.spend(() => {
        throw error
      }),
    error,
  )
})
