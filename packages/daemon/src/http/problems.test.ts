import assert from 'node:assert/strict'
import { test } from 'node:test'
import { statusOf } from '@dormouse/api/error-table.ts'
import { AppError, ERROR_CODES } from '@dormouse/api/errors.ts'
import { refusalOf } from './problems.ts'

test('every error code has a status, and none but our own faults is a 5xx', () => {
  const faults = [
    'not_supported',
    'dependency_missing',
    'guest_unavailable',
    'timed_out',
    'shutting_down',
    'internal_error',
    'registry_unavailable',
  ]
  for (const code of ERROR_CODES) assert.equal(statusOf(code) >= 500, faults.includes(code), code)
})

test('what will be the same next time says so, for clients that repeat by themselves', () => {
  for (const code of ['invalid_state', 'name_conflict', 'not_supported', 'unauthorized', 'invalid_request'] as const) {
    assert.equal(refusalOf(new AppError(code, 'No')).headers['x-should-retry'], 'false', code)
  }
  for (const code of ['rate_limited', 'registry_unavailable', 'guest_unavailable', 'shutting_down'] as const) {
    const { headers } = refusalOf(new AppError(code, 'Later'))
    assert.equal(headers['x-should-retry'], undefined, code)
    assert.equal(headers['retry-after'], '2', code)
  }
})

test('an image that is still being pulled asks clients to come again', () => {
  const { status, headers } = refusalOf(new AppError('image_not_ready', 'Still pulling', { retryAfterSeconds: 4.2 }))
  assert.deepEqual([status, headers['x-should-retry'], headers['retry-after']], [400, 'true', '5'])
})

test('a fault of ours tells the caller nothing of our inside', () => {
  const { status, body, isFault } = refusalOf(new Error('ENOENT: /var/lib/secret'))
  assert.equal(status, 500)
  assert.equal(isFault, true)
  assert.doesNotMatch(JSON.stringify(body), /secret|ENOENT/)
})

test('only causes that we worded are passed on', () => {
  const ours = refusalOf(new AppError('conflict', 'No', { cause: new AppError('port_in_use', 'Port 80 is taken') }))
  assert.deepEqual(ours.body.inner_error, { code: 'port_in_use', message: 'Port 80 is taken' })
  const foreign = refusalOf(new AppError('conflict', 'No', { cause: new Error('EACCES: /root') }))
  assert.equal(foreign.body.inner_error, undefined)
})

test('every error says what to do next, its own hint before that of its code', () => {
  for (const code of ERROR_CODES.filter((one) => one === 'invalid_state' || !one.startsWith('invalid_'))) {
    const { hint } = refusalOf(new AppError(code, 'No')).body
    assert.ok(hint !== undefined && hint.length > 15 && !hint.endsWith('.'), code)
  }
  assert.equal(refusalOf(new AppError('not_found', 'No', { hint: 'Look there' })).body.hint, 'Look there')
  assert.ok(refusalOf(new Error('x')).body.hint)
})

test('facts become details, each problem of a request a line', () => {
  const { body } = refusalOf(new AppError('invalid_request', 'Two things', { detail: { problems: ['one', 'two'], state: 'Stopped' } }))
  assert.deepEqual(body.details, [
    { code: 'invalid_request', message: 'one' },
    { code: 'invalid_request', message: 'two' },
    { code: 'state', message: 'Stopped' },
  ])
})

test('anything thrown becomes a refusal', () => {
  for (const thrown of [undefined, null, 'text', 3, {}, Object.create(null), Symbol('s')]) assert.equal(refusalOf(thrown).status, 500)
})
