import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Instance } from '../instances/instance.ts'
import { fakeUses } from './fake-uses.ts'
import { presentInstance } from './present-instance.ts'
import { WrittenInstances } from './written-instances.ts'

const AT_MS = 1e12
const read = (lists: WrittenInstances, instances: readonly Instance[], nowMs: number) =>
  JSON.parse(lists.list(instances, nowMs).bytes.toString())
const shown = (instances: readonly Instance[], nowMs: number) =>
  JSON.parse(JSON.stringify(instances.map((instance) => presentInstance(instance, nowMs))))

test('what is written of records is what is shown of them, now and later, and when the clock was set back', () => {
  const { instances } = fakeUses()
  const durations = { created: 3, initializing: 20, running: 100 }
  const all = [
    instances.add({ name: 'web', createdAtMs: AT_MS, exitCode: 0, tags: { a: '"}' }, env: { GREETING: 'grüß dich, 世界' } }),
    instances.add({ name: 'new', createdAtMs: AT_MS, state: 'Created' }),
    instances.add({ name: 'again', createdAtMs: AT_MS, phases: { current: 'Running', sinceMs: AT_MS, durations } }),
    instances.add({ name: 'rests', createdAtMs: AT_MS, phases: { current: 'Stopped', sinceMs: AT_MS + 7, durations } }),
  ]
  const lists = new WrittenInstances()
  for (const nowMs of [AT_MS, AT_MS + 5000, AT_MS + 1e11, AT_MS - 60_000]) {
    assert.deepEqual(read(lists, all, nowMs), shown(all, nowMs), String(nowMs))
  }
})

test('a changed record is written anew', () => {
  const { instances } = fakeUses()
  const lists = new WrittenInstances()
  const before = instances.add({ name: 'web' })
  read(lists, [before], AT_MS)
  assert.equal(read(lists, [{ ...before, state: 'Stopped' }], AT_MS)[0].state, 'Stopped')
})

test('a list that is still on its way is not written over by the next; one that was sent gives its memory to it', () => {
  const { instances } = fakeUses()
  const all = Array.from({ length: 3 }, (_, n) => instances.add({ name: `i${n}`, createdAtMs: AT_MS }))
  const lists = new WrittenInstances()
  const first = lists.list(all, AT_MS)
  const second = lists.list(all, AT_MS + 1)
  assert.notEqual(second.bytes.buffer, first.bytes.buffer)
  assert.deepEqual(JSON.parse(first.bytes.toString()), shown(all, AT_MS))
  first.giveBack?.()
  const third = lists.list(all.slice(1), AT_MS + 2)
  assert.equal(third.bytes.buffer, first.bytes.buffer)
  assert.deepEqual(JSON.parse(third.bytes.toString()), shown(all.slice(1), AT_MS + 2))
})

test('what is known of some beside their records is told of these, anew each time', () => {
  const lists = new WrittenInstances()
  const fake = fakeUses().instances
  const instances = ['a', 'b'].map((name) =>
    fake.add({ name, createdAtMs: AT_MS, phases: { current: 'Running', sinceMs: AT_MS, durations: {} } }),
  )
  for (const successes of [1, 2]) {
    const attentionTo = ({ name }: Instance) =>
      name === 'a' ? {} : { health: { status: 'healthy' as const, successes, failures: 0 }, restart: { attempts: successes } }
    const written = JSON.parse(lists.list(instances, AT_MS, attentionTo).bytes.toString())
    assert.deepEqual(written, JSON.parse(JSON.stringify(instances.map((one) => presentInstance(one, AT_MS, attentionTo(one))))))
    const alone = instances.map((one) => JSON.parse(lists.one(one, AT_MS, attentionTo(one)).bytes.toString()))
    assert.deepEqual(alone, written)
  }
})

test('one alone is written as it is shown, and its memory is no one else’s', () => {
  const fake = fakeUses().instances
  const all = [
    fake.add({ name: 'web', createdAtMs: AT_MS, tags: { a: '"}' }, env: { GREETING: 'grüß dich, 世界' } }),
    fake.add({ name: 'new', createdAtMs: AT_MS, state: 'Created' }),
  ]
  const written = new WrittenInstances()
  for (const nowMs of [AT_MS, AT_MS + 1e11, AT_MS - 60_000]) {
    const answers = all.map((instance) => written.one(instance, nowMs))
    written.list(all, AT_MS).giveBack?.()
    assert.deepEqual(
      answers.map(({ bytes }) => JSON.parse(bytes.toString())),
      shown(all, nowMs),
    )
  }
})

test('an empty list is one', () => {
  assert.deepEqual(read(new WrittenInstances(), [], AT_MS), [])
})
