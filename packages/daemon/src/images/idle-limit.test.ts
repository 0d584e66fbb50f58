import assert from 'node:assert/strict'
import { test } from 'node:test'
import { withIdleLimit } from './idle-limit.ts'

const chunk = (text: string): Uint8Array => Buffer.from(text)

test('what comes in time passes unchanged', async () => {
  const source = (async function* () {
    yield chunk('a')
    yield chunk('b')
  })()
  assert.deepEqual(await Array.fromAsync(withIdleLimit(source, 5000), String), ['a', 'b'])
})

test('an upload that stalls is given up, and its source is let go', async () => {
  let isLetGo = false
  const source: AsyncIterable<Uint8Array> = {
    [Symbol.asyncIterator]: () => ({
      next: () => new Promise(() => undefined),
      return: async () => {
        isLetGo = true
        return { done: true, value: undefined }
      },
    }),
  }
  await assert.rejects(Array.fromAsync(withIdleLimit(source, 10)), { code: 'timed_out' })
  assert.ok(isLetGo)
})
