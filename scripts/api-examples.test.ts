import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EXAMPLES } from '../packages/api/src/examples.ts'
import { ROUTE_IDS } from '../packages/api/src/routes.ts'
import { recordedExamples } from './api-examples-file.ts'

test('every route has an example, and its answer is recorded', () => {
  const recorded = recordedExamples().map(({ route }) => route)
  for (const id of ROUTE_IDS) {
    const shown = EXAMPLES.filter((example) => example.route === id && !example.isHidden)
    assert.equal(
      shown.length,
      1,
      `${id} has ${shown.length} examples in packages/api/src/examples.ts, and docs/api.md shows one for each route. Add it where it works after those before it, then run: node scripts/api-examples.ts && node scripts/api-docs.ts`,
    )
    assert.ok(
      recorded.includes(id),
      `The example of ${id} has never been sent. Run: node scripts/api-examples.ts && node scripts/api-docs.ts`,
    )
  }
})
