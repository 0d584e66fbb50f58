import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CHANNEL, decodeOutput, decodePlaces, decodeSse, encodeSse, SSE_END, SSE_HEARTBEAT } from './streams.ts'

async function* pieces(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  let at = 0
  for (const size of sizes) {
    yield bytes.subarray(at, at + size)
    at += size
  }
  yield bytes.subarray(at)
}

test('messages come through whole, wherever the bytes are cut', async () => {
  const message = fc.record({
    data: fc.string({ unit: 'grapheme' }).map((text) => JSON.stringify(text)),
    id: fc.option(fc.nat().map(String), { nil: undefined }),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(message, { maxLength: 8 }), fc.array(fc.nat(9), { maxLength: 60 }), async (messages, sizes) => {
      const wire = messages.map(({ data, id }) => SSE_HEARTBEAT + encodeSse({ data, ...(id !== undefined && { id }) })).join('')
      const got = await Array.fromAsync(decodeSse(pieces(new TextEncoder().encode(wire), sizes)))
      assert.deepEqual(
        got.map(({ data }) => data),
        messages.map(({ data }) => data),
      )
    }),
  )
})

test('an id holds for the messages after it, as the standard has it', async () => {
  const wire = new TextEncoder().encode('id: 7\ndata: 1\n\n: nothing\n\ndata: 2\n\nevent: x\r\ndata: 3\r\n\r\ndata: cut off')
  assert.deepEqual(await Array.fromAsync(decodeSse(pieces(wire, []))), [
    { data: '1', id: '7' },
    { data: '2', id: '7' },
    { data: '3', id: '7', event: 'x' },
  ])
})

test('output frames tell their channel, and other frames are none', () => {
  assert.deepEqual(decodeOutput(Uint8Array.of(CHANNEL.stderr, 65)), { channel: 'stderr', bytes: Uint8Array.of(65) })
  assert.equal(decodeOutput(Uint8Array.of(9, 65)), undefined)
  assert.equal(decodeOutput(new Uint8Array()), undefined)
})

test('places and the end are told to those who ask for them, and to no one else', async () => {
  const wire = new TextEncoder().encode(`: \n\nid: a\n\ndata: 1\n\nid: b\ndata: 2\n\n${encodeSse({ place: 'c' })}${SSE_END}`)
  assert.deepEqual(await Array.fromAsync(decodePlaces(pieces(wire, [3, 5, 7]))), [
    { id: 'a' },
    { data: '1', id: 'a' },
    { data: '2', id: 'b' },
    { id: 'c' },
    { isEnd: true },
  ])
  assert.deepEqual(
    (await Array.fromAsync(decodeSse(pieces(wire, [])))).map(({ data }) => data),
    ['1', '2'],
  )
})
