import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { Event, EventKind } from '@dormouse/api/events.ts'
import { SCOPES, type Scope } from '@dormouse/api/tokens.ts'
import { Events } from '../events/events.ts'
import { Database } from '../store/database.ts'
import { type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

interface House {
  readonly uses: FakeUses
  record(kind: EventKind, subject?: string, data?: Record<string, unknown>): void
  /** The first `count` events that a token of these scopes, or the host, is told. */
  follow(count: number, query: string, scopes?: readonly Scope[]): Promise<Event[]>
}

function house(t: TestContext, config: { keep?: number } = {}): House {
  const db = Database.open(':memory:')
  const events = new Events({ db, config })
  const uses: FakeUses = { ...fakeUses(), events }
  const server = new HttpServer(uses)
  t.after(async () => {
    await server.close()
    db.close()
  })
  const follow: House['follow'] = async (count, query, scopes) => {
    const { token } = await server.authority.mint({ subject: 'a', ttlMs: 60_000, ...(scopes && { scopes }) })
    const answer = await server.tcp.inject({
      url: `/events?${query}`,
      headers: { authorization: `Bearer ${token}` },
      payloadAsStream: true,
    })
    assert.equal(answer.statusCode, 200)
    const told: Event[] = []
    let text = ''
    for await (const chunk of answer.stream()) {
      text += chunk
      const lines = text.split('\n')
      text = lines.pop() ?? ''
      for (const line of lines) if (line.startsWith('data: ')) told.push(JSON.parse(line.slice(6)))
      if (told.length >= count) break
    }
    return told
  }
  const record: House['record'] = (kind, subject = 'x', data = {}) => db.transaction(() => events.record({ kind, subject, data }))
  return { uses, record, follow }
}

const KINDS: Readonly<Partial<Record<Scope, readonly EventKind[]>>> = {
  'instance:read': ['instance.created', 'instance.health_changed', 'auto_standby.held'],
  'snapshot:read': ['schedule.ran', 'snapshot.published'],
  'image:read': ['image.pulled', 'push.changed'],
  'volume:read': ['volume.created'],
  'device:read': ['device.created'],
}

test('a token is told of what it may read, and of nothing else', async (t) => {
  const { record, follow } = house(t)
  const all = Object.values(KINDS).flat()
  // Whoever is told of too much is told of it before what comes last.
  for (let round = 0; round < 2; round++) for (const kind of all) record(kind)
  record('new_noun.changed' as EventKind)
  for (const kind of all) record(kind)
  for (const [scope, kinds = []] of Object.entries(KINDS)) {
    const told = await follow(kinds.length * 3, 'after=0', [scope as Scope])
    assert.deepEqual(
      told.map(({ kind }) => kind),
      [...kinds, ...kinds, ...kinds],
    )
  }
  const both = await follow(9, 'after=0', ['image:read', 'volume:read'])
  assert.deepEqual(new Set(both.map(({ kind }) => kind)), new Set(['image.pulled', 'push.changed', 'volume.created']))
  // Reading each noun is not everything.
  const told = await follow(all.length * 3, 'after=0', SCOPES)
  assert.ok(!told.some(({ kind }) => kind.startsWith('new_noun')))
  assert.ok((await follow(all.length * 2 + 1, 'after=0')).some(({ kind }) => kind.startsWith('new_noun')))
})

test('a subject may be a name', async (t) => {
  const { uses, record, follow } = house(t)
  const { id } = uses.instances.add({ name: 'web' })
  record('instance.changed', 'other')
  record('instance.changed', id)
  for (const subject of ['web', id, id.slice(0, 8)]) {
    const [told] = await follow(1, `after=0&subject=${subject}`)
    assert.equal(told?.subject, id)
  }
  // What is gone is found by its id, what is yet to come is not looked for.
  assert.equal((await follow(1, 'after=0&subject=other'))[0]?.subject, 'other')
})

test('whoever comes back too late is told that events are gone, whatever the subject and the scopes', async (t) => {
  const { record, follow } = house(t, { keep: 3 })
  for (let n = 0; n < 1000; n++) record('instance.changed')
  const [lost] = await follow(1, 'after=5&subject=other', ['image:read'])
  const { at, ...rest } = lost as Event
  assert.deepEqual(rest, { id: 997, kind: 'events.lost', subject: 'events', data: { after: 5, oldest: 998 } })
  assert.ok(!Number.isNaN(Date.parse(at)))
  assert.deepEqual(
    (await follow(4, 'after=5')).map(({ id }) => id),
    [997, 998, 999, 1000],
  )
})
