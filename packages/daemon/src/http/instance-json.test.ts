import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fakeUses } from './fake-uses.ts'
import { instanceJson } from './instance-json.ts'
import { JsonList, writeJsonList } from './json-list.ts'
import { presentInstance } from './present-instance.ts'

test('what is written of a record is what is shown of it, now and later', () => {
  const { instances } = fakeUses()
  const atMs = 1e12
  const instance = instances.add({ name: 'web', createdAtMs: atMs, exitCode: 0, tags: { a: '"}' } })
  for (const nowMs of [atMs, atMs + 5000]) {
    assert.deepEqual(JSON.parse(instanceJson(instance, nowMs)), JSON.parse(JSON.stringify(presentInstance(instance, nowMs))))
  }
})

test('a changed record is written anew', () => {
  const { instances } = fakeUses()
  const before = instances.add({ name: 'web' })
  instanceJson(before, 0)
  assert.equal(JSON.parse(instanceJson({ ...before, state: 'Stopped' }, 0)).state, 'Stopped')
})

test('lists of any length are the same JSON', async () => {
  for (const length of [0, 1, 250, 251, 1000]) {
    const items = Array.from({ length }, (_, n) => JSON.stringify({ n }))
    const written = writeJsonList(new JsonList(items))
    const text = typeof written === 'string' ? written : (await written.toArray()).join('')
    assert.deepEqual(
      JSON.parse(text),
      items.map((item) => JSON.parse(item)),
      String(length),
    )
  }
})
