import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { createLogger, silentLogger } from '../log.ts'
import { AuditRows } from '../store/audit.ts'
import { Database } from '../store/database.ts'
import { Audit, type AuditFacts } from './audit.ts'

const stop: AuditFacts = {
  caller: 'ann',
  tokenId: 't1',
  address: '192.0.2.1',
  operation: 'stopInstance',
  target: { id: 'web' },
  requestId: 'r1',
}
const limits = { keep: 100_000, maxAgeMs: 3_600_000 }

function room(t: TestContext, config = limits) {
  const db = Database.open(':memory:')
  const audit = new Audit({ db, log: silentLogger, config })
  t.after(() => audit[Symbol.dispose]())
  const written = () => db.prepare('SELECT result, operation FROM audit ORDER BY id').all() as { result: string; operation: string }[]
  return { db, audit, written, results: () => audit.list({ limit: 1000 }).map(({ outcome }) => outcome.result) }
}

test('a request’s row is part of its first transaction, and how it went of the next one', (t) => {
  const { db, audit, written } = room(t)
  const request = audit.begin(stop)
  assert.deepEqual(written(), [])
  db.transaction(() => undefined)
  assert.equal(written()[0]?.result, 'under_way')
  request.end({ result: 'done', status: 200, resourceId: 'abc' })
  db.transaction(() => undefined)
  assert.deepEqual(
    written().map(({ result }) => result),
    ['done'],
  )
  const [row] = audit.list({ limit: 1 })
  assert.deepEqual([row?.caller, row?.tokenId, row?.address, row?.target, row?.requestId], ['ann', 't1', '192.0.2.1', { id: 'web' }, 'r1'])
  assert.deepEqual([row?.outcome.status, row?.outcome.resourceId], [200, 'abc'])
})

test('a transaction that fails takes no row with it', (t) => {
  const { db, audit, written } = room(t)
  audit.begin(stop).end({ result: 'failed', status: 409, code: 'conflict' })
  assert.throws(() =>
    db.transaction(() => {
      throw new Error('no')
    }),
  )
  assert.deepEqual(written(), [])
  db.transaction(() => undefined)
  db.transaction(() => undefined)
  assert.deepEqual(
    written().map(({ result }) => result),
    ['failed'],
  )
})

test('without any transaction a row is written all the same, soon', async (t) => {
  const { audit, written } = room(t)
  audit.begin(stop)
  while (written().length === 0) await new Promise((resolve) => setImmediate(resolve))
})

test('only the first end counts', (t) => {
  const { audit, results } = room(t)
  const request = audit.begin(stop)
  request.end({ result: 'failed', status: 400 })
  request.end({ result: 'done', status: 200 })
  assert.deepEqual(results(), ['failed'])
})

test('what a daemon that was killed had not answered is told as interrupted', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 'db')
  using killed = Database.open(path)
  const before = new Audit({ db: killed, log: silentLogger, config: limits })
  before.begin(stop)
  before.begin({ ...stop, requestId: 'r2' }).end({ result: 'done', status: 200 })
  killed.transaction(() => undefined)
  using db = Database.open(path)
  using audit = new Audit({ db, log: silentLogger, config: limits })
  audit.recover()
  assert.deepEqual(
    audit.list({ limit: 10 }).map(({ requestId, outcome }) => [requestId, outcome.result]),
    [
      ['r2', 'done'],
      ['r1', 'interrupted'],
    ],
  )
})

test('refused requests have room of their own: they push nothing else out, and are bounded too', (t) => {
  const { audit, written } = room(t, { ...limits, keep: 3 })
  for (let n = 0; n < 5; n++) audit.begin({ ...stop, requestId: `r${n}` }).end({ result: 'done', status: 200 })
  for (let n = 0; n < 3000; n++) audit.refuse({ ...stop, caller: undefined }, { status: 401, code: 'unauthorized' })
  audit.flush()
  const rows = written()
  assert.equal(rows.filter(({ result }) => result === 'done').length, 3)
  assert.equal(rows.filter(({ result }) => result === 'refused').length, 3)
})

test('rows go with their age', (t) => {
  const { db, audit, results } = room(t)
  new AuditRows(db).insert({ ...stop, atMs: Date.now() - 7_200_000, skipped: 0, outcome: { result: 'done' } })
  assert.deepEqual(results(), [])
  assert.equal(db.prepare('SELECT count(*) AS n FROM audit').get()?.n, 1)
  audit.recover()
  assert.equal(db.prepare('SELECT count(*) AS n FROM audit').get()?.n, 0)
})

test('the next refused request that is written tells how many were not', (t) => {
  const { audit } = room(t)
  for (let n = 0; n < 7; n++) audit.skip()
  audit.refuse(stop, { status: 403, code: 'forbidden' })
  audit.refuse(stop, { status: 403, code: 'forbidden' })
  assert.deepEqual(
    audit.list({ limit: 10 }).map(({ skipped }) => skipped),
    [0, 7],
  )
})

test('while nothing can be written rows wait, which is told once, and the next transaction that succeeds takes them along', () => {
  const lines: string[] = []
  const log = createLogger({ level: 'warn', destination: { write: (line) => void lines.push(line) } })
  const db = Database.open(':memory:')
  using audit = new Audit({ db, log, config: limits })
  const pages = db.prepare('PRAGMA page_count').get()?.page_count
  db.prepare(`PRAGMA max_page_count = ${pages}`).get()
  for (let n = 0; n < 100; n++) audit.begin({ ...stop, target: { id: 'x'.repeat(1000) } })
  for (let n = 0; n < 3; n++) audit.flush()
  assert.equal(lines.filter((line) => line.includes('cannot be written')).length, 1)
  db.prepare('PRAGMA max_page_count = 1000000').get()
  db.transaction(() => undefined)
  assert.equal(audit.list({ limit: 1000 }).length, 100)
})

test('a row that cannot be written costs no one their change', (t) => {
  const { db, audit } = room(t)
  db.prepare('DROP TABLE audit').run()
  audit.begin(stop)
  db.transaction(() => db.prepare('CREATE TABLE made (n INTEGER)').run())
  assert.equal(db.prepare('SELECT count(*) AS n FROM made').get()?.n, 0)
})

test('texts of a caller’s choice are cut, and broken ones mended', (t) => {
  const { audit } = room(t)
  audit.begin({ ...stop, target: { id: 'x'.repeat(5000) }, caller: 'a\ud800' })
  const [row] = audit.list({ limit: 1 })
  assert.equal(row?.target.id?.length, 1025)
  assert.equal(row?.caller, 'a\ufffd')
})

test('what the daemon does by itself has rows too, as it goes, and they push out no other', async (t) => {
  const { audit } = room(t, { ...limits, keep: 3 })
  audit.begin(stop).end({ result: 'done', status: 200 })
  const deleting = { operation: 'deleteInstance', target: { id: 'abc', name: 'web' }, subjectId: 'abc' }
  const snapshotting = { operation: 'createSnapshot', target: { id: 'abc' }, subjectId: 'abc' }
  await audit.perform(
    snapshotting,
    async () => {
      assert.equal(audit.list({ limit: 1 })[0]?.outcome.result, 'under_way')
      return { id: 's1' }
    },
    ({ id }) => id,
  )
  const failure = new AppError('conflict', 'It is in use')
  await assert.rejects(
    audit.perform(deleting, async () => Promise.reject(failure)),
    failure,
  )
  audit.note({ operation: 'prune', target: { kind: 'logs' } })
  assert.deepEqual(
    audit
      .list({ limit: 3 })
      .map(({ caller, operation, outcome: { result, code, resourceId } }) => [...[caller, operation, result], ...[code, resourceId]]),
    [
      ['system', 'prune', 'done', undefined, undefined],
      ['system', 'deleteInstance', 'failed', 'conflict', 'abc'],
      ['system', 'createSnapshot', 'done', undefined, 's1'],
    ],
  )
  for (let n = 0; n < 3; n++) audit.note({ operation: 'prune', target: { kind: 'logs' } })
  audit.flush()
  audit.recover()
  assert.deepEqual(
    audit.list({ limit: 9 }).map(({ operation }) => operation),
    ['prune', 'prune', 'prune', 'stopInstance'],
  )
})
