import { readFileSync } from 'node:fs'
import { openApiDocument } from '../packages/api/src/openapi.ts'

/** The committed document. */
export const OPENAPI_FILE: URL = new URL('../openapi.json', import.meta.url)

/** What it should say: generated from the route table and the schemas that validate requests. */
export function openApiText(): string {
  const { version } = JSON.parse(readFileSync(new URL('../packages/daemon/package.json', import.meta.url), 'utf8')) as { version: string }
  return `${JSON.stringify(openApiDocument({ version }), null, 2)}\n`
}
