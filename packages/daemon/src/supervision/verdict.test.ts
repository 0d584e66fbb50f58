import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { HealthVerdict } from '../store/health-verdicts.ts'
import { type CheckResult, judge, UNTRIED } from './verdict.ts'

const GOOD: CheckResult = { kind: 'success' }
const BAD: CheckResult = { kind: 'failure', error: 'refused' }

/** What is thought after these, one a second. */
function after(results: readonly CheckResult[], { failures = 3, successes = 1, starting = 0 } = {}): HealthVerdict {
  return results.reduce(
    (verdict: HealthVerdict, result, at) =>
      judge(
        verdict,
        result,
        { failureThreshold: failures, successThreshold: successes },
        { nowMs: (at + 1) * 1000, isStarting: at < starting },
      ),
    UNTRIED,
  )
}

test('one is healthy after as many good checks in a row as are asked for', () => {
  assert.equal(after([]).status, 'starting')
  assert.deepEqual(after([GOOD]), { status: 'healthy', successes: 1, failures: 0, lastCheckedAtMs: 1000, lastSuccessAtMs: 1000 })
  assert.equal(after([GOOD, BAD, GOOD], { successes: 2 }).status, 'starting')
  assert.equal(after([GOOD, BAD, GOOD, GOOD], { successes: 2 }).status, 'healthy')
})

test('one is unhealthy after as many failures in a row as are asked for, and since the last of them', () => {
  assert.equal(after([GOOD, BAD, BAD]).status, 'healthy')
  assert.equal(after([GOOD, BAD, BAD, GOOD, BAD, BAD]).status, 'healthy')
  const unwell = after([GOOD, BAD, BAD, BAD, BAD])
  assert.deepEqual(unwell, {
    ...{ status: 'unhealthy', successes: 0, failures: 4, unhealthySinceMs: 4000 },
    ...{ lastCheckedAtMs: 5000, lastSuccessAtMs: 1000, lastFailureAtMs: 5000, lastError: 'refused' },
  })
})

test('one that was never well can be found unhealthy', () => {
  assert.equal(after([BAD, BAD, BAD]).status, 'unhealthy')
})

test('what fails in the start period is told and does not count; what is good in it does', () => {
  const early = after([BAD, BAD, BAD, BAD], { starting: 4 })
  assert.deepEqual([early.status, early.failures, early.lastFailureAtMs, early.lastError], ['starting', 0, 4000, 'refused'])
  assert.equal(after([BAD, BAD, GOOD], { starting: 3 }).status, 'healthy')
  assert.equal(after([BAD, BAD, BAD, BAD, BAD], { starting: 3 }).status, 'starting')
  assert.equal(after([BAD, BAD, BAD, BAD, BAD, BAD], { starting: 3 }).status, 'unhealthy')
})

test('one that was unhealthy is so until it has been well often enough', () => {
  const recovering = after([BAD, BAD, BAD, GOOD], { successes: 2 })
  assert.deepEqual([recovering.status, recovering.unhealthySinceMs], ['unhealthy', 3000])
  const well = after([BAD, BAD, BAD, GOOD, GOOD], { successes: 2 })
  assert.deepEqual([well.status, well.unhealthySinceMs, well.lastError], ['healthy', undefined, undefined])
})

test('a check that says nothing changes nothing but the words', () => {
  const before = after([GOOD, BAD])
  const same = judge(before, { kind: 'inconclusive', error: 'too old' }, { failureThreshold: 1, successThreshold: 1 }, at(9))
  assert.deepEqual(same, { ...before, lastError: 'too old' })
})

const at = (nowMs: number) => ({ nowMs, isStarting: false })
