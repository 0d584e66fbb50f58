import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { createLogger } from '../log.ts'
import { instanceLogger } from './instance-log.ts'

test('the daemon’s lines about an instance are rotated once, between lines, and a daemon that begins anew goes on in the same file', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-log-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const [path, maxBytes] = [join(dir, 'daemon.log'), 4096]
  const everywhere: string[] = []
  const log = createLogger({ level: 'info', destination: { write: (line) => everywhere.push(line) } })
  const numbersIn = (file: string): number[] =>
    readFileSync(file, 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).n)
  let n = 0
  for (let life = 0; life < 3; life++) {
    const logger = instanceLogger(log, { id: 'abc', name: 'web' }, { path, maxBytes })
    for (let line = 0; line < 100; line++) logger.info({ n: n++ }, 'something happened')
  }
  for (const file of [path, `${path}.1`]) assert.ok(statSync(file).size <= maxBytes + 200, `${file} has ${statSync(file).size} bytes`)
  assert.equal(statSync(path).mode & 0o777, 0o600)
  const kept = [...numbersIn(`${path}.1`), ...numbersIn(path)]
  assert.deepEqual(
    kept,
    Array.from({ length: kept.length }, (_, at) => n - kept.length + at),
  )
  assert.equal(everywhere.length, n, 'the daemon’s own log has them all')
  assert.match(everywhere[0] ?? '', /"instance":"abc","name":"web"/)
})
