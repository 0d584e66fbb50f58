import { apiText } from './api-text.ts'
import { errorsText } from './errors-text.ts'

const page = (name: string): URL => new URL(`../docs/${name}`, import.meta.url)

/** The pages that are written from the contract, and what each should say. */
export const API_DOCS: readonly { readonly name: string; readonly file: URL; readonly text: () => string }[] = [
  { name: 'docs/api.md', file: page('api.md'), text: apiText },
  { name: 'docs/errors.md', file: page('errors.md'), text: errorsText },
]
