import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { NOT_HERE, STORIES } from './stories.ts'

test('every story with a VM runs on real KVM, or it is said why not', () => {
  const files = readdirSync(join(import.meta.dirname, '../vm')).flatMap((name) => /^(.+)\.test\.ts$/.exec(name)?.[1] ?? [])
  assert.deepEqual([...STORIES, ...Object.keys(NOT_HERE)].sort(), files.sort())
})
