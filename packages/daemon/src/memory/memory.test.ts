import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { silentLogger } from '../log.ts'
import { Memory, SCRATCH } from './memory.ts'

test('memory that was being added when a daemon died leaves no file, and what else is there stays', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'dm-memory-'))
  t.after(() => rm(dir, { recursive: true, force: true }))
  const basesDir = join(dir, 'memory')
  await using memory = new Memory({ goldenDir: join(dir, 'golden'), basesDir, shimPath: '', log: silentLogger, isNeeded: () => true })
  // Before there is anything.
  await memory.sweepScratch()
  await mkdir(join(basesDir, 'a'.repeat(24)), { recursive: true })
  await writeFile(join(basesDir, `${SCRATCH}0123`), '')
  await memory.sweepScratch()
  assert.deepEqual(await readdir(basesDir), ['a'.repeat(24)])
})
