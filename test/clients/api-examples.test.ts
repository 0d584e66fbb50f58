/** Every example of docs/api.md, sent again to a whole daemon on made-up VMs. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { recordedExamples } from '../../scripts/api-examples-file.ts'
import { misfitOf } from '../../scripts/api-examples-fit.ts'
import { runExamples } from '../../scripts/api-examples-run.ts'

test('what docs/api.md shows is what a daemon answers', { timeout: 120_000 }, async () => {
  const { exchanges, warnings } = await runExamples()
  const recorded = recordedExamples()
  for (const real of exchanges) {
    const shown = recorded.find(({ route }) => route === real.route)
    assert.ok(
      shown,
      `The example of ${real.route} is not in docs/api-examples.json. Run: node scripts/api-examples.ts && node scripts/api-docs.ts`,
    )
    const misfit = misfitOf(shown, real)
    assert.equal(misfit, undefined, `${real.route}: ${misfit}. Run: node scripts/api-examples.ts && node scripts/api-docs.ts`)
  }
  assert.deepEqual(
    warnings.filter((line) => line.includes('not listed by its route')),
    [],
  )
})
