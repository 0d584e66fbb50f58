/** The SDK against a real guest: what only a kernel can show. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import type { Dormouse } from '@dormouse/api/dormouse.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, REPOSITORY, startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { Scratch } from '../harness/scratch.ts'
import { sdkOver } from '../harness/sdk-over-socket.ts'
import { timeFactor } from '../harness/slow-host.ts'

let scratch: Scratch
let daemon: DaemonProcess
let dormouse: Dormouse

before(async () => {
  scratch = await Scratch.make()
  daemon = await startDaemon({ dir: join(scratch.path, 'd'), driver: 'qemu' })
  dormouse = sdkOver(daemon.socket)
  const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
  await importImage(daemon, image.path, 'box')
  const { id } = await dormouse.call('createInstance', {
    body: { name: 'guest', image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' },
  })
  await dormouse.waitFor(id, 'Running')
})
after(async () => {
  await daemon?.stop()
  await endProcessesNaming(join(scratch.path, 'd'))
  await scratch[Symbol.asyncDispose]()
})

const sh = async (script: string): Promise<string> => {
  const { exitCode, stdout, stderr } = await dormouse.run('guest', ['/bin/sh', '-c', script])
  assert.equal(exitCode, 0, stderr)
  return stdout.trim()
}
const limit = () => ({ signal: AbortSignal.timeout(60_000) })

test('outputs come apart, input has an end, and the exit code is the program’s', { timeout: 120_000 }, async () => {
  const script = 'echo out; echo err >&2; cat; exit 3'
  assert.deepEqual(await dormouse.run('guest', ['/bin/sh', '-c', script], { input: 'in\n', env: { A: 'b' }, cwd: '/tmp' }), {
    exitCode: 3,
    message: 'exited with code 3',
    stdout: 'out\nin\n',
    stderr: 'err\n',
  })
})

test('a signal reaches the program, a window its terminal', { timeout: 120_000 }, async () => {
  using trap = await dormouse.exec('guest', ['/bin/sh', '-c', 'trap "exit 9" USR1; echo ready; while :; do sleep 0.05; done'])
  for await (const _ of trap.stdout) {
    trap.signal('SIGUSR1')
    break
  }
  assert.equal((await trap.exit).exitCode, 9)

  using terminal = await dormouse.exec('guest', ['/bin/sh', '-c', 'stty -echo; echo ready; read go; stty size'], {
    tty: true,
    rows: 11,
    cols: 22,
  })
  let text = ''
  for await (const chunk of terminal.stdout) {
    text += new TextDecoder().decode(chunk)
    if (text.trim() !== 'ready') continue
    terminal.resize(33, 44)
    await terminal.write('\n')
  }
  assert.deepEqual(text.split(/\s+/).filter(Boolean), ['ready', '33', '44'])
})

test('a program whose output no one reads stands still in its guest, goes on when it is read, and ends when the caller hangs up', {
  timeout: 180_000,
}, async () => {
  const zeros = await dormouse.exec('guest', ['/bin/sh', '-c', 'echo $$; exec cat /dev/zero'])
  const output = zeros.stdout[Symbol.asyncIterator]()
  const first = await output.next()
  const pid = /^\d+/.exec(new TextDecoder().decode(first.value as Uint8Array))?.[0]
  assert.ok(pid)
  const written = async (): Promise<number> => Number(/^wchar: (\d+)/m.exec(await sh(`cat /proc/${pid}/io`))?.[1])
  const looks: number[] = []
  const stands = async (): Promise<boolean> => {
    looks.push(await written())
    return looks.length > 5 && new Set(looks.slice(-5)).size === 1
  }
  await pollUntil('the program to stand still', stands, limit())
  const stood = looks.at(-1) ?? 0
  // Windows and sockets on the way; of a program that writes without end that is all.
  assert.ok(stood < 4 << 20, `${stood} bytes were written`)

  for (let got = 0; got < stood + (1 << 20); ) got += ((await output.next()).value as Uint8Array).length
  assert.ok((await written()) > stood)
  zeros.close()
  await pollUntil(
    'the program to be gone',
    async () => (await sh(`kill -0 ${pid} 2>/dev/null && echo there || echo gone`)) === 'gone',
    limit(),
  )
})

test('files go in and come out again, byte for byte', { timeout: 120_000 }, async () => {
  const bytes = randomBytes(3_000_000)
  assert.equal(await dormouse.copyTo('guest', '/tmp/tree/bytes', bytes, { mode: 0o640 }), bytes.length)
  await sh('ln -s bytes /tmp/tree/link; mkdir /tmp/tree/empty')
  const found: string[] = []
  for await (const { path, kind, mode, linkTarget } of dormouse.copyFrom('guest', '/tmp/tree')) {
    found.push(`${path} ${kind} ${kind === 'link' ? linkTarget : mode.toString(8)}`)
  }
  assert.deepEqual(found.sort(), ['tree directory 755', 'tree/bytes file 640', 'tree/empty directory 755', 'tree/link link bytes'])
  assert.ok(bytes.equals(await dormouse.readFile('guest', '/tmp/tree/link')))
})

test('an example runs against it', { timeout: 120_000 }, async () => {
  const example = join(REPOSITORY, 'examples/over-the-unix-socket.ts')
  const { stdout } = await promisify(execFile)(process.execPath, [example, daemon.socket], { timeout: 60_000 * timeFactor })
  assert.equal(stdout, 'guest: Running\nguest\n')
})
