import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Database } from './database.ts'
import type { Instance, InstanceId } from './instance-record.ts'
import { InstanceRows } from './instances.ts'

function instanceOf(id: string, name: string): Instance {
  const what = { image: 'a', imageDigest: 'sha256:0', platform: 'linux/amd64', hypervisor: 'fake', state: 'Stopped' } as const
  const sizes = { createdAtMs: 0, vcpus: 1, memoryBytes: 1, hotplugBytes: 0, overlayBytes: 1 }
  const rest = { env: {}, tags: {}, skipGuestAgent: false, skipKernelHeaders: false, disk: [], volumes: [] }
  const [network, phases] = [{ enabled: false, ports: [] }, { current: 'Stopped', sinceMs: 0, durations: {} } as const]
  return { id: id as InstanceId, name, ...what, ...sizes, ...rest, network, phases }
}

test('an instance is found by the name that it has now, once that is durable, and by no other', () => {
  using db = Database.open(':memory:')
  const rows = new InstanceRows(db)
  const names = ['first', 'second', 'third']
  const named = (from = rows): (string | undefined)[] => names.map((name) => from.findByName(name)?.id)
  const [a, b] = [instanceOf('a', 'first'), instanceOf('b', 'second')]
  rows.insert(a)
  rows.insert(b)
  assert.deepEqual(named(), ['a', 'b', undefined])

  assert.throws(() => rows.update({ ...a, name: 'second' }), /UNIQUE/)
  const takenBack = (): void => {
    rows.update({ ...a, name: 'third' })
    throw new Error('On second thought')
  }
  assert.throws(() => db.transaction(takenBack), /second thought/)
  assert.deepEqual(named(), ['a', 'b', undefined])

  rows.update({ ...a, vcpus: 2 })
  assert.equal(rows.findByName('first')?.vcpus, 2)
  db.transaction(() => {
    rows.update({ ...a, name: 'third' })
    rows.update({ ...b, name: 'first' })
    rows.update({ ...a, name: 'second' })
  })
  assert.deepEqual(named(), ['b', 'a', undefined])
  db.transaction(() => {
    rows.delete('b' as InstanceId)
    rows.insert(instanceOf('c', 'first'))
  })
  assert.deepEqual(named(), ['c', 'a', undefined])
  assert.deepEqual(named(new InstanceRows(db)), ['c', 'a', undefined])
  rows.delete('c' as InstanceId)
  assert.deepEqual(named(), [undefined, 'a', undefined])
})
