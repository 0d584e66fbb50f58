/** Our own SDK, as a program in Node uses it: over TCP, with what Node has built in, against a whole daemon whose VMs are made up. */
import assert from 'node:assert/strict'
import { appendFileSync, renameSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { type AppError, Dormouse } from '@dormouse/api/dormouse.ts'
import type { Event } from '@dormouse/api/events.ts'
import WebSocket from 'ws'
import { FAKE_IMAGE, type FakeDaemon, startFakeDaemon } from '../harness/fake-daemon.ts'

describe('the SDK', { timeout: 120_000 }, () => {
  let house: FakeDaemon
  let dormouse: Dormouse

  before(async () => {
    house = await startFakeDaemon()
    dormouse = new Dormouse({ baseUrl: house.url, token: house.token })
  })
  after(() => house[Symbol.asyncDispose]())

  async function running(name: string, more: object = {}): Promise<string> {
    const { id } = await dormouse.call('createInstance', { body: { name, image: FAKE_IMAGE, size: '512MB', vcpus: 1, ...more } })
    await dormouse.waitFor(id, 'Running')
    return id
  }

  test('an instance is made, waited for, looked at and deleted', async () => {
    const { id, name } = await dormouse.call('createInstance', { body: { name: 'life', image: FAKE_IMAGE, size: '512MB', vcpus: 1 } })
    const instance = await dormouse.waitFor(id, 'Running')
    assert.deepEqual([instance.id, instance.name, instance.state], [id, name, 'Running'])
    await dormouse.call('deleteInstance', { params: { id } })
    await assert.rejects(dormouse.call('getInstance', { params: { id } }), (error: AppError) => {
      assert.deepEqual([error.code, error.detail?.status], ['not_found', 404])
      return true
    })
  })

  test('a wait for what cannot come says why, and one that takes too long gives up', async () => {
    const id = await running('waited')
    await assert.rejects(dormouse.waitFor(id, 'Standby', { timeoutMs: 20 }), { code: 'timed_out' })
    await dormouse.call('stopInstance', { params: { id }, body: {} })
    await assert.rejects(dormouse.waitFor(id, 'Running'), { code: 'invalid_state', message: /waited|Stopped/ })
    await assert.rejects(dormouse.waitFor(id, 'Running', { signal: AbortSignal.abort(new Error('enough')) }), /enough/)
    await dormouse.call('deleteInstance', { params: { id } })
  })

  test('a list comes whole, page by page', async () => {
    for (const name of ['a', 'b', 'c']) await running(name)
    const items = await Array.fromAsync(dormouse.items('listInstances', { query: { limit: 2 } }))
    assert.deepEqual(
      items.map(({ name }) => name),
      ['c', 'b', 'a'],
    )
    for (const { id } of items) await dormouse.call('deleteInstance', { params: { id } })
  })

  test('a command runs: its outputs, its exit code, its input', async () => {
    const id = await running('commanded')
    assert.deepEqual(await dormouse.run(id, ['echo', 'hello', 'there']), {
      exitCode: 0,
      message: 'exited',
      stdout: 'hello there\n',
      stderr: '',
    })
    assert.equal((await dormouse.run(id, ['false'])).exitCode, 1)
    const absent = await dormouse.run(id, ['absent'])
    assert.equal(absent.exitCode, 127)
    assert.match(absent.stderr, /command not found/)
    const input = 'ä€😀'.repeat(100_000)
    assert.equal((await dormouse.run(id, ['cat'], { input })).stdout, input)
  })

  test('a command is held: written to, resized, signalled, hung up', async () => {
    using cat = await dormouse.exec('commanded', ['cat'], { tty: true, rows: 10, cols: 20 })
    await cat.write('one\n')
    const { value } = await cat.stdout[Symbol.asyncIterator]().next()
    assert.equal(new TextDecoder().decode(value as Uint8Array), 'one\n')
    cat.resize(24, 80)
    cat.signal('SIGTERM')
    assert.equal((await cat.exit).exitCode, 143)

    const end = new AbortController()
    const sleeper = await dormouse.exec('commanded', ['sleep', '1000'], { signal: end.signal })
    end.abort(new Error('enough'))
    await assert.rejects(sleeper.exit, /enough/)
    await assert.rejects(Array.fromAsync(sleeper.stdout), /enough/)
    assert.equal((await dormouse.run('commanded', ['sleep', '1000'], { timeoutMs: 50 })).exitCode, 124)
  })

  test('who reads slowly holds the command back, and nothing fills his memory', async () => {
    using cat = await dormouse.exec('commanded', ['cat'])
    const total = 16 * 1024 * 1024
    let written = 0
    const writing = (async () => {
      const piece = new Uint8Array(64 * 1024).fill(0x78)
      for (; written < total; written += piece.length) await cat.write(piece)
      cat.endInput()
    })()
    // Until no more is taken while others are answered: windows, sockets, and nothing else.
    for (let before = -1; before !== written; ) {
      before = written
      for (let n = 0; n < 50; n++) await dormouse.run('commanded', ['true'])
    }
    assert.ok(written < total, 'the command was not held back')
    let got = 0
    for await (const chunk of cat.stdout) got += chunk.length
    await writing
    assert.equal(got, total)
    assert.equal((await cat.exit).exitCode, 0)
  })

  test('what is refused before the upgrade is told with its reason, by any WebSocket', async () => {
    const byPackage = new Dormouse({
      baseUrl: house.url,
      token: house.token,
      webSocket: (url, headers) => new WebSocket(url, { headers }) as never,
    })
    for (const client of [dormouse, byPackage]) {
      await assert.rejects(client.exec('nobody', ['true']), { code: 'not_found' })
      await assert.rejects(client.readFile('nobody', '/a'), { code: 'not_found' })
    }
    await assert.rejects(new Dormouse({ baseUrl: house.url, token: 'x' }).exec('commanded', ['true']), { code: 'unauthorized' })
    await dormouse.call('standbyInstance', { params: { id: 'commanded' }, body: {} })
    await assert.rejects(dormouse.exec('commanded', ['true']), { code: 'invalid_state' })
    await dormouse.call('restoreInstance', { params: { id: 'commanded' } })
    assert.equal((await byPackage.run('commanded', ['echo', 'x'])).stdout, 'x\n')
  })

  test('files go in and come out, whole and entry by entry', async () => {
    const id = await running('filed')
    const bytes = new Uint8Array(3_000_000).map((_, n) => n % 251)
    assert.equal(await dormouse.copyTo(id, '/data/bytes', bytes, { mode: 0o600 }), bytes.length)
    assert.deepEqual(await dormouse.readFile(id, '/data/bytes'), bytes)
    await dormouse.makeDirectory(id, '/data/empty')
    for (const text of ['{"a":1}', '[]', '', '"text"', '{']) {
      await dormouse.copyTo(id, '/data/like-a-message', text)
      assert.equal(new TextDecoder().decode(await dormouse.readFile(id, '/data/like-a-message')), text)
    }
    const found: Record<string, string> = {}
    for await (const { path, kind, mode, size } of dormouse.copyFrom(id, '/data')) found[path] = `${kind} ${mode.toString(8)} ${size}`
    assert.deepEqual(found, {
      data: 'directory 755 0',
      'data/bytes': 'file 600 3000000',
      'data/empty': 'directory 755 0',
      'data/like-a-message': 'file 644 1',
    })
    await assert.rejects(dormouse.readFile(id, '/absent'), { code: 'path_not_found' })
    await assert.rejects(dormouse.readFile(id, '/data'), { code: 'invalid_path' })
    await assert.rejects(dormouse.copyTo(id, '/data', 'x'), (error: AppError) => error.code !== 'internal_error')
    // Whoever leaves in the middle hangs up.
    for await (const entry of dormouse.copyFrom(id, '/data')) if (entry.kind === 'file') break
  })

  test('a log is followed over a restart of the daemon, each line once', async () => {
    const id = await running('logged')
    const path = house.daemon.paths.instanceLogs(id as never).app
    const end = new AbortController()
    const lines: string[] = []
    const next: Record<string, () => unknown> = {
      one: () => appendFileSync(path, 'two\n'),
      two: async () => {
        await house.restart()
        appendFileSync(path, 'three\n')
        renameSync(path, `${path}.1`)
        appendFileSync(path, 'four\n')
      },
      four: () => end.abort(),
    }
    appendFileSync(path, 'zero\none\n')
    await assert.rejects(async () => {
      for await (const line of dormouse.logs(id, { tail: 1, signal: end.signal })) {
        lines.push(line)
        void next[line]?.()
      }
    }, /abort/i)
    assert.deepEqual(lines, ['one', 'two', 'three', 'four'])
  })

  test('a log ends when the instance has come to rest, or is gone', async () => {
    const { id } = await dormouse.call('createInstance', {
      body: { name: 'speaking', image: FAKE_IMAGE, size: '512MB', vcpus: 1, cmd: ['echo', 'hello'] },
    })
    assert.deepEqual(await Array.fromAsync(dormouse.logs(id, { untilStopped: true })), ['hello'])
    const followed = Array.fromAsync(dormouse.logs(id))
    await dormouse.call('deleteInstance', { params: { id } })
    await followed
  })

  test('events are followed over a restart of the daemon, each once', async () => {
    const end = new AbortController()
    const events: Event[] = []
    const opened = Promise.withResolvers<void>()
    const client = new Dormouse({
      baseUrl: house.url,
      token: house.token,
      fetch: async (url, init) => {
        const answer = await fetch(url, init as RequestInit)
        opened.resolve()
        return answer as never
      },
    })
    const following = (async () => {
      for await (const event of client.events({ signal: end.signal })) {
        events.push(event)
        if (events.some(({ kind, subject }) => kind.endsWith('deleted') && subject === second)) end.abort()
      }
    })()
    const ended = assert.rejects(following, /abort/i)
    await opened.promise
    const first = await running('first')
    await house.restart()
    const second = await running('second')
    for (const id of [first, second]) await dormouse.call('deleteInstance', { params: { id } })
    await ended
    const ids = events.map(({ id }) => id)
    assert.deepEqual(
      ids,
      [...new Set(ids)].sort((a, b) => a - b),
    )
    for (const subject of [first, second])
      assert.ok(
        events.some((event) => event.subject === subject && event.kind.endsWith('created')),
        subject,
      )
  })

  test('an image is waited for', async () => {
    assert.equal((await dormouse.waitForImage(FAKE_IMAGE)).status, 'ready')
    await assert.rejects(dormouse.waitForImage('absent'), { code: 'not_found' })
  })
})
