import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { DataLock } from './data-lock.ts'
import { Database } from './database.ts'
import { migrations } from './migrations.ts'

let dir: string
before(() => {
  dir = mkdtempSync(join(tmpdir(), 'store-'))
})
after(() => rmSync(dir, { recursive: true, force: true }))

const one = [{ name: 'one', sql: 'CREATE TABLE t (n INTEGER) STRICT' }]
const count = (db: Database) => Number(db.prepare('SELECT count(*) AS n FROM t').get()?.n)
const insert = (db: Database) => db.prepare('INSERT INTO t VALUES (1)').run()

test('a transaction is all or nothing', () => {
  using db = Database.open(':memory:', { steps: one })
  assert.throws(
    () =>
      db.transaction(() => {
        insert(db)
        throw new Error('no')
      }),
    /no/,
  )
  assert.equal(count(db), 0)
  assert.equal(
    db.transaction(() => {
      insert(db)
      return 'done'
    }),
    'done',
  )
  assert.equal(count(db), 1)
})

test('a transaction inside another can fail alone', () => {
  using db = Database.open(':memory:', { steps: one })
  const told: string[] = []
  db.transaction(() => {
    insert(db)
    db.afterCommit(() => told.push('outer'))
    assert.throws(() =>
      db.transaction(() => {
        insert(db)
        db.afterCommit(() => told.push('inner'))
        throw new Error('no')
      }),
    )
    assert.deepEqual(told, [])
  })
  assert.equal(count(db), 1)
  assert.deepEqual(told, ['outer'])
})

test('a transaction cannot be async', () => {
  using db = Database.open(':memory:', { steps: one })
  assert.throws(() => db.transaction(async () => insert(db)), /cannot be async/)
  assert.equal(count(db), 0)
})

test('the schema is brought up to date step by step, and a newer one is refused with a sentence', () => {
  const path = join(dir, 'schema.db')
  Database.open(path, { steps: one }).close()
  const two = [...one, { name: 'two', sql: 'ALTER TABLE t ADD COLUMN m INTEGER' }]
  Database.open(path, { steps: two }).close()
  assert.throws(() => Database.open(path, { steps: one }), { code: 'conflict', message: /written by a newer dormouse/ })
})

test('a step that fails leaves the schema as it was', () => {
  const path = join(dir, 'broken.db')
  Database.open(path, { steps: one }).close()
  const broken = [...one, { name: 'broken', sql: 'CREATE TABLE u (n INTEGER); CREATE TABLE t (n INTEGER)' }]
  assert.throws(() => Database.open(path, { steps: broken }))
  using db = Database.open(path, { steps: one })
  assert.equal(db.prepare("SELECT count(*) AS n FROM sqlite_master WHERE name = 'u'").get()?.n, 0)
})

test('the whole schema can be made, and is flushed at every commit', () => {
  using db = Database.open(join(dir, 'all.db'))
  assert.equal(db.prepare('PRAGMA user_version').get()?.user_version, migrations.length)
  assert.equal(db.prepare('PRAGMA journal_mode').get()?.journal_mode, 'wal')
  assert.equal(db.prepare('PRAGMA synchronous').get()?.synchronous, 2)
  assert.equal(db.prepare('PRAGMA foreign_keys').get()?.foreign_keys, 1)
})

test('on a full disk a change is refused in words, and one that ends something is done anew until there is room', () => {
  let pieces = 0
  let room = (): void => undefined
  const ballast = {
    spend<T>(work: () => T): T {
      for (;;) {
        try {
          return work()
        } catch (error) {
          assert.equal((error as { errcode?: number }).errcode, 13)
          if (++pieces === 3) room()
        }
      }
    },
  }
  using db = Database.open(join(dir, 'full.db'), { steps: one, ballast })
  const limit = (pages: number) => db.prepare(`PRAGMA max_page_count = ${pages}`).get()
  // SQLite says the same of a database that may not grow as of a disk that is full.
  limit(2)
  room = () => limit(1000)
  const told: string[] = []
  const grow = () => {
    for (let n = 0; n < 2000; n++) insert(db)
    db.afterCommit(() => told.push('grown'))
  }
  assert.throws(() => db.transaction(grow), { code: 'insufficient_resources', message: /^The disk of the data directory is full/ })
  assert.equal(pieces, 0)
  assert.throws(() => db.transaction(() => db.transaction(grow, { evenWhenFull: true })), { code: 'insufficient_resources' })
  db.transaction(grow, { evenWhenFull: true })
  assert.deepEqual([pieces, count(db), told], [3, 2000, ['grown']])
})

test('a data directory has one daemon; the second is told who it is', () => {
  const path = join(dir, 'lock')
  {
    using _held = DataLock.take(path)
    assert.throws(() => DataLock.take(path), { code: 'conflict', message: new RegExp(`: process ${process.pid}, since 20`) })
  }
  using _again = DataLock.take(path)
})
