import assert from 'node:assert/strict'
import { glob, readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { test } from 'node:test'
import { ERRORS } from '../packages/api/src/error-table.ts'
import { ERROR_CODES, type ErrorCode } from '../packages/api/src/errors.ts'

const root = resolve(import.meta.dirname, '..')

/** Files that name codes without throwing them: the contract's tables, stand-ins of tests. */
const NAMES_ONLY = /\.test\.ts$|\/fake-|packages\/api\/src\/(errors|error-table|routes|examples)\.ts$/

/** In the contract, for what is not built yet. */
const NOT_THROWN_YET: readonly ErrorCode[] = ['credential_conflict']

async function sources(): Promise<string> {
  let all = ''
  for await (const path of glob('packages/{api,daemon}/src/**/*.ts', { cwd: root })) {
    // Comments speak of codes too.
    if (!NAMES_ONLY.test(path)) all += (await readFile(resolve(root, path), 'utf8')).replace(/^\s*(\/\/|\/?\*).*$/gm, '')
  }
  return all
}

test('every error code is thrown somewhere, and every one that is thrown is in the table', async () => {
  const text = await sources()
  const silent = ERROR_CODES.filter((code) => !text.includes(`'${code}'`) && !NOT_THROWN_YET.includes(code))
  assert.deepEqual(silent, [], 'codes that nothing throws: take them out of errors.ts and error-table.ts')
  const thrown = new Set([...text.matchAll(/new AppError\(\s*'([a-z_]+)'/g)].map(([, code]) => code ?? ''))
  assert.ok(thrown.size > 30)
  for (const code of thrown) assert.ok(Object.hasOwn(ERRORS, code), `${code} is thrown and has no row in error-table.ts`)
})

test('every row says when, as a sentence without its end, and every code that is no plain mistake says what to do', () => {
  assert.deepEqual(Object.keys(ERRORS).toSorted(), [...ERROR_CODES].toSorted())
  for (const [code, { status, when, hint }] of Object.entries(ERRORS)) {
    assert.match(when, /^[A-Z`].{15,}[^.]$/, code)
    assert.ok(status >= 400 && status < 600, code)
    assert.equal(hint === undefined, code.startsWith('invalid_') && code !== 'invalid_state', code)
  }
})
