import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import * as wire from './wire.ts'

/** `#define NAME 1` of the guest's header, and our constants by the same names. */
async function guestNumbers(): Promise<Map<string, number>> {
  const header = await readFile(join(import.meta.dirname, '../../../../guest/src/proto.h'), 'utf8')
  return new Map([...header.matchAll(/^#define (\w+) (\d+)$/gm)].map(([, name, value]) => [name ?? '', Number(value)]))
}

function ourNumbers(): Map<string, number> {
  const all = new Map<string, number>()
  for (const [name, value] of Object.entries(wire)) {
    if (typeof value === 'number') all.set(name, value)
    else for (const [key, number] of Object.entries(value)) all.set(`${name}_${key}`, number)
  }
  return all
}

test('daemon and guest have the same numbers for everything', async () => {
  assert.deepEqual([...ourNumbers()].sort(), [...(await guestNumbers())].sort())
})
