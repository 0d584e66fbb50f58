import { existsSync, readFileSync } from 'node:fs'
import type { Exchange } from './api-examples-run.ts'

/** What the examples were answered: committed, shown in docs/api.md. */
export const EXAMPLES_FILE: URL = new URL('../docs/api-examples.json', import.meta.url)

export const recordedExamples = (): readonly Exchange[] =>
  existsSync(EXAMPLES_FILE) ? (JSON.parse(readFileSync(EXAMPLES_FILE, 'utf8')) as Exchange[]) : []
