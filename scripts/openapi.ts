/** Prints the route table to openapi.json. With --check it writes nothing and fails when the committed file says something else. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { OPENAPI_FILE, openApiText } from './openapi-text.ts'

if (!process.argv.includes('--check')) writeFileSync(OPENAPI_FILE, openApiText())
else if (!existsSync(OPENAPI_FILE) || readFileSync(OPENAPI_FILE, 'utf8') !== openApiText()) {
  console.error('openapi.json is not what the route table says. Write it anew with: node scripts/openapi.ts')
  process.exitCode = 1
}
