/**
 * Schemathesis, which no one here wrote, reads our OpenAPI document and asks a whole daemon everything that it allows, nearly allows and does
 * not allow. Only the VMs and the devices are made up. No answer may be a fault of ours, each is as the document says, and nothing stays.
 *
 * What is drawn follows from a seed, here always the same. `make fuzz` takes another each time and prints it; FUZZ_SEED=7 repeats such a run.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { access } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { type TestContext, test } from 'node:test'
import { inOwnNetwork } from '../harness/own-network.ts'
import { fuzzedDaemon } from './fuzzed-daemon.ts'

const ROOT = resolve(import.meta.dirname, '../..')
const SCHEMATHESIS = join(ROOT, 'build/schemathesis/bin/python')
/** As often as this is said to be enough, or for as long as one asks for. */
const { FUZZ_SECONDS } = process.env
const goesOn = (times: number) => (FUZZ_SECONDS === undefined ? ['--max-examples', String(times)] : ['--max-time', FUZZ_SECONDS])
const SEED = Number(process.env.FUZZ_SEED ?? 1)

/** The ways it has to come by requests, and for how long it goes on. */
const PHASES: readonly (readonly [phase: string, what: string, ...args: string[]])[] = [
  ['coverage', 'each bound of each field, each field left out, each wrong type, each other method'],
  ['fuzzing', 'whatever may be drawn for each operation alone', ...goesOn(6)],
  ['stateful', 'operations one after the other, about things that others made', ...goesOn(60)],
]

// What it asks for is pulled, pushed and published: it must not get out of here.
if (inOwnNetwork(import.meta.filename)) {
  for (const [phase, what, ...args] of PHASES) {
    test(`the daemon answers as its OpenAPI document says: ${what}`, { timeout: 600_000 }, async (t) => {
      await access(SCHEMATHESIS).catch(() => assert.fail('schemathesis is not set up: scripts/setup.sh says why'))
      await using daemon = await fuzzedDaemon()
      t.diagnostic(`FUZZ_SEED=${SEED}`)
      const { code, output } = await schemathesis(t, daemon, ['--phases', phase, ...args])
      const told = output.match(/^Test cases:\n.*$/m)?.[0] ?? ''
      t.diagnostic(told.replace('\n', ''))
      assert.equal(code, 0, `with FUZZ_SEED=${SEED}:\n${output.replaceAll(daemon.token, '…')}\n${daemon.faults().join('\n')}`)
      assert.deepEqual(daemon.faults(), [], `with FUZZ_SEED=${SEED}`)
      await daemon.assertEmptied()
    })
  }
}

async function schemathesis(
  t: TestContext,
  { url, token }: { url: string; token: string },
  phase: readonly string[],
): Promise<{ code: number | null; output: string }> {
  const args = [
    '-m',
    'schemathesis.cli',
    '--config-file',
    join(import.meta.dirname, 'schemathesis.toml'),
    'run',
    join(ROOT, 'openapi.json'),
  ]
  args.push('--url', url, '--header', `Authorization: Bearer ${token}`, '--seed', String(SEED), ...phase)
  const child = spawn(SCHEMATHESIS, args, {
    cwd: ROOT,
    // Sets have the order of their hashes, which follow from chance unless they are told not to.
    env: {
      ...process.env,
      PYTHONHASHSEED: '0',
      PYTHONDONTWRITEBYTECODE: '1',
      HYPOTHESIS_STORAGE_DIRECTORY: join(ROOT, 'build/schemathesis/hypothesis'),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.after(() => child.kill('SIGKILL'))
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text))
  const { promise, resolve, reject } = Promise.withResolvers<number | null>()
  child.once('error', reject).once('close', resolve)
  return { code: await promise, output }
}
