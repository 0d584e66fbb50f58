/** Small rules that no other tool knows: how files are named, and words that must not get into the repository. */
import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'

/** Names that a tool or a custom demands; everything else is kebab-case. */
const NAMED_BY_CUSTOM = /^(README|CHANGELOG|LICENSE|NOTICE|CONTRIBUTING)(\.md)?$|^Makefile$/
const KEBAB_CASE = /^\.?[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+([-_][a-z0-9]+)*)*$/
const EMPTY_WORDS = /^(utils?|helpers?|common|misc|index)\.(ts|c|h)$/

/** What must not be read in any file of ours, and why. */
const FORBIDDEN: readonly { readonly pattern: RegExp; readonly why: string }[] = [
  { pattern: /"resolved": "https?:/, why: 'the lock file names a registry: packages come from where npm is configured to' },
  { pattern: /\b(?:it|test|describe)\.only\(/, why: 'one test keeps all others from running' },
  { pattern: /\bTODO\b(?!\([a-z]+\))/, why: 'owed work names who owes it: @TODO(name)' },
]

/** The rules and their tests spell out what they forbid. */
const THESE_RULES = 'scripts/house-rules'

export interface RepositoryFile {
  readonly path: string
  readonly text: string
}

/** Sentences about files that break a rule. Only what git tracks, or would, is looked at. */
export async function findRuleBreaks(root: string): Promise<string[]> {
  const { stdout } = await promisify(execFile)('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: root,
    maxBuffer: 64 << 20,
  })
  const breaks: string[] = []
  for (const path of new Set(stdout.split('\0').filter((name) => name !== ''))) {
    // Deleted, not yet committed.
    const bytes = await readFile(join(root, path)).catch(() => undefined)
    if (bytes === undefined) continue
    breaks.push(...nameBreaks(path))
    if (bytes.includes(0) || path.startsWith(THESE_RULES)) continue
    breaks.push(...textBreaks({ path, text: bytes.toString('utf8') }))
    // Whoever wrote it down wrote it on this machine: elsewhere the clone lies elsewhere.
    if (bytes.includes(`${root}/`)) breaks.push(`${path}: names ${root}, which is a path of this machine alone`)
  }
  return breaks
}

/** Pure. */
export function nameBreaks(path: string): string[] {
  const name = basename(path)
  if (EMPTY_WORDS.test(name)) return [`${path}: a file is named by what it does`]
  return KEBAB_CASE.test(name) || NAMED_BY_CUSTOM.test(name) ? [] : [`${path}: file names are kebab-case`]
}

/** Pure. */
export function textBreaks({ path, text }: RepositoryFile): string[] {
  return FORBIDDEN.flatMap(({ pattern, why }) => {
    const line = text.split('\n').findIndex((one) => pattern.test(one))
    return line === -1 ? [] : [`${path}:${line + 1}: ${why}`]
  })
}
