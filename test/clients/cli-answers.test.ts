/** What the CLI makes of what a daemon answers: exit codes, JSON, hints, streams that break. */
import assert from 'node:assert/strict'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'node:test'
import { dormouse } from '../harness/dormouse-command.ts'
import { scratchDir } from '../harness/scratch.ts'
import { answer, instance, json, startStub } from './cli-stub.ts'

test('no daemon: one sentence, a hint and exit code 5', async (t) => {
  const socket = join(await scratchDir(t), 'none.sock')
  const { code, stdout, stderr } = await dormouse(['ps'], { socket })
  assert.deepEqual([code, stdout], [5, ''])
  assert.match(stderr, new RegExp(`^Error: No daemon answers at unix://${socket}\nHint: Start one with: dormouse serve.*\n$`))
})

test('with --json a failure is JSON too', async (t) => {
  const { socket } = await startStub(t, { 'GET /instances/web': json({ code: 'ambiguous', message: 'Two.', hint: 'Give more.' }, 409) })
  const { code, stderr } = await dormouse(['inspect', '--json', 'web'], { socket })
  assert.equal(code, 4)
  assert.deepEqual(JSON.parse(stderr), { code: 'ambiguous', message: 'Two.', hint: 'Give more.' })
})

test('a wrong command line ends with 2, and with 125 for run and exec', async (t) => {
  const { socket } = await startStub(t, {})
  assert.equal((await dormouse(['ps', '--nonsense'], { socket })).code, 2)
  assert.equal((await dormouse(['nonsense'], { socket })).code, 2)
  assert.equal((await dormouse([], { socket })).code, 2)
  assert.equal((await dormouse(['run', '--nonsense'], { socket })).code, 125)
  assert.equal((await dormouse(['run', '-p', 'x', 'alpine'], { socket })).code, 125)
  assert.equal((await dormouse(['--help'], { socket })).code, 0)
  assert.match((await dormouse(['stop', '--help'], { socket })).stdout, /Usage: dormouse stop/)
  const typo = await dormouse(['stpo'], { socket })
  assert.match(typo.stderr, /Did you mean stop\?/)
})

test('what answers but is no dormouse is said to be none', async (t) => {
  const { socket } = await startStub(t, { 'GET /instances': (_, response) => response.writeHead(502).end('<html>Bad gateway</html>') })
  const { code, stderr } = await dormouse(['ps'], { socket })
  assert.equal(code, 1)
  assert.match(stderr, /502/)
})

test('ps shows what lives, says how many it does not show only to a person, and gives programs the API’s own', async (t) => {
  const list = [instance(), instance({ id: 'b'.repeat(24), name: 'old', state: 'Stopped', exit_code: 3 })]
  const { socket } = await startStub(t, { 'GET /instances': json(list) })
  const table = await dormouse(['ps'], { socket })
  assert.deepEqual([table.stdout.split('\n').length, table.stderr], [3, ''])
  assert.match(table.stdout, /^ID {13}NAME/)
  assert.match((await dormouse(['ps', '-a'], { socket })).stdout, /old .*Stopped {3}exit 3/)
  assert.equal((await dormouse(['ps', '-aq'], { socket })).stdout, `${'abcdefghijklmnopqrstuvwx'}\n${'b'.repeat(24)}\n`)
  assert.deepEqual(JSON.parse((await dormouse(['ps', '-a', '--json'], { socket })).stdout), list)
})

test('filters travel as the API has them', async (t) => {
  const { socket, requests } = await startStub(t, { 'GET /instances': json([]) })
  await dormouse(['ps', '--state', 'running', '--tag', 'team=a b', '--tag', 'x=1'], { socket })
  assert.deepEqual(requests, ['GET /instances?state=Running&tags%5Bteam%5D=a%20b&tags%5Bx%5D=1'])
})

test('several names: each is tried, each failure is said, the first one decides', async (t) => {
  const { socket, requests } = await startStub(t, {
    'POST /instances/a/stop': json({ code: 'invalid_state', message: 'No.' }, 409),
    'POST /instances/c/stop': json(instance({ name: 'c', state: 'Stopped' })),
  })
  const { code, stdout, stderr } = await dormouse(['stop', 'a', 'b', 'c'], { socket })
  assert.deepEqual([code, stdout], [4, 'c\n'])
  assert.match(stderr, /Error: No\.\nError: There is no/)
  assert.equal(requests.length, 3)
})

test('rm refuses what runs and says what to do; with -f a name that is not there is no failure', async (t) => {
  const { socket, requests } = await startStub(t, { 'GET /instances/web': json(instance()) })
  const { code, stderr } = await dormouse(['rm', 'web'], { socket })
  assert.equal(code, 4)
  assert.match(stderr, /web is Running\nHint: .*dormouse rm -f web/)
  assert.equal((await dormouse(['rm', '-f', 'gone'], { socket })).code, 0)
  assert.ok(!requests.some((line) => line.startsWith('DELETE')))
})

test('wait asks again past the API’s own limit, and tells a missed state from a time that is over', async (t) => {
  let asked = 0
  const { socket } = await startStub(t, {
    'GET /instances/web': json(instance({ state: 'Stopped', exit_code: 7 })),
    'GET /instances/abcdefghijklmnopqrstuvwx/wait': (_, response) => {
      asked++
      answer(response, asked === 1 ? { state: 'Running', timed_out: true } : { state: 'Stopped', timed_out: false })
    },
    'GET /instances/abcdefghijklmnopqrstuvwx': json(instance({ state: 'Stopped', exit_code: 7 })),
  })
  const { code, stdout } = await dormouse(['wait', 'web'], { socket })
  assert.deepEqual([code, stdout, asked], [0, '7\n', 2])
  const missed = await dormouse(['wait', '--state', 'running', 'web'], { socket })
  assert.equal(missed.code, 1)
  assert.match(missed.stderr, /web will not become Running by itself; it is Stopped/)
  asked = 0
  const late = await dormouse(['wait', '--timeout', '1ms', 'web'], { socket })
  assert.equal(late.code, 7)
})

test('a long answer comes whole, also to a reader that is slower than the command', async (t) => {
  const lines = 100_000
  const { socket } = await startStub(t, {
    'GET /instances/web/logs': (_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.end('data: ""\n\n'.repeat(lines))
    },
    'GET /instances': json(Array.from({ length: 2000 }, () => instance())),
  })
  assert.equal((await dormouse(['logs', 'web'], { socket })).stdout.length, lines)
  assert.equal((await dormouse(['logs', '--json', 'web'], { socket })).stdout.length, lines * '""\n'.length)
  assert.equal(JSON.parse((await dormouse(['ps', '--json'], { socket })).stdout).length, 2000)
})

test('a log is shown line by line, and a reader that leaves early ends it quietly', async (t) => {
  const { socket } = await startStub(t, {
    'GET /instances/web/logs': (request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.write(': \n\ndata: "one"\n\ndata: "tw')
      response.write('o ü"\n\n')
      if (request.url?.includes('follow')) response.write(`data: ${JSON.stringify('x'.repeat(1000))}\n\n`.repeat(1000))
      else response.end()
    },
  })
  assert.equal((await dormouse(['logs', 'web'], { socket })).stdout, 'one\ntwo ü\n')
  assert.equal((await dormouse(['logs', '--json', 'web'], { socket })).stdout, '"one"\n"two ü"\n')
  const followed = await dormouse(['logs', '-f', 'web'], { socket, enough: (text) => text.includes('two') })
  assert.equal(followed.code, 130)
})

test('exec keeps the two outputs apart, sends what it is given, and ends with the command’s code', async (t) => {
  const { socket } = await startStub(t, {}, (ws) => {
    let input = ''
    ws.on('message', (data: Buffer, isBinary: boolean) => {
      if (isBinary) input += data.toString()
      else if (data.toString() === '{"stdin":"eof"}') {
        ws.send(Buffer.from(`\u0001out:${input}`))
        ws.send(Buffer.from('\u0002err'))
        ws.send(JSON.stringify({ exitCode: 3 }))
        ws.terminate()
      }
    })
  })
  const run = await dormouse(['exec', '-i', 'web', 'cat', '-n'], { socket, input: 'a'.repeat(100_000) })
  assert.deepEqual([run.code, run.stdout, run.stderr], [3, `out:${'a'.repeat(100_000)}`, 'err'])
  const program = await dormouse(['exec', '--json', 'web', 'cat'], { socket })
  assert.deepEqual(JSON.parse(program.stdout), { exit_code: 3, stdout: 'out:', stderr: 'err' })
})

test('a refused upgrade is told as the daemon worded it', async (t) => {
  const { socket } = await startStub(t, {})
  const { code, stderr } = await dormouse(['exec', 'web', 'true'], { socket })
  assert.deepEqual([code, stderr], [125, 'Error: web is Stopped\nHint: Start it\n'])
})

test('what a guest calls its files does not lead out of the target', async (t) => {
  const stub = await startStub(t, {}, (ws) => {
    ws.on('message', () => {
      const header = { type: 'header', mode: 0o644, is_dir: false, size: 2, mtime: 0 }
      ws.send(JSON.stringify({ ...header, path: 'dir', is_dir: true, mode: 0o755 }))
      ws.send(JSON.stringify({ type: 'end', final: false }))
      ws.send(JSON.stringify({ ...header, path: 'dir/../../escaped' }))
      ws.send(Buffer.from('no'))
      ws.send(JSON.stringify({ type: 'end', final: true }))
    })
  })
  const { code, stderr } = await dormouse(['cp', 'web:/dir', join(stub.dir, 'here')], { socket: stub.socket })
  assert.equal(code, 1)
  assert.match(stderr, /The guest sent a name that leads elsewhere: "dir\/\.\.\/\.\.\/escaped"/)
  assert.ok(!(await readdir(stub.dir)).includes('escaped'))
})

test('run pulls what is missing, shows plain lines of progress, and takes over the workload’s exit code', async (t) => {
  let pulled = false
  const image = {
    name: 'docker.io/library/alpine:latest',
    digest: 'sha256:1',
    status: 'ready',
    created_at: '2026-01-01T00:00:00Z',
    size_bytes: 3_500_000,
  }
  const id = 'abcdefghijklmnopqrstuvwx'
  const progress = '/images/docker.io%2Flibrary%2Falpine%3Alatest'
  const bodies: string[] = []
  const { socket, requests } = await startStub(t, {
    'GET /images/alpine': (_, response) => answer(response, pulled ? image : { code: 'not_found', message: 'No.' }, pulled ? 200 : 404),
    'POST /images': json({ ...image, status: 'pending' }, 202),
    [`GET ${progress}/progress`]: (_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      for (const status of ['pulling', 'pulling', 'converting', 'ready']) {
        response.write(`data: ${JSON.stringify({ name: image.name, status, done_bytes: 10, total_bytes: 2048 })}\n\n`)
      }
      pulled = true
      response.end()
    },
    [`GET ${progress}`]: json(image),
    'POST /instances': async (request, response) => {
      for await (const piece of request) bodies.push(String(piece))
      answer(response, instance({ state: 'Initializing' }), 201)
    },
    [`GET /instances/${id}/logs`]: (_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.end('data: "hello"\n\n')
    },
    [`GET /instances/${id}/wait`]: json({ state: 'Stopped', timed_out: false }),
    [`GET /instances/${id}`]: json(instance({ state: 'Stopped', exit_code: 9, exit_message: 'it had enough' })),
    [`DELETE /instances/${id}`]: (_, response) => void response.writeHead(204).end(),
  })
  const run = await dormouse(['run', '--rm', '--name', 'web', '-m', '512m', '-p', '8080:80', '-e', 'A=1', 'alpine', 'echo', '-n', 'hi'], {
    socket,
  })
  assert.deepEqual([run.code, run.stdout], [9, 'hello\n'])
  const lines = ['pulling (2KB)', 'converting (2KB)', 'ready (3.3MB)'].map((text) => `${image.name}: ${text}`)
  assert.equal(run.stderr, `${lines.join('\n')}\nit had enough\n`)
  assert.deepEqual(JSON.parse(bodies.join('')), {
    name: 'web',
    image: 'alpine',
    cmd: ['echo', '-n', 'hi'],
    env: { A: '1' },
    network: { ports: [{ host_port: 8080, guest_port: 80, protocol: 'tcp' }] },
    size: '512m',
  })
  assert.equal(requests.at(-1), `DELETE /instances/${id}?graceful_shutdown=false`)
})

test('a name that was made up and is taken is made up again', async (t) => {
  let tries = 0
  const { socket } = await startStub(t, {
    'GET /images/alpine': json({ name: 'alpine', digest: 'sha256:1', status: 'ready', created_at: '2026-01-01T00:00:00Z' }),
    'POST /instances': (_, response) => {
      tries++
      if (tries < 3) answer(response, { code: 'name_conflict', message: 'Taken.' }, 409)
      else answer(response, instance(), 201)
    },
  })
  const { code, stdout } = await dormouse(['run', '-d', 'alpine'], { socket })
  assert.deepEqual([code, stdout, tries], [0, 'web\n', 3])
  tries = 0
  assert.equal((await dormouse(['run', '-d', '--name', 'mine', 'alpine'], { socket })).code, 125)
})

test('an archive is sent as it is, and its progress is told', async (t) => {
  const image = { name: 'mine:1', digest: 'sha256:1', status: 'ready', created_at: '2026-01-01T00:00:00Z' }
  let received = 0
  const stub = await startStub(t, {
    'POST /images/import': async (request, response) => {
      for await (const piece of request) received += (piece as Buffer).length
      answer(response, image, 202)
    },
  })
  const file = join(stub.dir, 'image.tar')
  await writeFile(file, Buffer.alloc(300_000))
  const { code, stdout, stderr } = await dormouse(['image', 'import', file, 'mine:1'], { socket: stub.socket })
  assert.deepEqual([code, stdout, received], [0, 'mine:1\n', 300_000])
  assert.match(stderr, /sending \(293KB\)\n.*converting/)
  assert.equal(stub.requests[0], 'POST /images/import?name=mine%3A1')
  assert.match((await dormouse(['image', 'import', stub.dir], { socket: stub.socket })).stderr, /is no OCI layout/)
})

test('a tar of files comes on standard output', async (t) => {
  const { socket, dir } = await startStub(t, {}, (ws) => {
    ws.on('message', () => {
      ws.send(JSON.stringify({ type: 'header', path: 'hosts', mode: 0o644, is_dir: false, size: 5, mtime: 0 }))
      ws.send(Buffer.from('hello'))
      ws.send(JSON.stringify({ type: 'end', final: true }))
    })
  })
  const { stdout } = await dormouse(['cp', 'web:/etc/hosts', '-'], { socket })
  assert.equal(stdout.length, 2048)
  assert.match(stdout, /^hosts\0/)
  await dormouse(['cp', 'web:/etc/hosts', join(dir, 'copied')], { socket })
  assert.equal(await readFile(join(dir, 'copied'), 'utf8'), 'hello')
})

test('a schedule is set in days and counts, shown as facts, and removed by name', async (t) => {
  const heard: string[] = []
  const schedule = {
    instance_id: 'abcdefghijklmnopqrstuvwx',
    interval: '1h0m0s',
    retention: { max_count: 24, max_age: '168h0m0s' },
    name_prefix: 'nightly',
    metadata: { team: 'a' },
    next_run_at: '2126-01-01T00:00:00Z',
    last_run_at: '2026-01-01T00:00:00Z',
    last_snapshot_id: null,
    last_error: 'web was Unknown\u001b[2J',
    created_at: '2026-01-01T00:00:00Z',
    updated_at: '2026-01-01T00:00:00Z',
  }
  const { socket, requests } = await startStub(t, {
    'PUT /instances/web/snapshot-schedule': async (request, response) => {
      heard.push(Buffer.concat(await request.toArray()).toString())
      answer(response, schedule)
    },
    'GET /instances/web/snapshot-schedule': json(schedule),
    'DELETE /instances/web/snapshot-schedule': (_, response) => response.writeHead(204).end(),
  })
  const set = ['schedule', 'set', 'web', '--every', '1h', '--keep', '24', '--max-age', '7d', '--prefix', 'nightly', '--tag', 'team=a']
  const { code, stdout, stderr } = await dormouse(set, { socket })
  assert.deepEqual([code, stdout, stderr], [0, 'web\n', ''])
  assert.deepEqual(JSON.parse(heard[0] ?? ''), {
    interval: '1h0m0s',
    retention: { max_count: 24, max_age: '168h0m0s' },
    name_prefix: 'nightly',
    metadata: { team: 'a' },
  })
  const shown = (await dormouse(['schedule', 'show', 'web'], { socket })).stdout
  assert.match(shown, /^Instance +web\nEvery +1h0m0s\nKeeps +the newest 24, none older than 168h0m0s\nPrefix +nightly\nTags +team=a\n/)
  assert.match(shown, /Last error +web was Unknown\\x1b\[2J\n$/)
  assert.deepEqual(JSON.parse((await dormouse(['schedule', 'show', 'web', '--json'], { socket })).stdout), schedule)
  assert.equal((await dormouse(['schedule', 'rm', 'web'], { socket })).stdout, 'web\n')
  assert.equal((await dormouse(['schedule', 'rm', 'other'], { socket })).code, 3)

  const before = requests.length
  for (const wrong of [
    ['--keep', '3'],
    ['--every', '1h'],
    ['--every', 'soon', '--keep', '3'],
    ['--every', '1h', '--keep', '0'],
  ])
    assert.equal((await dormouse(['schedule', 'set', 'web', ...wrong], { socket })).code, 2, wrong.join(' '))
  assert.equal(requests.length, before)
  assert.match((await dormouse(['completion', 'bash'], { socket })).stdout, /"\$verb" = schedule .*\n.*"set show rm"/)
})

test('an instance that is to sleep by itself is told so, shown as facts, held, and told no more', async (t) => {
  const heard: unknown[] = []
  const status = {
    ...{ supported: true, configured: true, enabled: true, eligible: true, status: 'idle_countdown', reason: 'idle_timeout_not_elapsed' },
    ...{ active_inbound_connections: 0, tracking_mode: 'made up', idle_timeout: '10m0s', idle_since: '2026-01-01T00:00:00Z' },
    ...{ last_inbound_activity_at: null, next_standby_at: '2126-01-01T00:00:00Z', hold_until: null, countdown_remaining: '1s' },
    last_error: 'full\u001b[2J',
  }
  const { socket, requests } = await startStub(t, {
    'PATCH /instances/web': async (request, response) => {
      heard.push(JSON.parse(Buffer.concat(await request.toArray()).toString()))
      answer(response, { id: 'abcdefghijklmnopqrstuvwx', name: 'web' })
    },
    'GET /instances/web/auto-standby/status': json(status),
    'POST /instances/web/auto-standby/hold': json({ ...status, hold_until: '2126-01-01T00:00:00Z' }),
  })
  const set = [
    'auto-standby',
    'set',
    'web',
    '--after',
    '10m',
    '--ignore-source',
    '10.0.0.0/8',
    '--ignore-port',
    '22',
    '--ignore-port',
    '80',
  ]
  const { code, stdout, stderr } = await dormouse(set, { socket })
  assert.deepEqual([code, stdout, stderr], [0, 'web\n', ''])
  assert.equal((await dormouse(['auto-standby', 'off', 'web'], { socket })).stdout, 'web\n')
  assert.deepEqual(heard, [
    {
      auto_standby: { enabled: true, idle_timeout: '10m0s', ignore_source_cidrs: ['10.0.0.0/8'], ignore_destination_ports: [22, 80] },
    },
    { auto_standby: { enabled: false } },
  ])
  const shown = (await dormouse(['auto-standby', 'show', 'web'], { socket })).stdout
  assert.match(
    shown,
    /^Instance +web\nStatus +idle_countdown \(idle_timeout_not_elapsed\)\nSleeps after +10m0s\nConnections +0\nIdle since /,
  )
  assert.match(shown, /Last error +full\\x1b\[2J\n$/)
  assert.deepEqual(JSON.parse((await dormouse(['auto-standby', 'show', 'web', '--json'], { socket })).stdout), status)
  assert.equal((await dormouse(['auto-standby', 'hold', 'web'], { socket })).stdout, 'web\n')
  const held = await dormouse(['auto-standby', 'hold', 'web', '--json'], { socket })
  assert.equal(JSON.parse(held.stdout).hold_until, '2126-01-01T00:00:00Z')

  const before = requests.length
  for (const wrong of [[], ['--after', 'soon'], ['--after', '1m', '--ignore-port', 'ssh']])
    assert.equal((await dormouse(['auto-standby', 'set', 'web', ...wrong], { socket })).code, 2, wrong.join(' '))
  assert.equal(requests.length, before)
  assert.match((await dormouse(['completion', 'bash'], { socket })).stdout, /"\$verb" = auto-standby .*\n.*"set show hold off"/)
})
