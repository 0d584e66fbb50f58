import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { API_DOCS } from './api-docs-text.ts'

test('the committed pages of the API are what the contract says', () => {
  for (const { name, file, text } of API_DOCS) {
    // Not `equal`: it would print both.
    assert.ok(readFileSync(file, 'utf8') === text(), `${name} is out of date. Write it anew with: node scripts/api-docs.ts`)
  }
})
