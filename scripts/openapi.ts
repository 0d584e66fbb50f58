/** Prints the route table to openapi.json. With --check it writes nothing and fails when the committed file says something else. */
import { readFileSync, writeFileSync } from 'node:fs'
import { openApiDocument } from '../packages/api/src/openapi.ts'
import { statusOf } from '../packages/daemon/src/http/problems.ts'

const file = new URL('../openapi.json', import.meta.url)
const { version } = JSON.parse(readFileSync(new URL('../packages/daemon/package.json', import.meta.url), 'utf8')) as { version: string }
const text = `${JSON.stringify(openApiDocument({ version, statusOf }), null, 2)}\n`

if (process.argv.includes('--check')) {
  let committed = ''
  try {
    committed = readFileSync(file, 'utf8')
  } catch {
    // Said below.
  }
  if (committed !== text) {
    console.error('openapi.json is not what the route table says. Write it anew with: node scripts/openapi.ts')
    process.exitCode = 1
  }
} else writeFileSync(file, text)
