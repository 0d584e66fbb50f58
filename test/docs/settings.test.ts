import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
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
