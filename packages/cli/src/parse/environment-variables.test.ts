import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { parseEnvFile, parseVariable, readVariables } from './environment-variables.ts'

const lookup = (name: string): string | undefined => (name === 'HERE' ? 'from the caller' : undefined)

test('a name alone takes the value that the caller has', () => {
  assert.deepEqual(parseVariable('A=b=c', lookup), ['A', 'b=c'])
  assert.deepEqual(parseVariable('A=', lookup), ['A', ''])
  assert.deepEqual(parseVariable('HERE', lookup), ['HERE', 'from the caller'])
  assert.equal(parseVariable('NOWHERE', lookup), undefined)
  assert.throws(() => parseVariable('=x', lookup), /is not NAME=value/)
})

test('an env file has comments, blank lines and values as they are', () => {
  assert.deepEqual(parseEnvFile('# a comment\n\n  A=1\r\nB="quoted"\nHERE\nNOWHERE\nC= spaced \n', lookup), [
    ['A', '1'],
    ['B', '"quoted"'],
    ['HERE', 'from the caller'],
    ['C', ' spaced '],
  ])
  assert.throws(() => parseEnvFile('A=1\nexport B=2', lookup), /Line 2/)
})

test('what is named last wins, and a file that is not there is named', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'dm-'))
  t.after(() => rm(dir, { recursive: true }))
  await writeFile(join(dir, 'env'), 'A=file\nB=file\n')
  assert.deepEqual(await readVariables([join(dir, 'env')], ['A=flag'], lookup), { A: 'flag', B: 'file' })
  assert.equal(await readVariables([], [], lookup), undefined)
  await assert.rejects(readVariables([join(dir, 'none')], [], lookup), /Cannot read the env file/)
})
