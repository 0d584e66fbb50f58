import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { logTail, wordsOf } from './log-tail.ts'

async function logOf(t: TestContext, text: string): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'dm-'))
  t.after(() => rm(dir, { recursive: true, force: true }))
  const file = join(dir, 'vmm.log')
  await writeFile(file, text)
  return file
}

test('the last five lines of a log are told, the very last one in the message', async (t) => {
  const tail = await logTail(await logOf(t, 'one\ntwo\n\nthree\nfour\nfive\nsix\n'))
  assert.deepEqual(tail, ['two', 'three', 'four', 'five', 'six'])
  assert.deepEqual(wordsOf(tail), { last: 'six', detail: { vmm_log: 'two\nthree\nfour\nfive\nsix' } })
})

test('a log of one endless line is cut to its end', async (t) => {
  const tail = await logTail(await logOf(t, `${'ä'.repeat(1_000_000)}!`))
  assert.equal(tail.join('\n').length, 1000)
  assert.ok(tail[0]?.endsWith('ä!'))
})

test('what a terminal would obey is taken out of a log', async (t) => {
  assert.deepEqual(await logTail(await logOf(t, '\u001b[2Jqemu: no\r\n\u0007\n')), ['[2Jqemu: no'])
})

test('without a log, or with an empty one, nothing is made up', async (t) => {
  assert.deepEqual(await logTail(await logOf(t, '')), [])
  assert.deepEqual(wordsOf(await logTail('/nowhere/vmm.log')), { last: 'it said nothing', detail: {} })
})
