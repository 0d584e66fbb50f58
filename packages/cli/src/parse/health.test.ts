import assert from 'node:assert/strict'
import test from 'node:test'
import { healthChangeOf, healthCheckOf } from './health.ts'

test('a health check is of one kind, and may have times and counts', () => {
  assert.equal(healthCheckOf({}), undefined)
  assert.deepEqual(healthCheckOf({ healthHttp: '8080' }), { type: 'http', http: { port: 8080 } })
  assert.deepEqual(healthCheckOf({ healthHttps: '443/ready?x=1', healthStatus: '204', healthInterval: '1m' }), {
    type: 'http',
    http: { port: 443, path: '/ready?x=1', scheme: 'https', expected_status: 204 },
    interval: '1m0s',
  })
  assert.deepEqual(healthCheckOf({ healthTcp: '5432', healthFailures: '5', healthSuccesses: '2', healthTimeout: '500ms' }), {
    ...{ type: 'tcp', tcp: { port: 5432 } },
    ...{ timeout: '500ms', failure_threshold: 5, success_threshold: 2 },
  })
  assert.deepEqual(healthCheckOf({ healthCmd: 'redis-cli ping', healthStartPeriod: '0' }), {
    ...{ type: 'exec', exec: { command: ['/bin/sh', '-c', 'redis-cli ping'] }, start_period: '0s' },
  })
})

test('what does not go together is told before anything is asked', () => {
  assert.throws(() => healthCheckOf({ healthTcp: '1', healthHttp: '1' }), /one health check/)
  assert.throws(() => healthCheckOf({ healthInterval: '1s' }), /nothing to check/)
  assert.throws(() => healthCheckOf({ healthTcp: '1', healthStatus: '200' }), /--health-status is for/)
  for (const port of ['', '0', '65536', 'http', '-1', '1.5']) assert.throws(() => healthCheckOf({ healthTcp: port }), /not a port/, port)
})

test('an update can take a check away', () => {
  assert.deepEqual(healthChangeOf({ healthNone: true }), { type: 'none' })
  assert.equal(healthChangeOf({}), undefined)
  assert.throws(() => healthChangeOf({ healthNone: true, healthTcp: '1' }), /no other/)
})
