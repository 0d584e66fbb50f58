import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Instance } from '../instances/instance.ts'
import { fakeUses } from './fake-uses.ts'
import { InstanceLists } from './instance-list.ts'
import { presentInstance } from './present-instance.ts'

const AT_MS = 1e12
const read = (lists: InstanceLists, instances: readonly Instance[], nowMs: number) =>
  JSON.parse(lists.write(instances, nowMs).bytes.toString())
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
  const lists = new InstanceLists()
  for (const nowMs of [AT_MS, AT_MS + 5000, AT_MS + 1e11, AT_MS - 60_000]) {
    assert.deepEqual(read(lists, all, nowMs), shown(all, nowMs), String(nowMs))
  }
})

test('a changed record is written anew', () => {
  const { instances } = fakeUses()
  const lists = new InstanceLists()
  const before = instances.add({ name: 'web' })
  read(lists, [before], AT_MS)
  assert.equal(read(lists, [{ ...before, state: 'Stopped' }], AT_MS)[0].state, 'Stopped')
})

test('a list that is still on its way is not written over by the next; one that was sent gives its memory to it', () => {
  const { instances } = fakeUses()
  const all = Array.from({ length: 3 }, (_, n) => instances.add({ name: `i${n}`, createdAtMs: AT_MS }))
  const lists = new InstanceLists()
  const first = lists.write(all, AT_MS)
  const second = lists.write(all, AT_MS + 1)
  assert.notEqual(second.bytes.buffer, first.bytes.buffer)
  assert.deepEqual(JSON.parse(first.bytes.toString()), shown(all, AT_MS))
  first.giveBack()
  const third = lists.write(all.slice(1), AT_MS + 2)
  assert.equal(third.bytes.buffer, first.bytes.buffer)
  assert.deepEqual(JSON.parse(third.bytes.toString()), shown(all.slice(1), AT_MS + 2))
})

test('what is known of some beside their records is told of these, anew each time', () => {
  const lists = new InstanceLists()
  const fake = fakeUses().instances
  const instances = ['a', 'b'].map((name) =>
    fake.add({ name, createdAtMs: AT_MS, phases: { current: 'Running', sinceMs: AT_MS, durations: {} } }),
  )
  for (const successes of [1, 2]) {
    const attentionTo = ({ name }: Instance) =>
      name === 'a' ? {} : { health: { status: 'healthy' as const, successes, failures: 0 }, restart: { attempts: successes } }
    const written = JSON.parse(lists.write(instances, AT_MS, attentionTo).bytes.toString())
    assert.deepEqual(written, JSON.parse(JSON.stringify(instances.map((one) => presentInstance(one, AT_MS, attentionTo(one))))))
  }
})

test('an empty list is one', () => {
  assert.deepEqual(read(new InstanceLists(), [], AT_MS), [])
})
