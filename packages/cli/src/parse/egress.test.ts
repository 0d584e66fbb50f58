import assert from 'node:assert/strict'
import { test } from 'node:test'
import { egressOf } from './egress.ts'

const env = { API_KEY: 's3cret', OTHER: 'x' }
const injected = (text: string) => egressOf({ credential: [text] }, env).credentials?.API_KEY?.inject[0]

test('a credential names a variable, its hosts and, where it is no bearer, its header', () => {
  assert.deepEqual(egressOf({ credential: ['API_KEY@api.example.com,*.example.org'] }, env), {
    egress: { enabled: true, enforcement: { mode: 'all' } },
    credentials: {
      API_KEY: {
        source: { env: 'API_KEY' },
        inject: [{ as: { header: 'Authorization', format: `Bearer \${value}` }, hosts: ['api.example.com', '*.example.org'] }],
      },
    },
  })
  assert.deepEqual(injected(`API_KEY@a.x=X-Api-Key: \${value}`), { as: { header: 'X-Api-Key', format: `\${value}` }, hosts: ['a.x'] })
  assert.deepEqual(injected(`API_KEY@a.x=Cookie: a=\${value}; b=1`)?.as, { header: 'Cookie', format: `a=\${value}; b=1` })
})

test('the mode is asked for by itself too, and nothing where nothing is', () => {
  assert.deepEqual(egressOf({}, env), {})
  for (const egress of ['http_https_only', 'http-https-only'])
    assert.deepEqual(egressOf({ egress }), { egress: { enabled: true, enforcement: { mode: 'http_https_only' } } })
  assert.throws(() => egressOf({ egress: 'none' }), /no mode of --egress/)
})

test('what cannot be meant is told before anything is asked, and no value with it', () => {
  for (const text of ['API_KEY', '@a.x', 'API_KEY@', 'API_KEY@a.x,', 'API_KEY@a.x=X-Key', 'API_KEY@a.x=X-Key: none', `API_KEY=@a.x`])
    assert.throws(() => egressOf({ credential: [text] }, env), /is no credential/, text)
  assert.throws(() => egressOf({ credential: ['MISSING@a.x'] }, env), /MISSING has no value/)
  assert.throws(() => egressOf({ credential: ['API_KEY@a.x', 'API_KEY@b.x'] }, env), /given twice/)
})
