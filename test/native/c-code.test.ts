/** The C programs carry their own tests; here they count as ours, and a failure shows the end of what they wrote. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'

const LIMIT_MS = 300_000
/** Enough to find a parser that breaks at once; `make fuzz` takes the time that is given to it. */
const FUZZ_SECONDS = 5

async function make(room: 'guest' | 'shim', target: string, ...variables: string[]): Promise<string> {
  const argv = ['make', '-s', '-C', join(REPOSITORY, room), target, `OUT=${join(REPOSITORY, 'build', room)}`, ...variables] as const
  const result = await runCommand(['nice', ...argv], {
    step: { signal: AbortSignal.timeout(LIMIT_MS) },
    okCodes: [0, 1, 2],
    maxOutputBytes: 16 << 20,
  })
  const output = `${result.stdout}\n${result.stderr}`
  assert.equal(result.code, 0, `make ${target} in ${room}/ failed:\n${output.trimEnd().split('\n').slice(-40).join('\n')}`)
  return output
}

test("the guest's own unit tests pass under the sanitizers", async () => {
  await make('guest', 'test')
})

test("the shim's own unit tests pass under the sanitizers", async () => {
  await make('shim', 'test')
})

test(`${FUZZ_SECONDS} seconds of fuzzing each find nothing in the guest's parsers`, async () => {
  await make('guest', 'fuzz', `SECONDS_EACH=${FUZZ_SECONDS}`)
})
