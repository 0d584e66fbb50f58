import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { makeAuthority } from './certificates.ts'
import { type AskedCredentials, changedVariables, credentialsOf, guestVariablesOf, headersFor, hostsOf, isMediated } from './credentials.ts'
import { haveHostInCommon, hostNameOf, hostPatternOf, matchesHost } from './hosts.ts'

const SECRET = 's3cret-of-the-host'
const env = { REAL_KEY: SECRET, LANG: 'C' }
const bearer = { header: 'Authorization', format: `Bearer \${value}` }
const one = (inject: AskedCredentials[string]['inject'], source = 'REAL_KEY'): AskedCredentials => ({
  KEY: { source: { env: source }, inject },
})
const read = (asked: AskedCredentials) => credentialsOf(asked, env)

test('hosts are compared by the one spelling that their names have', () => {
  assert.equal(hostPatternOf('API.Example.COM'), 'api.example.com')
  assert.equal(hostPatternOf('*.example.com.'), '*.example.com')
  assert.equal(hostPatternOf('bücher.example'), 'xn--bcher-kva.example')
  assert.equal(hostNameOf('localhost'), 'localhost')
  const wrong = [
    '',
    '*',
    '*.',
    '**.x',
    'a.*.x',
    'a..x',
    '-a.x',
    '127.0.0.1',
    '0x7f.1',
    '2130706433',
    '[::1]',
    '::1',
    'a b',
    'a/b',
    'u@h',
    'h:443',
    'h%00',
    'h\0',
  ]
  for (const text of [...wrong, `${'a'.repeat(64)}.x`, `${'a.'.repeat(126)}aa`]) assert.equal(hostPatternOf(text), undefined, text)
})

test('a pattern is for what lies below its name, and for nothing that only looks like it', () => {
  for (const name of ['a.example.com', 'b.a.example.com']) assert.ok(matchesHost('*.example.com', name), name)
  for (const name of ['example.com', 'badexample.com', 'a.example.com.evil.net', '.example.com']) {
    assert.ok(!matchesHost('*.example.com', name), name)
  }
  assert.ok(matchesHost('api.x', 'api.x') && !matchesHost('api.x', 'a.api.x'))
})

test('two patterns have a host in common exactly when there is one that both are for', () => {
  const label = fc.constantFrom('a', 'b', 'ab')
  const name = fc.array(label, { minLength: 1, maxLength: 3 }).map((labels) => labels.join('.'))
  const pattern = fc.tuple(fc.boolean(), name).map(([isWild, text]) => (isWild ? `*.${text}` : text))
  fc.assert(
    fc.property(pattern, pattern, (a, b) => {
      const candidates = [a, b].map((text) => text.replace('*.', 'zz.'))
      const isShared = candidates.some((host) => matchesHost(a, host) && matchesHost(b, host))
      assert.equal(haveHostInCommon(a, b), isShared)
      assert.equal(haveHostInCommon(b, a), isShared)
    }),
  )
})

test('the guest sees mocks and no real value; all else is as it was', () => {
  const credentials = read(one([{ as: bearer }]))
  assert.deepEqual(guestVariablesOf(env, credentials), { LANG: 'C', KEY: 'mock-KEY' })
  // Also where both have one name.
  const same = credentialsOf({ REAL_KEY: { source: { env: 'REAL_KEY' }, inject: [{ as: bearer }] } }, env)
  assert.deepEqual(guestVariablesOf(env, same), { LANG: 'C', REAL_KEY: 'mock-REAL_KEY' })
  assert.ok(!JSON.stringify(credentials).includes(SECRET))
})

test('a header is set for the hosts that it is for, with the value that the environment has now', () => {
  const credentials = read(
    one([
      { as: bearer, hosts: ['api.example.com', '*.example.org'] },
      { as: { header: 'X-Key', format: `\${value}/\${value}` }, hosts: ['api.example.com'] },
    ]),
  )
  // Shown as it was asked for.
  assert.equal(credentials.KEY?.inject[1]?.header, 'X-Key')
  assert.deepEqual(headersFor('api.example.com', credentials, env), [
    ['authorization', `Bearer ${SECRET}`],
    ['x-key', `${SECRET}/${SECRET}`],
  ])
  assert.deepEqual(headersFor('b.example.org', credentials, { ...env, REAL_KEY: '$&$1' }), [['authorization', 'Bearer $&$1']])
  for (const host of ['example.org', 'api.example.com.evil.net', '10.0.0.1']) assert.deepEqual(headersFor(host, credentials, env), [], host)
  assert.deepEqual(hostsOf(credentials), ['*.example.org', 'api.example.com'])
  assert.ok(isMediated('api.example.com', credentials) && !isMediated('example.com', credentials))
  assert.equal(hostsOf(read(one([{ as: bearer }]))), undefined)
  assert.ok(isMediated('any.host', read(one([{ as: bearer }]))))
})

test('what cannot be meant is refused, by the name of its field, and no message tells a value', () => {
  const refused = (asked: AskedCredentials, message: RegExp, variables: Record<string, string> = env) =>
    assert.throws(
      () => credentialsOf(asked, variables),
      (error: Error & { code?: string }) => {
        assert.equal(error.code, 'invalid_request')
        assert.match(error.message, message)
        assert.ok(!JSON.stringify([error.message, error]).includes(SECRET))
        return true
      },
    )
  refused(one([{ as: bearer }], 'OTHER'), /`credentials\.KEY\.source\.env` names "OTHER"/)
  refused(one([{ as: bearer }], 'toString'), /not in `env`/)
  for (const header of ['a b', 'a:b', 'a\r\nb', 'ä', ''])
    refused(one([{ as: { ...bearer, header } }]), /inject\[0\]\.as\.header` is no name/)
  for (const header of ['Host', 'Content-Length', 'Proxy-Authorization'])
    refused(one([{ as: { ...bearer, header } }]), /belongs to the connection/)
  refused(one([{ as: { ...bearer, format: 'Bearer value' } }]), /must contain \$\{value\}/)
  for (const format of [`\${value}\r\nx: y`, ` \${value}`, `\${value}\0`])
    refused(one([{ as: { ...bearer, format } }]), /cannot be in a header/)
  refused(one([{ as: bearer, hosts: [] }]), /`credentials\.KEY\.inject\[0\]\.hosts` is empty/)
  refused(one([{ as: bearer, hosts: ['https://x'] }]), /holds "https:\/\/x"/)
  for (const value of [`${SECRET}\n`, `${SECRET}\r\nx: y`, `${SECRET}\0`, '', ' ']) {
    refused(one([{ as: bearer }]), /The value of `env\.REAL_KEY` cannot be in a header/, { REAL_KEY: value })
  }
})

test('one header of one host has one credential', () => {
  const two = (a: string[] | undefined, b: string[] | undefined, header = 'AUTHORIZATION'): AskedCredentials => ({
    A: { source: { env: 'REAL_KEY' }, inject: [{ as: bearer, ...(a && { hosts: a }) }] },
    B: { source: { env: 'LANG' }, inject: [{ as: { ...bearer, header }, ...(b && { hosts: b }) }] },
  })
  for (const asked of [two(['a.x'], ['*.x']), two(undefined, ['a.x']), two(['*.b.x'], ['*.x'])]) {
    assert.throws(() => read(asked), { code: 'invalid_request', message: /set the header authorization twice for one host: A and B do/ })
  }
  assert.equal(Object.keys(read(two(['a.x'], ['b.x']))).length, 2)
  assert.equal(Object.keys(read(two(undefined, undefined, 'X-Other'))).length, 2)
  const many = Array.from({ length: 257 }, (_, n) => `h${n}.x`)
  assert.throws(() => read(one([{ as: bearer, hosts: many }])), { code: 'invalid_request', message: /more than 256 hosts/ })
})

test('an environment changes as it is told, but what is shown of a value is none', () => {
  const credentials = read({ REAL_KEY: { source: { env: 'REAL_KEY' }, inject: [{ as: bearer }] } })
  const shown = guestVariablesOf(env, credentials)
  assert.deepEqual(changedVariables(env, shown, credentials).REAL_KEY, SECRET)
  assert.equal(changedVariables(env, { REAL_KEY: 'rotated' }, credentials).REAL_KEY, 'rotated')
  assert.equal(changedVariables(env, { LANG: 'de' }, credentials).LANG, 'de')
  // By the name that the guest has no one would ever see a value.
  const other = read(one([{ as: bearer }]))
  assert.throws(() => changedVariables(env, { KEY: 'new' }, other), {
    code: 'invalid_request',
    message: /`env\.KEY` .* of `env\.REAL_KEY`$/,
  })
  assert.equal(changedVariables(env, guestVariablesOf(env, other), other).REAL_KEY, SECRET)
  assert.throws(() => credentialsOf(one([{ as: bearer }]), { ...env, KEY: 'new' }), { code: 'invalid_request' })
  assert.ok(credentialsOf(one([{ as: bearer }]), { ...env, KEY: 'mock-KEY' }))
  for (const value of ['', 'a\nb']) {
    assert.throws(
      () => changedVariables(env, { REAL_KEY: value }, credentials),
      ({ code, message }: { code: string; message: string }) => code === 'invalid_request' && !message.includes(SECRET),
    )
  }
})

test('as many hosts as an authority can name', () => {
  const named = (count: number) =>
    one([{ as: bearer, hosts: Array.from({ length: count }, (_, n) => `${n}.${'a'.repeat(60)}.${'b'.repeat(60)}.example`) }])
  assert.ok(makeAuthority('x', hostsOf(read(named(60))), Date.now()).certificate.length < 16_384)
  assert.throws(() => read(named(64)), { code: 'invalid_request', message: /8192 letters/ })
})
