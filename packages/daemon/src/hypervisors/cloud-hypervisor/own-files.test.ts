/** What a VMM has a hand in: files in its own directory. */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, rename, rm, symlink, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { OWN_DIR } from '../own-dir.ts'
import { OwnFiles } from './own-files.ts'

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'own-'))
})
after(() => rm(dir, { recursive: true, force: true }))

let count = 0
async function runDirOf(): Promise<string> {
  const runDir = path.join(dir, `${count++}`)
  await mkdir(path.join(runDir, OWN_DIR), { recursive: true })
  return runDir
}

test('what is written there is read whole up to a bound, and no further, and nothing else than a file', async () => {
  const runDir = await runDirOf()
  await using files = await OwnFiles.make(runDir, 'save')
  const own = path.join(runDir, OWN_DIR, 'save')
  await writeFile(path.join(own, 'state'), 'x'.repeat(1000))
  assert.equal((await files.read('state', 1000)).length, 1000)
  await assert.rejects(files.read('state', 999), { code: 'internal_error', message: /not a file that it would write/ })
  await symlink('state', path.join(own, 'link'))
  await assert.rejects(files.read('link', 1000))
  await mkdir(path.join(own, 'directory'))
  await assert.rejects(files.read('directory', 1000))
})

test('only what was asked for is removed, and nowhere else than there', async () => {
  const runDir = await runDirOf()
  const own = path.join(runDir, OWN_DIR)
  const elsewhere = path.join(dir, 'elsewhere')
  await mkdir(elsewhere)
  for (const name of ['memory', 'state', 'more']) await writeFile(path.join(elsewhere, name), 'kept')
  {
    await using files = await OwnFiles.make(runDir, 'save')
    await files.create('memory')
    await writeFile(path.join(own, 'save', 'state'), 'x')
    await files.read('state', 10)
    await rename(path.join(own, 'save'), path.join(own, 'moved'))
    await symlink(elsewhere, path.join(own, 'save'))
  }
  assert.deepEqual((await readdir(elsewhere)).sort(), ['memory', 'more', 'state'])
  assert.deepEqual(await readdir(path.join(own, 'moved')), [])
})

test('nothing is left of it', async () => {
  const runDir = await runDirOf()
  {
    await using files = await OwnFiles.make(runDir, 'save')
    await files.create('memory')
  }
  assert.deepEqual(await readdir(path.join(runDir, OWN_DIR)), [])
})
