/**
 * Sends every example to a daemon and writes docs/api-examples.json, which docs/api.md shows. What still fits stays as it is, so that
 * only what has changed is written anew.
 */
import { writeFileSync } from 'node:fs'
import { EXAMPLES_FILE, recordedExamples } from './api-examples-file.ts'
import { misfitOf } from './api-examples-fit.ts'
import { runExamples } from './api-examples-run.ts'

const { exchanges } = await runExamples()
const before = recordedExamples()
const kept = exchanges.map((exchange) => {
  const known = before.find(({ route }) => route === exchange.route)
  return known && misfitOf(known, exchange) === undefined ? known : exchange
})
writeFileSync(EXAMPLES_FILE, `${JSON.stringify(kept, null, 2)}\n`)
console.log(
  `${kept.filter((one) => !before.includes(one)).length} of ${kept.length} examples written anew; now run: node scripts/api-docs.ts`,
)
