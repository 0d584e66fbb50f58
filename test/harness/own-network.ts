/** Tests that need a network of their own run again in a namespace of their own, which goes with the process: nothing of the host's is touched. */
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { timeFactor } from './slow-host.ts'

const MARK = 'DORMOUSE_TEST_IN_NAMESPACE'

/** Within the namespace a file runs again: what it has asked of the host it need not ask a second time. */
export const isInOwnNetwork = process.env[MARK] !== undefined

/** True within the namespace, where the tests are to be defined; without, one test runs the file there. */
export function inOwnNetwork(file: string): boolean {
  if (isInOwnNetwork) return true
  test(`in a network namespace: ${file.split('/').at(-1)}`, (t) => {
    if (process.geteuid?.() !== 0) return t.skip('a network namespace is for root')
    // What is below /sys is of the namespace in which it was mounted.
    const script = 'mount -t sysfs none /sys && ip link set lo up && exec "$0" --test --test-concurrency=1 "$@"'
    // What this side says comes at the end, which may be long in coming where everything is slow: there it is told meanwhile, too.
    const reports = ['stdout', ...(timeFactor > 1 ? ['stderr'] : [])].flatMap((to) => [
      '--test-reporter=spec',
      `--test-reporter-destination=${to}`,
    ])
    const { status, stdout } = spawnSync('unshare', ['--net', '--mount', 'sh', '-c', script, process.execPath, ...reports, file], {
      env: { ...process.env, [MARK]: '1', NODE_TEST_CONTEXT: undefined },
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: 600_000 * timeFactor,
    })
    t.diagnostic(stdout)
    if (status !== 0) throw new Error(`it failed there:\n${stdout}`)
  })
  return false
}
