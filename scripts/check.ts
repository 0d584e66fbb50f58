/** `make check`: every rule that a machine can hold, all of them run and all failures listed, whatever fails first. */
import { spawn } from 'node:child_process'
import { access, glob } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { findRuleBreaks } from './house-rules.ts'
import { findRingBreaks } from './import-rings.ts'

const root = resolve(import.meta.dirname, '..')

interface Check {
  readonly name: string
  /** Nothing when all is well, else what is wrong. */
  readonly run: () => Promise<string>
}

const CHECKS: readonly Check[] = [
  { name: 'types', run: () => outputOf('tsc', '-p', '.', '--pretty', 'false') },
  { name: 'lint and format', run: () => outputOf('biome', 'ci', '--error-on-warnings', '--colors=off', '.') },
  { name: 'import rings', run: async () => (await findRingBreaks(root)).join('\n') },
  { name: 'names and words', run: async () => (await findRuleBreaks(root)).join('\n') },
  { name: 'OpenAPI document', run: () => outputOf('node', 'scripts/openapi.ts', '--check') },
  { name: 'pages of the API', run: () => outputOf('node', 'scripts/api-docs.ts', '--check') },
  { name: 'dead code', run: () => outputOf('knip', '--no-progress') },
  { name: 'shell scripts', run: async () => outputOf('shellcheck', '--severity=warning', ...(await shellScripts())) },
  { name: 'C warnings, guest', run: () => outputOf('make', '-s', '-C', 'guest', 'check', `OUT=${join(root, 'build/check/guest')}`) },
  { name: 'C warnings, shim', run: () => outputOf('make', '-s', '-C', 'shim', 'check', `OUT=${join(root, 'build/check/shim')}`) },
]

const OUTPUT_LIMIT = 1 << 20

/** What a tool wrote when it did not end with 0. */
async function outputOf(program: string, ...args: string[]): Promise<string> {
  const child = spawn(program, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  const keep = (chunk: Buffer): void => {
    if (output.length < OUTPUT_LIMIT) output += chunk
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  const { promise, resolve } = Promise.withResolvers<number | null>()
  child.once('error', (error) => {
    output = error.message
    resolve(null)
  })
  child.once('close', resolve)
  return (await promise) === 0 ? '' : output.trim() || `${program} failed and said nothing`
}

async function shellScripts(): Promise<string[]> {
  const scripts = ['.ci/run', ...(await Array.fromAsync(glob(['scripts/**/*.sh', 'guest/**/*.sh', 'shim/**/*.sh'], { cwd: root })))]
  const there = await Promise.all(
    scripts.map((path) =>
      access(join(root, path)).then(
        () => true,
        () => false,
      ),
    ),
  )
  return scripts.filter((_, index) => there[index])
}

let failures = 0
for (const { name, run } of CHECKS) {
  const from = performance.now()
  const wrong = await run()
  const took = `${((performance.now() - from) / 1000).toFixed(1)} s`
  console.log(`${wrong === '' ? '✔' : '✖'} ${name} (${took})`)
  if (wrong !== '') {
    failures += 1
    console.log(`${wrong.replace(/^/gm, '    ')}\n`)
  }
}
console.log(failures === 0 ? 'check: ok' : `check: ${failures} of ${CHECKS.length} failed`)
process.exitCode = failures === 0 ? 0 : 1
