/** Writes the pages of the API. With --check it writes nothing and fails when a committed one says something else. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { API_DOCS } from './api-docs-text.ts'

for (const { name, file, text } of API_DOCS) {
  if (!process.argv.includes('--check')) writeFileSync(file, text())
  else if (!existsSync(file) || readFileSync(file, 'utf8') !== text()) {
    console.error(`${name} is not what the contract says. Write it anew with: node scripts/api-docs.ts`)
    process.exitCode = 1
  }
}
