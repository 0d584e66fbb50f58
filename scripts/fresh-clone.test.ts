import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { appendFileSync, chmodSync, cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { type TestContext, test } from 'node:test'

const ROOT = resolve(import.meta.dirname, '..')
const isRoot = process.geteuid?.() === 0
const NOBODY = 65_534

/** What a clone has before its first set-up. */
function freshClone(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'dm clone-'))
  t.after(() => rmSync(dir, { recursive: true }))
  for (const part of ['bin', 'scripts']) cpSync(join(ROOT, part), join(dir, part), { recursive: true })
  chmodSync(dir, 0o755)
  return dir
}

const doctorIn = (dir: string, uid?: number) =>
  spawnSync(join(dir, 'bin/dormouse'), ['doctor'], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH },
    ...(uid === undefined ? {} : { uid }),
  })

test('a doctor in a clone without Node says each command that leads on, in order', (t) => {
  const dir = freshClone(t)
  const { status, stdout, stderr } = doctorIn(dir)
  assert.deepEqual([status, stdout], [1, ''])
  assert.match(stderr, /^Error: This clone is not set up yet: its Node is missing: .*node_modules\/node\/bin\/node\nHint: /)
  const steps = stderr.split('\n').filter((line) => line.startsWith('  '))
  assert.deepEqual(steps.slice(-3), [`  cd ${dir.replaceAll(' ', '\\ ')}`, '  scripts/setup.sh demo', '  bin/dormouse doctor'])
})

test('who is not root is told what root has to install first', (t) => {
  if (!isRoot) return t.skip('only root can become another user')
  const dir = freshClone(t)
  appendFileSync(join(dir, 'scripts/setup/packages.txt'), 'build  no-such-package  -  for this test\n')
  const step = /^ {2}sudo apt-get install --no-install-recommends .*\bno-such-package$/m
  assert.match(doctorIn(dir, NOBODY).stderr, step)
  // Root's set-up installs it itself.
  assert.doesNotMatch(doctorIn(dir).stderr, step)
})
