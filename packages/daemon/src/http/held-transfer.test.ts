import assert from 'node:assert/strict'
import { once } from 'node:events'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { cutWith, heldBy } from './held-transfer.ts'

const revoked = new Error('revoked')

test('chunks come for as long as what holds them holds, and no chunk is waited for once it does not', async () => {
  const held = new AbortController()
  const { promise: begun, resolve } = Promise.withResolvers<void>()
  const source = (async function* () {
    yield Buffer.from('one')
    resolve()
    await new Promise(() => undefined)
  })()
  const seen: string[] = []
  const reading = (async () => {
    for await (const chunk of heldBy(held.signal, source)) seen.push(chunk.toString())
  })()
  await begun
  held.abort(revoked)
  await assert.rejects(reading, revoked)
  assert.deepEqual(seen, ['one'])
  const rest = heldBy(held.signal, Readable.from([Buffer.from('two')]))
  await assert.rejects(rest.next(), revoked)
  const all = await Array.fromAsync(heldBy(new AbortController().signal, Readable.from([Buffer.from('a'), Buffer.from('b')])))
  assert.equal(Buffer.concat(all).toString(), 'ab')
})

test('a stream that is sent breaks off with the reason, at once or when it comes to that', async () => {
  const held = new AbortController()
  const stream = cutWith(held.signal, new Readable({ read: () => undefined }))
  const told = once(stream, 'error')
  held.abort(revoked)
  assert.deepEqual(await told, [revoked])
  const late = cutWith(held.signal, new Readable({ read: () => undefined }))
  assert.deepEqual(await once(late, 'error'), [revoked])
})
