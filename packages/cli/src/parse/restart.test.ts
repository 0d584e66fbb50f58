import assert from 'node:assert/strict'
import test from 'node:test'
import { restartPolicyOf } from './restart.ts'

test('a restart policy has a name, and may have attempts and times', () => {
  assert.equal(restartPolicyOf({}), undefined)
  assert.deepEqual(restartPolicyOf({ restart: 'never' }), { policy: 'never' })
  assert.deepEqual(restartPolicyOf({ restart: 'on-failure:5', restartBackoff: '90' }), {
    policy: 'on_failure',
    max_attempts: 5,
    backoff: '1m30s',
  })
  assert.deepEqual(restartPolicyOf({ restart: 'always', restartStableAfter: '1d' }), { policy: 'always', stable_after: '24h0m0s' })
  for (const [word, policy] of Object.entries({ no: 'never', on_failure: 'on_failure', 'unless-stopped': 'always' })) {
    assert.deepEqual(restartPolicyOf({ restart: word }), { policy })
  }
  for (const restart of ['', 'yes', 'always:5:6', 'never:1', 'no:1', 'constructor'])
    assert.throws(() => restartPolicyOf({ restart }), /restart policy/)
  assert.throws(() => restartPolicyOf({ restart: 'always:0' }), /whole number/)
  assert.throws(() => restartPolicyOf({ restartBackoff: '1s' }), /need a --restart/)
})
