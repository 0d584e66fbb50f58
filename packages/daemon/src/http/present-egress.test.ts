import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeAuthority } from '../egress/certificates.ts'
import { fakeUses } from './fake-uses.ts'
import { presentInstance } from './present-instance.ts'

test('who asks is shown how an instance goes out, and its environment as its guest has it: no value, no key', () => {
  const inject = [{ header: 'authorization', format: `Bearer \${value}`, hosts: ['api.example.com'] }]
  const authority = makeAuthority('a', ['api.example.com'], Date.now())
  const instance = fakeUses().instances.add({
    name: 'a',
    env: { REAL_KEY: 's3cret-of-the-host', LANG: 'C' },
    egress: { mode: 'http_https_only', credentials: { KEY: { source: 'REAL_KEY', inject } }, authority },
  })
  const shown = presentInstance(instance, 0)
  assert.deepEqual(shown.env, { LANG: 'C', KEY: 'mock-KEY' })
  assert.deepEqual(shown.network?.egress, { enabled: true, enforcement: { mode: 'http_https_only' } })
  assert.deepEqual(shown.credentials, {
    KEY: {
      source: { env: 'REAL_KEY' },
      inject: [{ as: { header: 'authorization', format: `Bearer \${value}` }, hosts: ['api.example.com'] }],
    },
  })
  assert.doesNotMatch(JSON.stringify(shown), /s3cret|KEY-----|CERTIFICATE/)
})
