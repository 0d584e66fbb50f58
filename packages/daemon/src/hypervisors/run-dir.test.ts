import assert from 'node:assert/strict'
import { existsSync, mkdirSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { OWN_DIR, removeOwnDir } from './own-dir.ts'
import { makeRunDir, sweepRunDir } from './run-dir.ts'

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'run-dir-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const DEPTH = 30
/** Deeper than a path may be (PATH_MAX). */
function nestIn(own: string): void {
  const there = process.cwd()
  process.chdir(own)
  for (let depth = 0; depth < DEPTH; depth++) {
    mkdirSync('x'.repeat(200))
    process.chdir('x'.repeat(200))
  }
  process.chdir(there)
}

async function filledRunDir(name: string): Promise<{ runDir: string; elsewhere: string }> {
  const runDir = path.join(dir, name, 'run')
  const elsewhere = path.join(dir, name, 'elsewhere')
  const own = path.join(runDir, OWN_DIR)
  await mkdir(own, { recursive: true })
  await mkdir(elsewhere)
  await writeFile(path.join(elsewhere, 'kept'), '')
  await symlink(elsewhere, path.join(own, 'link'))
  nestIn(own)
  await writeFile(path.join(runDir, 'exit'), 'exited 0 1\n')
  return { runDir, elsewhere }
}

test('whatever a VMM has left in its own directory goes, and nothing that it leads to', async () => {
  const { runDir, elsewhere } = await filledRunDir('own')
  for (let round = 0; round < 2; round++) {
    await removeOwnDir(runDir)
    assert.deepEqual(await readdir(runDir), ['exit'])
  }
  assert.deepEqual(await readdir(elsewhere), ['kept'])
})

test('a run directory is swept, or made anew, whatever is in it', async () => {
  const swept = await filledRunDir('swept')
  for (let round = 0; round < 2; round++) {
    await sweepRunDir(swept.runDir, undefined)
    assert.equal(existsSync(swept.runDir), false)
  }
  const anew = await filledRunDir('anew')
  await makeRunDir(anew.runDir)
  assert.deepEqual(await readdir(anew.runDir), [])
  for (const { elsewhere } of [swept, anew]) assert.deepEqual(await readdir(elsewhere), ['kept'])
})
