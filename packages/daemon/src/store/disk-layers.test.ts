import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Database } from './database.ts'
import { DiskLayers } from './disk-layers.ts'
import type { InstanceId } from './instance-record.ts'

/** Rows with nothing in them but what stands on what. */
function rowsOf(instances: Readonly<Record<string, string[]>>, snapshots: Readonly<Record<string, string[]>> = {}): Database {
  const db = Database.open(':memory:')
  const columns = db.prepare('SELECT name, type FROM pragma_table_info(\'instances\') WHERE "notnull" AND dflt_value IS NULL').all()
  for (const [id, disk] of Object.entries(instances)) {
    const given: Record<string, string | number> = { id, name: id, disk: JSON.stringify(disk), state: 'Stopped', network_enabled: 0 }
    for (const { name, type } of columns) given[String(name)] ??= type === 'INTEGER' ? 0 : '{}'
    const names = Object.keys(given)
    db.prepare(`INSERT INTO instances (${names.join(', ')}) VALUES (${names.map(() => '?').join(', ')})`).run(...Object.values(given))
  }
  for (const [id, disk] of Object.entries(snapshots)) {
    db.prepare(
      "INSERT INTO snapshots (id, kind, created_at_ms, source_id, source_name, instance, disk, bytes) VALUES (?, 'Stopped', 0, ?, '', '{}', ?, 0)",
    ).run(id, id, JSON.stringify(disk))
  }
  return db
}

test('a layer goes with the last row that names it, of whatever kind', () => {
  using db = rowsOf({ a: ['a.qcow2', 'base.raw'], b: ['b.qcow2', 'base.raw'] }, { s: ['old.raw'] })
  const layers = new DiskLayers(db)
  assert.deepEqual(layers.unnamed(['a.qcow2', 'base.raw', 'old.raw', 'stray.raw']), ['stray.raw'])
  assert.deepEqual(layers.unnamed(['a.qcow2', 'base.raw'], 'a' as InstanceId), ['a.qcow2'])
  db.prepare("DELETE FROM instances WHERE id = 'b'").run()
  assert.deepEqual(layers.unnamed(['a.qcow2', 'base.raw'], 'a' as InstanceId), ['a.qcow2', 'base.raw'])
  db.prepare('DELETE FROM snapshots').run()
  assert.deepEqual(layers.unnamed(['old.raw']), ['old.raw'])
})

test('asking which snapshots stand on a base looks at no others', () => {
  using db = rowsOf({})
  const plan = db.prepare('EXPLAIN QUERY PLAN SELECT 1 FROM snapshots WHERE base = ? LIMIT 1').all('base/x')
  assert.match(JSON.stringify(plan), /snapshots_by_base/)
})

test('frozen is what no instance writes, each layer once', () => {
  using db = rowsOf(
    { a: ['a.qcow2', 'mid.qcow2', 'base.raw'], b: ['b.qcow2', 'mid.qcow2', 'base.raw'], c: ['c.raw'] },
    { s: ['mid.qcow2', 'base.raw'], t: ['kept.raw'], u: ['c.raw'] },
  )
  assert.deepEqual(new DiskLayers(db).frozen().sort(), ['base.raw', 'kept.raw', 'mid.qcow2'])
})
