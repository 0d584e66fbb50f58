/** `-e` and `--env-file`. */
import { readFile } from 'node:fs/promises'
import { Failure, usageFailure } from '../failure.ts'

type Lookup = (name: string) => string | undefined

/** `NAME=value`, or `NAME` alone for the caller's own value; a name that the caller does not have is left out, as Docker does. */
export function parseVariable(spec: string, lookup: Lookup): readonly [name: string, value: string] | undefined {
  const equals = spec.indexOf('=')
  const name = equals < 0 ? spec : spec.slice(0, equals)
  if (name === '' || name.includes('\0')) throw usageFailure(`${JSON.stringify(spec)} is not NAME=value`)
  const value = equals < 0 ? lookup(name) : spec.slice(equals + 1)
  return value === undefined ? undefined : [name, value]
}

/** Lines of an env file: `NAME=value`, `NAME`, blank lines and lines that begin with `#`. Values are taken as they are, quotes included. */
export function parseEnvFile(text: string, lookup: Lookup): (readonly [string, string])[] {
  return text.split('\n').flatMap((raw, index) => {
    const line = raw.replace(/\r$/, '').trimStart()
    if (line.trim() === '' || line.startsWith('#')) return []
    if (/\s/.test(line.split('=', 1)[0] ?? '')) throw usageFailure(`Line ${index + 1} is not NAME=value: ${JSON.stringify(line)}`)
    const variable = parseVariable(line, lookup)
    return variable === undefined ? [] : [variable]
  })
}

/** Files first, in order, then `-e`: what is named last wins. Undefined when nothing was given. */
export async function readVariables(
  files: readonly string[],
  specs: readonly string[],
  lookup: Lookup,
): Promise<Record<string, string> | undefined> {
  const variables: (readonly [string, string])[] = []
  for (const file of files) {
    const text = await readFile(file, 'utf8').catch((cause: Error) => {
      throw new Failure(`Cannot read the env file ${file}: ${cause.message}`, { cause })
    })
    variables.push(...parseEnvFile(text.replace(/^\ufeff/, ''), lookup))
  }
  for (const spec of specs) variables.push(...[parseVariable(spec, lookup)].filter((each) => each !== undefined))
  return variables.length === 0 ? undefined : Object.fromEntries(variables)
}
