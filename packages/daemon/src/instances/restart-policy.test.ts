import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Instance, RestartHistory, RestartPolicy } from './instance.ts'
import { attemptsAt, HELD, restarted, restartOutlook, underNewPolicy, withAttempt } from './restart-policy.ts'

const NOW = 1_800_000_000_000
const POLICY: RestartPolicy = { policy: 'on_failure', backoffMs: 5000, maxAttempts: 3, stableAfterMs: 600_000 }

interface Given extends Partial<Instance> {
  readonly ranMs?: number
}

/** As much of an instance as a policy looks at. */
const instanceOf = ({ ranMs = 0, ...given }: Given): Instance =>
  ({
    state: 'Stopped',
    stoppedAtMs: NOW - 1000,
    exitCode: 1,
    exitMessage: 'exited with code 1',
    restartPolicy: POLICY,
    phases: { current: 'Stopped', sinceMs: NOW - 1000, durations: { running: ranMs } },
    ...given,
  }) as Instance

const outlook = (given: Given, unhealthySinceMs?: number) =>
  restartOutlook(instanceOf(given), { nowMs: NOW, ...(unhealthySinceMs !== undefined && { unhealthySinceMs }) })
const without = (key: keyof Instance, given: Instance): Instance => {
  const { [key]: _left, ...rest } = given
  return rest as Instance
}

test('what has failed is due its backoff after its end', () => {
  assert.deepEqual(outlook({}), { kind: 'due', atMs: NOW - 1000 + 5000, backoffMs: 5000 })
  const unseen = without('exitCode', instanceOf({ exitMessage: 'the VM was killed by SIGKILL' }))
  assert.equal(restartOutlook(unseen, { nowMs: NOW }).kind, 'due')
})

test('an end with code 0 is a failure to no one, and is started again by always alone', () => {
  assert.equal(outlook({ exitCode: 0 }).kind, 'none')
  assert.equal(outlook({ exitCode: 0, restartPolicy: { ...POLICY, policy: 'always' } }).kind, 'due')
  assert.equal(outlook({ restartPolicy: { ...POLICY, policy: 'never' } }).kind, 'none')
  assert.equal(restartOutlook(without('restartPolicy', instanceOf({})), { nowMs: NOW }).kind, 'none')
})

test('what has never ended is left as it was made', () => {
  const fork = without('exitMessage', without('exitCode', instanceOf({ restartPolicy: { ...POLICY, policy: 'always' } })))
  assert.equal(restartOutlook(fork, { nowMs: NOW }).kind, 'none')
})

test('nothing is done to a sleeper, to what could not be looked at, to what someone works on, or what has expired', () => {
  for (const state of ['Standby', 'Unknown', 'Created', 'Initializing', 'Paused', 'Shutdown', 'Running'] as const) {
    assert.equal(outlook({ state }).kind, 'none', state)
    if (state !== 'Running') assert.equal(outlook({ state }, NOW - 60_000).kind, 'none', state)
  }
  assert.equal(outlook({ operation: 'delete' }).kind, 'none')
  assert.equal(outlook({ expiresAtMs: NOW }).kind, 'none')
  assert.equal(outlook({ expiresAtMs: NOW + 1 }).kind, 'due')
})

test('what someone stopped is blocked, whatever its end, until someone starts it', () => {
  assert.deepEqual(outlook({ restarts: HELD }), { kind: 'blocked', reason: 'manual_stop' })
})

test('one that is not well is due its backoff after that was found', () => {
  const running = { state: 'Running', phases: { current: 'Running', sinceMs: NOW - 60_000, durations: {} } } as const
  assert.deepEqual(outlook(running, NOW - 1000), { kind: 'due', atMs: NOW + 4000, backoffMs: 5000 })
  assert.equal(outlook(running).kind, 'none')
})

test('attempts count from the one before, and end with as many as there may be in a row', () => {
  let restarts: RestartHistory | undefined
  for (const attempt of [1, 2, 3]) {
    restarts = withAttempt(instanceOf(restarts === undefined ? {} : { restarts }), { nowMs: NOW, owed: 'retry' })
    assert.equal(restarts.attempts, attempt)
    if (attempt < 3) assert.deepEqual(outlook({ restarts }), { kind: 'due', atMs: NOW + 5000, backoffMs: 5000 })
  }
  assert.deepEqual(outlook({ restarts: restarts as RestartHistory }), { kind: 'blocked', reason: 'max_attempts_exceeded' })
  assert.equal(outlook({ restarts: restarts as RestartHistory, restartPolicy: { ...POLICY, maxAttempts: 0 } }).kind, 'due')
})

test('one that has run for long enough since its last attempt counts anew, naps left out', () => {
  const restarts: RestartHistory = { attempts: 3, lastAttemptAtMs: NOW - 1_000_000, ranMs: 50_000 }
  assert.equal(attemptsAt(instanceOf({ restarts, ranMs: 649_999 }), NOW), 3)
  assert.equal(attemptsAt(instanceOf({ restarts, ranMs: 650_000 }), NOW), 0)
  const phases = { current: 'Running', sinceMs: NOW - 500_000, durations: { running: 150_000, standby: 9_000_000 } } as const
  assert.equal(attemptsAt(instanceOf({ restarts, state: 'Running', phases }), NOW), 0)
  // One that has not run at all has not been stable, however short that is.
  const hasty = { restarts: { attempts: 1, ranMs: 0 }, restartPolicy: { ...POLICY, stableAfterMs: 0 } }
  assert.equal(attemptsAt(instanceOf(hasty), NOW), 1)
})

test('an attempt of two halves is one attempt, and its second half waits for nothing', () => {
  const running = instanceOf({ state: 'Running', restarts: { attempts: 2 } })
  const first = withAttempt(running, { nowMs: NOW, owed: 'start', lastReason: 'health_check_failed' })
  assert.deepEqual([first.attempts, first.owed], [3, 'start'])
  // It was stopped well, which is no failure; and it has had as many attempts as there may be.
  assert.equal(outlook({ restarts: first, exitCode: 0 }).kind, 'due')
  const second = withAttempt(instanceOf({ restarts: first }), { nowMs: NOW + 9, owed: 'retry' })
  assert.deepEqual(second, { ...first, owed: 'retry' })
  assert.deepEqual(restarted(second), { attempts: 3, lastAttemptAtMs: NOW, ranMs: 0, lastReason: 'health_check_failed' })
})

test('another policy counts anew, but does not start what someone stopped, nor forget what is half done', () => {
  assert.equal(underNewPolicy({ attempts: 7, lastAttemptAtMs: NOW }), undefined)
  assert.equal(underNewPolicy(HELD), HELD)
  assert.deepEqual(underNewPolicy({ attempts: 7, owed: 'start' }), { attempts: 0, owed: 'start' })
})
