import assert from 'node:assert/strict'
import { test } from 'node:test'
import { nameBreaks, textBreaks } from './house-rules.ts'

test('kebab-case names and those of custom pass', () => {
  for (const path of ['a/poll-until.ts', 'README.md', '.ci/run', '.gitignore', 'a/b.test.ts', 'docs/decisions/0001-x.md']) {
    assert.deepEqual(nameBreaks(path), [], path)
  }
})

test('other names, and names that say nothing, do not', () => {
  for (const path of ['a/PollUntil.ts', 'a/poll_until.ts', 'a/utils.ts', 'a/helpers.ts', 'a/index.ts'])
    assert.equal(nameBreaks(path).length, 1, path)
})

test('a registry in the lock file is found, with its line', () => {
  const text = '{\n  "resolved": "https:' + '//registry.example/x.tgz"\n}'
  assert.match(textBreaks({ path: 'package-lock.json', text }).join(), /package-lock\.json:2: /)
})

test('owed work must say whose it is', () => {
  assert.equal(textBreaks({ path: 'a.ts', text: `// @${'TODO'} later` }).length, 1)
  assert.deepEqual(textBreaks({ path: 'a.ts', text: `// @${'TODO'}(maria) later` }), [])
})
