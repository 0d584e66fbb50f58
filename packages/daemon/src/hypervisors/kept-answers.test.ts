import assert from 'node:assert/strict'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { KeptAnswers } from './kept-answers.ts'
import { isStill, type VmmBinary } from './vmm-binary.ts'

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'kept-answers-'))
})
after(() => rm(dir, { recursive: true, force: true }))

async function binaryAt(file: string): Promise<VmmBinary> {
  const { dev, ino, size, mtimeNs } = await stat(file, { bigint: true })
  const binary = { file, version: '1', stamp: [dev, ino, size, mtimeNs].join(':') }
  assert.ok(await isStill(binary))
  return binary
}

test('a host is asked once, and again when its VMM is another', async () => {
  const file = path.join(dir, 'vmm')
  await writeFile(file, 'one')
  let asked = 0
  const answers = new KeptAnswers(
    async () => ({ binary: await binaryAt(file), number: ++asked }),
    ({ binary }) => binary,
  )
  const numbers = await Promise.all([answers.get(), answers.get(), answers.get()])
  assert.deepEqual(
    [...numbers, await answers.get()].map(({ number }) => number),
    [1, 1, 1, 1],
  )
  await writeFile(file, 'another')
  const anew = await Promise.all([answers.get(), answers.get()])
  assert.deepEqual(
    anew.map(({ number }) => number),
    [2, 2],
  )
})

test('a failure is told to all who wait for it, and to no one later', async () => {
  const file = path.join(dir, 'late')
  const answers = new KeptAnswers(
    () => binaryAt(file),
    (binary) => binary,
  )
  const refused = await Promise.allSettled([answers.get(), answers.get()])
  assert.deepEqual(
    refused.map(({ status }) => status),
    ['rejected', 'rejected'],
  )
  await writeFile(file, 'there')
  assert.equal((await answers.get()).file, file)
})
