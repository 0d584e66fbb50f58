/** Words of a command line: whatever they are, they are read or refused as a mistake of usage. */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { parseAddress } from '../connect.ts'
import { Failure } from '../failure.ts'
import { parseCompression } from './compression.ts'
import { parseEnvFile, parseVariable } from './environment-variables.ts'
import { parseCopyEnd } from './instance-path.ts'
import { parseMount } from './mounts.ts'
import { parseCount, parseDurationOption, parseGigabytes, parseSizeOption, parseTags, parseTail } from './values.ts'

const lookup = () => undefined
const READERS: Readonly<Record<string, (text: string) => unknown>> = {
  'a volume': parseMount,
  'a compression': parseCompression,
  'a tag': (text) => parseTags([text]),
  'a size': parseSizeOption,
  'a size in gigabytes': parseGigabytes,
  'a duration': parseDurationOption,
  'a count': parseCount,
  'a number of lines': parseTail,
  'an end of a copy': parseCopyEnd,
  'a variable': (text) => parseVariable(text, lookup),
  'a file of variables': (text) => parseEnvFile(text, lookup),
  'an address': parseAddress,
}

const parts = fc.constantFrom(
  'a',
  ':',
  '/',
  '=',
  '-',
  '.',
  '1',
  '9'.repeat(30),
  '2g',
  'ro',
  'overlay=',
  'zstd',
  '30s',
  'd',
  'w',
  '7d',
  'all',
  '#',
  '"',
  '\n',
)
const schemes = fc.constantFrom('http://', 'https://', 'unix://', 'ssh://', '[', ']', '@', '%', '\\', ' ', '\0')
const nearly = fc.array(fc.oneof(parts, schemes), { maxLength: 6 }).map((found) => found.join(''))

for (const [what, read] of Object.entries(READERS)) {
  test(`${what} is read, or refused with a sentence`, () => {
    fc.assert(
      fc.property(fc.oneof(nearly, fc.string({ unit: 'binary' })), (text) => {
        try {
          const value = read(text)
          if (typeof value === 'number') assert.ok(Number.isFinite(value) && value >= 0, `${text} is ${value}`)
        } catch (error) {
          assert.ok(error instanceof Failure, `${JSON.stringify(text)}: ${error}`)
          assert.ok(error.message.length > 0)
        }
      }),
      { numRuns: 1000 },
    )
  })
}
