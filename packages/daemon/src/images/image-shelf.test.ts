import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { FilesIn } from './image-shelf.ts'

test('what a directory’s files hold is known again once one has come or gone, also when it comes right after a look', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-files-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const files = new FilesIn(dir)
  assert.equal(await files.bytes(), 0)
  writeFileSync(join(dir, 'a'), 'x'.repeat(1000))
  assert.equal(await files.bytes(), 1000)
  writeFileSync(join(dir, 'b'), 'x'.repeat(200))
  assert.equal(await files.bytes(), 1200)

  const longAgo = new Date(Date.now() - 60_000)
  utimesSync(dir, longAgo, longAgo)
  assert.equal(await files.bytes(), 1200)
  // Files lie there whole: that this one is looked at no more shows that nothing is.
  writeFileSync(join(dir, 'a'), '')
  assert.equal(await files.bytes(), 1200)
  rmSync(join(dir, 'b'))
  assert.equal(await files.bytes(), 0)
})

test('a directory that is not there yet holds nothing', async () => {
  assert.equal(await new FilesIn('/nonexistent/images').bytes(), 0)
})
