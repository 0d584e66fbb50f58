/** The CLI against the real daemon, on VMs that are made up: each test is something a person does in one sitting. */
import assert from 'node:assert/strict'
import { mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { after, before } from 'node:test'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { type CommandRun, type DormouseOptions, dormouse } from '../harness/dormouse-command.ts'
import { Scratch } from '../harness/scratch.ts'
import { atTerminal } from './cli-terminal.ts'

let scratch: Scratch
let daemon: DaemonProcess

before(async () => {
  scratch = await Scratch.make()
  daemon = await startDaemon({ dir: join(scratch.path, 'd'), driver: 'fake', env: { DORMOUSE_LISTEN: '127.0.0.1:0' } })
  const { path } = await makeBusyboxImage(scratch.path)
  const { code, stdout, stderr } = await run(['image', 'import', path, 'busybox:1'])
  assert.deepEqual([code, stdout], [0, 'docker.io/library/busybox:1\n'], stderr)
})
after(async () => {
  await daemon[Symbol.asyncDispose]()
  await scratch[Symbol.asyncDispose]()
})

const run = (args: readonly string[], options: Partial<DormouseOptions> = {}): Promise<CommandRun> =>
  dormouse(args, { socket: daemon.socket, ...options })
const ok = async (args: readonly string[], options: Partial<DormouseOptions> = {}): Promise<string> => {
  const { code, stdout, stderr } = await run(args, options)
  assert.equal(code, 0, `dormouse ${args.join(' ')}: ${stderr}`)
  return stdout
}
const json = async <T>(args: readonly string[]): Promise<T> => JSON.parse(await ok(args)) as T

test('an instance is made, looked at, used, stopped, started and deleted', async () => {
  assert.equal(await ok(['run', '-d', '--name', 'web', '-m', '512m', '--cpus', '1', '-e', 'A=1', '--tag', 'team=a', 'busybox:1']), 'web\n')
  assert.match(await ok(['ps']), /web +busybox:1 +Running/)
  assert.equal(await ok(['ps', '--names', '--tag', 'team=b']), '')

  const seen = await json<Record<string, unknown>>(['inspect', 'web'])
  assert.deepEqual(
    [seen.name, seen.state, seen.size, seen.vcpus, seen.env, seen.tags],
    ['web', 'Running', '512MB', 1, { A: '1' }, { team: 'a' }],
  )
  assert.equal((await json<unknown[]>(['inspect', 'web', String(seen.id)])).length, 2)

  assert.equal(await ok(['exec', 'web', 'echo', 'hello', '-n']), 'hello -n\n')
  assert.equal(await ok(['exec', '-i', 'web', 'cat'], { input: 'x'.repeat(200_000) }), 'x'.repeat(200_000))
  assert.equal((await run(['exec', 'web', 'exit', '7'])).code, 7)
  const missing = await run(['exec', 'web', 'nosuch'])
  assert.equal(missing.code, 127)
  assert.match(missing.stderr, /^Error: command not found: nosuch\r?\n$/)
  assert.equal((await run(['exec', '--timeout', '200ms', 'web', 'sleep', '60'])).code, 124)

  const stats = await json<{ instance_name: string }[]>(['stats', '--no-stream', '--json', 'web'])
  assert.equal(stats[0]?.instance_name, 'web')
  assert.match(await ok(['df']), /Images[\s\S]*Memory/)

  assert.equal(await ok(['stop', 'web']), 'web\n')
  assert.match(await ok(['wait', 'web']), /^\d+\n$/)
  assert.equal((await run(['exec', 'web', 'true'])).code, 125)
  assert.equal(await ok(['update', 'web', '--name', 'site', '-e', 'B=2', '--tag-rm', 'team', '-m', '1g']), 'site\n')
  const changed = await json<Record<string, unknown>>(['inspect', 'site'])
  assert.deepEqual([changed.env, changed.tags, changed.size], [{ A: '1', B: '2' }, {}, '1GB'])

  assert.equal(await ok(['start', 'site']), 'site\n')
  assert.equal(await ok(['wait', '--state', 'running', 'site']), 'Running\n')
  assert.equal(await ok(['restart', 'site']), 'site\n')
  assert.equal((await run(['rm', 'site'])).code, 4)
  assert.equal(await ok(['rm', '-f', 'site']), 'site\n')
  assert.equal((await run(['inspect', 'site'])).code, 3)
})

test('an instance sleeps, wakes and multiplies', async () => {
  await ok(['run', '-d', '--name', 'sleepy', 'busybox:1'])
  await ok(['run', '-d', '--name', 'drowsy', 'busybox:1'])
  assert.equal(await ok(['standby', 'sleepy', 'drowsy']), 'sleepy\ndrowsy\n')
  assert.match(await ok(['ps', '-a']), /sleepy +busybox:1 +Standby/)
  assert.equal(await ok(['standby', 'sleepy']), 'sleepy\n')
  const asleep = await run(['exec', 'sleepy', 'true'])
  assert.equal(asleep.code, 125)
  assert.match(asleep.stderr, /it is in standby: restore it first/)
  assert.match((await run(['start', 'sleepy'])).stderr, /it is in standby: restore it, or stop it to discard its memory/)
  assert.equal(await ok(['restore', 'sleepy', 'drowsy']), 'sleepy\ndrowsy\n')
  assert.equal(await ok(['exec', 'sleepy', 'echo', 'awake']), 'awake\n')
  assert.equal((await json<{ state: string }>(['standby', '--json', '--compress', 'zstd:3', 'drowsy'])).state, 'Standby')

  assert.equal(await ok(['fork', 'sleepy', 'twin']), 'twin\n')
  assert.equal((await json<{ state: string }>(['fork', '--json', '--to', 'standby', 'sleepy', 'spare'])).state, 'Standby')
  assert.match(await ok(['ps', '-a']), /spare .* Standby[\s\S]*twin .* Running[\s\S]*sleepy .* Running/)
  assert.equal((await run(['fork', 'sleepy', 'twin'])).code, 4)
  assert.equal((await run(['fork', 'sleepy', 'third', '--to', 'nowhere'])).code, 2)
  assert.equal(await ok(['stop', 'drowsy']), 'drowsy\n')
  assert.equal((await run(['restore', 'drowsy'])).code, 4)
  await ok(['rm', '-f', 'sleepy', 'drowsy', 'twin', 'spare'])
})

test('snapshots are kept, gone back to, gone on from and deleted', async () => {
  await ok(['run', '-d', '--name', 'kept', 'busybox:1'])
  const live = (await ok(['snapshot', 'create', '-n', 'first', '-t', 'why=test', 'kept'])).trim()
  assert.match(live, /^[a-z0-9]{24}$/)
  assert.equal((await run(['snapshot', 'create', '-n', 'first', 'kept'])).code, 4)
  await ok(['stop', 'kept'])
  const disk = await json<{ id: string; kind: string }>(['snapshot', 'create', '--json', 'kept'])
  assert.equal(disk.kind, 'Stopped')
  assert.match(await ok(['snapshot', 'ls']), new RegExp(`${disk.id} .* kept +Stopped[\\s\\S]*${live} +first +kept +Standby`))
  assert.equal(await ok(['snapshot', 'ls', '-q', '-t', 'why=test']), `${live}\n`)
  assert.equal(await ok(['snapshot', 'ls', '-q', 'kept']), `${disk.id}\n${live}\n`)

  assert.equal(await ok(['snapshot', 'restore', live]), 'kept\n')
  assert.match(await ok(['ps']), /kept .* Running/)
  const running = await run(['snapshot', 'restore', live])
  assert.equal(running.code, 4)
  assert.match(running.stderr, /it is running: stop it first/)
  await ok(['rm', '-f', 'kept'])
  assert.equal(await ok(['snapshot', 'fork', '--to', 'running', disk.id, 'again']), 'again\n')
  assert.equal(await ok(['snapshot', 'rm', live, disk.id]), `${live}\n${disk.id}\n`)
  assert.equal((await run(['snapshot', 'rm', live])).code, 3)
  assert.equal(await ok(['exec', 'again', 'echo', 'here']), 'here\n')
  await ok(['rm', '-f', 'again'])
})

test('a run in the foreground ends as its workload does, and --rm leaves nothing', async () => {
  const ended = await run(['run', '--rm', 'busybox:1', 'exit', '5'])
  assert.deepEqual([ended.code, ended.stdout], [5, ''])
  assert.equal((await run(['run', '--rm', 'busybox:1', 'missing'])).code, 127)
  const said = await run(['run', '--rm', 'busybox:1', 'echo', 'hello'])
  assert.deepEqual([said.code, said.stdout], [0, 'hello\n'])
  assert.equal(await ok(['ps', '-aq']), '')
})

test('Ctrl-C stops what runs in the foreground', async () => {
  const terminal = atTerminal(['run', '--rm', '--name', 'fg', 'busybox:1', 'forever'], { dir: scratch.path, socket: daemon.socket })
  await ok(['ps'])
  while (!(await ok(['ps', '--names', '--state', 'running'])).includes('fg'));
  terminal.type('\u0003')
  await terminal.until('Stopping fg')
  assert.equal((await terminal.end()).code, 143)
  assert.equal(await ok(['ps', '-aq']), '')
})

test('an interactive run is a session with an end', async () => {
  assert.equal(await ok(['run', '-i', '--rm', 'busybox:1', 'cat'], { input: 'through' }), 'through')
  const kept = await run(['run', '-i', '--name', 'kept', 'busybox:1', 'exit', '3'])
  assert.equal(kept.code, 3)
  assert.match(await ok(['ps', '-a']), /kept .* Stopped/)
  await ok(['rm', 'kept'])
  assert.equal(await ok(['run', '-itd', '--name', 'idle', 'busybox:1']), 'idle\n')
  assert.equal(await ok(['exec', 'idle', 'echo', 'in']), 'in\n')
  await ok(['rm', '-f', 'idle'])
})

test('what cannot be run says why, ends with 125 and leaves nothing', async () => {
  await ok(['run', '-d', '--name', 'taken', 'busybox:1'])
  const conflict = await run(['run', '-d', '--name', 'taken', 'busybox:1'])
  assert.equal(conflict.code, 125)
  assert.match(conflict.stderr, /^Error: .*taken.*\nHint: /)
  const absent = await run(['run', '--pull', 'never', 'nothing:here'])
  assert.equal(absent.code, 125)
  assert.match(absent.stderr, /The image nothing:here is not here\nHint: Pull it: dormouse image pull nothing:here/)
  const name = await run(['run', '-d', '--name', 'No Name', 'busybox:1'])
  assert.equal(name.code, 125)
  assert.equal(await ok(['ps', '-a', '--names']), 'taken\n')
  await ok(['rm', '-f', 'taken'])
})

test('files go in and come out as they were', async () => {
  await ok(['run', '-d', '--name', 'files', 'busybox:1'])
  const source = join(scratch.path, 'source')
  await mkdir(join(source, 'deep/er'), { recursive: true })
  await writeFile(join(source, 'a.json'), '{"a":1}')
  await writeFile(join(source, 'deep/er/big'), 'b'.repeat(300_000))
  await writeFile(join(source, 'run.sh'), '#!/bin/sh\n', { mode: 0o755 })
  await symlink('a.json', join(source, 'link'))
  await symlink('deep', join(source, 'dirlink'))

  const sent = await run(['cp', source, 'files:/data'])
  assert.equal(sent.code, 0, sent.stderr)
  assert.match(sent.stderr, /Left out .*dirlink/)
  assert.match(await ok(['stat', 'files', '/data/run.sh']), /0755 {2}-rwxr-xr-x/)
  assert.equal((await run(['stat', 'files', '/data/none'])).code, 3)

  const back = join(scratch.path, 'back')
  const report = await json<{ files: number; bytes: number }>(['cp', '--json', 'files:/data', back])
  assert.deepEqual(report, { files: 4, bytes: 300_024, skipped: [] })
  assert.deepEqual((await readdir(back)).sort(), ['a.json', 'deep', 'link', 'run.sh'])
  assert.equal(await readFile(join(back, 'a.json'), 'utf8'), '{"a":1}')
  assert.equal((await readFile(join(back, 'deep/er/big'))).length, 300_000)
  assert.equal((await run(['cp', 'files:/data', join(scratch.path, 'no/where')])).code, 3)
  assert.equal((await run(['cp', 'a', 'b'])).code, 2)
  await ok(['rm', '-f', 'files'])
})

test('logs have a beginning, an end and a source', async () => {
  await ok(['run', '-d', '--name', 'talks', 'busybox:1', 'echo', 'said this'])
  await ok(['wait', '--timeout', '20s', 'talks'])
  assert.equal(await ok(['logs', 'talks']), 'said this\n')
  assert.equal(await ok(['logs', '--tail', '0', 'talks']), '')
  assert.match(await ok(['logs', '--source', 'daemon', 'talks']), /instance changed/)
  assert.equal((await run(['logs', '--source', 'nonsense', 'talks'])).code, 2)
  assert.equal((await run(['logs', 'nobody'])).code, 3)
  await ok(['rm', 'talks'])
})

test('images are listed, named again, kept while in use and pruned', async () => {
  const { path } = await makeBusyboxImage(join(scratch.path, 'other'), { cmd: ['/bin/true'] })
  await ok(['image', 'import', '-q', path, 'other:1'])
  assert.equal(await ok(['image', 'tag', 'other:1', 'other:2']), 'docker.io/library/other:2\n')
  assert.match(await ok(['image', 'ls']), /other:2 .*ready/)
  const [image] = await json<{ digest: string }[]>(['image', 'inspect', 'other:1', 'other:2'])
  assert.match(image?.digest ?? '', /^sha256:[0-9a-f]{64}$/)
  await ok(['image', 'rm', 'other:2'])
  assert.equal((await run(['image', 'inspect', 'other:2'])).code, 3)

  await ok(['run', '-d', '--name', 'user', 'busybox:1'])
  assert.equal((await run(['image', 'rm', 'busybox:1'])).code, 4)
  assert.equal((await run(['image', 'prune'])).code, 2)
  assert.match(await ok(['image', 'prune', '--force']), /other:1\n.* freed\n$/)
  assert.equal(await ok(['image', 'ls', '-q']), 'docker.io/library/busybox:1\n')
  await ok(['rm', '-f', 'user'])
})

test('over TCP a token decides', async () => {
  const { token } = await json<{ token: string }>(['token', 'create', '--json', '--scope', 'instance:read', '--ttl', '1h'])
  const port = /"tcp":\{"host":"127\.0\.0\.1","port":(\d+)\}/.exec(await daemon.log())?.[1]
  const host = ['-H', `http://127.0.0.1:${port}`]
  process.env.DORMOUSE_TOKEN = token
  try {
    assert.equal(await ok([...host, 'ps', '-q']), '')
    const refused = await run([...host, 'image', 'ls'])
    assert.equal(refused.code, 6)
    assert.match(refused.stderr, /image:read/)
  } finally {
    delete process.env.DORMOUSE_TOKEN
  }
  assert.equal((await run([...host, 'ps'])).code, 6)
})

test('tokens are listed and revoked, and the audit log tells who did what', async () => {
  const { token, id } = await json<{ token: string; id: string }>([
    'token',
    'create',
    '--json',
    '--subject',
    'ci',
    '--scope',
    'image:delete',
  ])
  assert.match(await ok(['token', 'ls']), new RegExp(`${id} +ci +image:delete`))
  const port = /"tcp":\{"host":"127\.0\.0\.1","port":(\d+)\}/.exec(await daemon.log())?.[1]
  const host = ['-H', `http://127.0.0.1:${port}`]
  process.env.DORMOUSE_TOKEN = token
  try {
    assert.equal((await run([...host, 'image', 'rm', 'no/such'])).code, 3)
    assert.equal((await run([...host, 'image', 'ls'])).code, 6)
    assert.equal(await ok(['token', 'revoke', id]), `${id}\n`)
    assert.equal((await run([...host, 'image', 'rm', 'no/such'])).code, 6)
  } finally {
    delete process.env.DORMOUSE_TOKEN
  }
  assert.match(await ok(['token', 'ls']), /revoked/)
  assert.equal((await run(['token', 'revoke', 'nothing'])).code, 3)
  assert.equal((await run(['token', 'revoke'])).code, 2)
  assert.match(await ok(['token', 'revoke', '--subject', 'ci']), /^0 revoked; none of ci holds any longer\n$/)
  const entries = await json<{ operation: string; result: string; caller: string | null }[]>(['audit', '--json', '-n', '6'])
  assert.deepEqual(
    entries.map(({ operation, result, caller }) => `${operation} ${result} ${caller}`),
    [
      'revokeTokens done host',
      'revokeToken failed host',
      'deleteImage refused null',
      'revokeToken done host',
      'listImages refused ci',
      'deleteImage failed ci',
    ],
  )
  assert.match(await ok(['audit', '--caller', 'ci', '--result', 'refused']), /ci +127\.0\.0\.1 +listImages .*refused 403 forbidden/)
  assert.equal(await ok(['audit', '--target', 'nothing-has-this-name']), 'Nothing that fits is in the audit log\n')
})

test('an image is pushed to a registry, here the daemon’s own, and is there under its new name', async () => {
  const { token } = await json<{ token: string }>([
    'token',
    'create',
    '--json',
    '--scope',
    'image:read',
    '--scope',
    'image:write',
    '--ttl',
    '1h',
  ])
  const port = /"tcp":\{"host":"127\.0\.0\.1","port":(\d+)\}/.exec(await daemon.log())?.[1]
  const target = `127.0.0.1:${port}/team/again:1`
  const login = ['-u', 'anyone', '--password-stdin']
  const { code, stdout, stderr } = await run(['image', 'push', 'busybox:1', target, ...login], { input: `${token}\n` })
  assert.equal(code, 0, stderr)
  assert.match(stdout, new RegExp(`^${target}@sha256:[0-9a-f]{64}\n$`))
  assert.match(stderr, /pushed \(/)
  await ok(['run', '-d', '--name', 'again', '--pull', 'never', 'team/again:1'])
  await ok(['rm', '-f', 'again'])

  const refused = await run(['image', 'push', 'busybox:1', target])
  assert.equal(refused.code, 1)
  assert.match(refused.stderr, /could not be pushed: .* wants credentials/)
  assert.equal((await run(['image', 'push', 'busybox:1', target, '-u', 'anyone'])).code, 2)
  assert.equal((await run(['image', 'push', 'absent:1', target])).code, 3)
  const lines = (await ok(['image', 'push', '--json', 'busybox:1', target, ...login], { input: token })).trim().split('\n')
  assert.equal(JSON.parse(lines.at(-1) ?? '').status, 'pushed')
  await ok(['image', 'rm', 'team/again:1'])
})

test('the daemon’s own verbs are handed over to it', async () => {
  assert.match(await ok(['serve', '--help']), /serve +runs the daemon/)
  assert.ok(Array.isArray(JSON.parse((await run(['doctor', '--json'])).stdout)))
  const { client, daemon: server } = await json<Record<string, { version: string }>>(['version', '--json'])
  assert.deepEqual([client?.version, server?.version], ['0.1.0', '0.1.0'])
})
