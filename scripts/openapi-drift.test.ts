import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { OPENAPI_FILE, openApiText } from './openapi-text.ts'

test('the committed OpenAPI document is what the route table says', () => {
  // Not `equal`: it would print both.
  assert.ok(
    readFileSync(OPENAPI_FILE, 'utf8') === openApiText(),
    'openapi.json is out of date. Write it anew with: node scripts/openapi.ts',
  )
})
