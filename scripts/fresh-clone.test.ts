import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { appendFileSync, chmodSync, chownSync, cpSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
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

test('a set-up without root says what it would need and the command for it, and does nothing', (t) => {
  if (!isRoot) return t.skip('only root can become another user')
  const dir = freshClone(t)
  appendFileSync(join(dir, 'scripts/setup/packages.txt'), 'build  no-such-package  -  for this test\n')
  chownSync(dir, NOBODY, NOBODY)
  const { status, stdout, stderr } = spawnSync(join(dir, 'scripts/setup.sh'), ['demo'], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH },
    uid: NOBODY,
    gid: NOBODY,
  })
  assert.deepEqual([status, stdout], [1, ''])
  const [missing, command, ...more] = stderr.trimEnd().split('\n')
  assert.match(missing ?? '', /^setup: missing Debian packages: (.* )?no-such-package$/)
  assert.match(
    command ?? '',
    /run this and then the same command again: sudo apt-get install --no-install-recommends (.* )?no-such-package$/,
  )
  assert.deepEqual(more, [])
  assert.deepEqual(readdirSync(dir).sort(), ['bin', 'build', 'scripts'])
  assert.deepEqual(readdirSync(join(dir, 'build')), ['.setup-lock'])
})

test('a set-up that cannot install says what to do next', (t) => {
  if (!isRoot) return t.skip('only root installs packages')
  const dir = freshClone(t)
  appendFileSync(join(dir, 'scripts/setup/packages.txt'), 'build  no-such-package  -  for this test\n')
  const { status, stderr } = spawnSync(join(dir, 'scripts/setup.sh'), ['demo'], { encoding: 'utf8', env: without(t, ['apt-get']) })
  assert.equal(status, 1)
  assert.match(stderr, /^setup: apt-get could not install: .*no-such-package\nsetup: .*run the same command again$/m)
})

test('a second set-up starts no other tool and touches nothing', (t) => {
  const made = ['node_modules/.package-lock.json', 'build/kernel/version', 'build/guest/dormouse-guest', 'build/guest/initrd.cpio']
  const times = () => [...made, 'build/shim/dormouse-shim'].map((path) => statSync(join(ROOT, path)).mtimeMs)
  const before = times()
  const env = without(t, ['apt-get', 'apt-cache', 'npm', 'gcc', 'musl-gcc', 'curl', 'dpkg-deb', 'tar2sqfs', 'depmod', 'cpio'])
  const { status, stdout, stderr } = spawnSync(join(ROOT, 'scripts/setup.sh'), [], { encoding: 'utf8', env })
  assert.deepEqual([status, stdout, stderr], [0, '', ''])
  assert.deepEqual(times(), before)
})

/** An environment in which these programs fail, whoever calls them, and say so. */
function without(t: TestContext, programs: readonly string[]): NodeJS.ProcessEnv {
  const dir = mkdtempSync(join(tmpdir(), 'dm-without-'))
  t.after(() => rmSync(dir, { recursive: true }))
  for (const program of programs)
    writeFileSync(join(dir, program), `#!/bin/sh\necho "${program} was called: $*" >&2\nexit 1\n`, { mode: 0o755 })
  return { ...process.env, PATH: `${dir}:${process.env.PATH}` }
}

test('who is not root is told what root has to install first', (t) => {
  if (!isRoot) return t.skip('only root can become another user')
  const dir = freshClone(t)
  appendFileSync(join(dir, 'scripts/setup/packages.txt'), 'build  no-such-package  -  for this test\n')
  const step = /^ {2}sudo apt-get install --no-install-recommends .*\bno-such-package$/m
  assert.match(doctorIn(dir, NOBODY).stderr, step)
  // Root's set-up installs it itself.
  assert.doesNotMatch(doctorIn(dir).stderr, step)
})
