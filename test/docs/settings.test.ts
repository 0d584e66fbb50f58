import assert from 'node:assert/strict'
import { glob, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'

test('docs/host-setup.md lists every setting of the daemon, and no other', async () => {
  const source = await readFile(join(REPOSITORY, 'packages/daemon/src/config/config.ts'), 'utf8')
  const page = await readFile(join(REPOSITORY, 'docs/host-setup.md'), 'utf8')
  const table = /^const SETTINGS = \{$(.*?)^\} as const$/ms.exec(source)?.[1] ?? ''
  const settings = [...table.matchAll(/^ {2}([A-Z_]+):/gm)].map(([, name]) => name)
  // Names the file itself, so it can be no setting in it.
  const listed = [...page.matchAll(/^\| `([A-Z_]+)` \|/gm)].map(([, name]) => name).filter((name) => name !== 'CONFIG')
  assert.ok(settings.length > 20)
  assert.deepEqual(listed.toSorted(), settings.toSorted())
})

test('every setting is read by some part of the daemon', async () => {
  const root = join(REPOSITORY, 'packages/daemon/src')
  let source = ''
  for await (const path of glob('**/*.ts', { cwd: root })) {
    if (!path.startsWith('config/') && !path.endsWith('.test.ts')) source += await readFile(join(root, path), 'utf8')
  }
  const leaves = leavesOf(configOf(new Map()))
  assert.ok(leaves.length > 20)
  // Read as `config.name`, or taken out by its name.
  const unread = leaves.filter((name) => !new RegExp(`\\.${name}\\b|[{,]\\s*${name}\\s*[,}]`).test(source))
  assert.deepEqual(unread, [])
})

function leavesOf(config: object): string[] {
  return Object.entries(config).flatMap(([name, value]) => {
    const isGroup = typeof value === 'object' && value !== null && !Array.isArray(value) && Object.keys(value).length > 0
    return isGroup ? leavesOf(value) : [name]
  })
}
