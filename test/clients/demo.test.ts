/** `make demo` as a newcomer meets it when something is amiss, and with an image of one's own. The VMs are made up: real ones are in `make demo`. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { type TestContext, test } from 'node:test'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { imageOf, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { processesNaming } from '../harness/processes.ts'
import { scratchDir } from '../harness/scratch.ts'
import { pushFixture, startRegistry } from '../peers/images-registry.ts'

test('an image of one’s own is pulled, run, shown and deleted', async (t) => {
  const registry = await startRegistry(t)
  await pushFixture(registry, 'lib/mine', 'v1', imageOf([tarOf([{ name: 'a', content: 'b' }])], { config: { Cmd: ['echo', 'from mine'] } }))
  const reference = `${registry}/lib/mine:v1`
  const { code, stdout, stderr } = await demo(t, [reference])
  assert.equal(code, 0, stderr)
  assert.match(stdout, new RegExp(`dormouse image pull ${reference} +\\d+ ms$`, 'm'))
  assert.match(stdout, /\nIts log:\nfrom mine\n\ndemo: ok\n$/)
})

test('make hands the image on', async () => {
  const { stdout } = await runCommand(['make', '-s', '-n', '-C', REPOSITORY, 'demo', 'DEMO_IMAGE=example.org/a:1'], {
    step: { signal: AbortSignal.timeout(20_000) },
  })
  assert.match(stdout, /^node scripts\/demo\.ts example\.org\/a:1$/m)
})

test('a registry that refuses is told in its own words, with what to do about that and not about the host', async (t) => {
  const server = createServer((_request, response) => response.writeHead(404, { 'content-type': 'application/json' }).end('{}'))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.after(() => server.close())
  const reference = `127.0.0.1:${(server.address() as AddressInfo).port}/lib/none:v1`
  const { code, stdout, stderr } = await demo(t, [reference])
  assert.deepEqual([code, stdout], [1, ''])
  assert.match(stderr, /\ndemo: failed: 'dormouse image pull .*' ended with 3: Error: The registry 127\.0\.0\.1:\d+ does not have /)
  assert.match(stderr, /\nCheck the name and its tag; [^\n]*\n$/)
})

test('a daemon that does not start ends the demo with its words, and the doctor as the next step', async (t) => {
  const { code, stdout, stderr } = await demo(t, [], { DORMOUSE_MEMORY_RATIO: 'much' })
  assert.deepEqual([code, stdout], [1, ''])
  assert.match(stderr, /\ndemo: failed: The daemon did not start; its log ends with:\n(.*\n)*.*DORMOUSE_MEMORY_RATIO is "much"/)
  assert.match(stderr, /\nSee what this host lacks with: bin\/dormouse doctor\n$/)
})

test('a demo that is ended says so, and leaves nothing behind', async (t) => {
  const server = createServer()
  server.once('request', () => child.kill('SIGTERM'))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.after(() => server.close().closeAllConnections())
  const dir = await scratchDir(t)
  const child = begin(dir, [`127.0.0.1:${(server.address() as AddressInfo).port}/lib/slow:v1`])
  const [stderr, [code]] = await Promise.all([text(child.stderr), once(child, 'exit')])
  assert.equal(code, 1, stderr)
  assert.match(stderr, /\ndemo: failed: Ended by SIGTERM\nEverything it started was ended and removed\.\n$/)
  assert.deepEqual(await processesNaming(dir), [])
})

async function demo(t: TestContext, args: readonly string[], env: Record<string, string> = {}) {
  const dir = await scratchDir(t)
  const child = begin(dir, args, env)
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')])
  assert.deepEqual(await processesNaming(dir), [])
  return { code, stdout, stderr }
}

/** All that it makes is below `dir`. */
function begin(dir: string, args: readonly string[], env: Record<string, string> = {}) {
  // It is no test: how it ends is its own affair.
  const { NODE_TEST_CONTEXT: _, ...own } = process.env
  return spawn(process.execPath, [join(REPOSITORY, 'scripts/demo.ts'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...own, TMPDIR: dir, DORMOUSE_HYPERVISOR: 'fake', ...env },
  })
}
