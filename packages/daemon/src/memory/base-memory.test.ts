import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { assetsIn, defaultAssetsDir } from '../config/assets.ts'
import { silentLogger } from '../log.ts'
import { forgetFiles } from './base-memory.ts'

test('what would be forgotten can be asked for first, and asking forgets nothing', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  const file = join(dir, 'memory')
  writeFileSync(file, Buffer.alloc(1 << 20, 7))
  const { shim } = assetsIn(defaultAssetsDir())
  const step = { signal: AbortSignal.timeout(60_000), log: silentLogger }
  const asked = (dryRun: boolean, files = [file, join(dir, 'gone')]) => forgetFiles(shim, files, step, { dryRun })
  for (let n = 0; n < 2; n++) {
    readFileSync(file)
    const bytes = await asked(true)
    assert.ok(bytes > 0 && bytes <= 1 << 20, String(bytes))
  }
  // A file system without a page cache of its own gives none back.
  assert.ok((await asked(false)) <= 1 << 20)
  assert.equal(await asked(true, []), 0)
})
