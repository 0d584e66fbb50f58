/** What examples/ holds runs as it says, against a daemon whose VMs are made up. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { FAKE_IMAGE, type FakeDaemon, startFakeDaemon } from '../harness/fake-daemon.ts'

const EXAMPLES = join(REPOSITORY, 'examples')

describe('the examples', { timeout: 120_000 }, () => {
  let house: FakeDaemon
  const run: string[] = []

  before(async () => {
    house = await startFakeDaemon()
    await house.client.post('/instances?wait=running', { name: 'web', image: FAKE_IMAGE, size: '256MB', vcpus: 1 })
  })
  after(() => house[Symbol.asyncDispose]())

  async function example(name: string, ...args: string[]): Promise<string> {
    run.push(name)
    const env = { PATH: process.env.PATH, DORMOUSE_URL: house.url, DORMOUSE_TOKEN: house.token }
    const { stdout } = await promisify(execFile)(process.execPath, [join(EXAMPLES, name), ...args], { env, timeout: 60_000 })
    return stdout
  }

  test('run a command', async () => {
    assert.match(await example('run-a-command.ts', FAKE_IMAGE), /^example-\w+: hello from inside \(exit code 0\)\n$/)
  })

  test('talk to a program', async () => {
    assert.equal(await example('talk-to-a-program.ts', 'web'), 'one, two, three\nexit code 0\n')
  })

  test('copy files', async () => {
    assert.equal(
      await example('copy-files.ts', 'web'),
      ['directory example 0', 'file example/greeting.json 17', '{"hello":"world"}', 'path_not_found', ''].join('\n'),
    )
  })

  test('sleep and multiply', async () => {
    assert.equal(
      await example('sleep-and-multiply.ts', 'web'),
      'asleep: Standby\nawake: Running\nweb-left: web-left\nweb-right: web-right\n',
    )
  })

  test('follow', async () => {
    await house.client.post('/instances', { name: 'speaking', image: FAKE_IMAGE, size: '256MB', vcpus: 1, cmd: ['echo', 'hello', 'there'] })
    const lines = (await example('follow.ts', 'speaking')).trim().split('\n')
    assert.ok(lines.includes('> hello there'), lines.join())
  })

  test('over the unix socket', async () => {
    assert.equal(await example('over-the-unix-socket.ts', house.socket), 'speaking: Stopped\nweb: Running\nweb\n')
  })

  test('there are no others', async () => {
    assert.deepEqual((await readdir(EXAMPLES)).sort(), run.sort())
  })
})
