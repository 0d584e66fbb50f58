/** The shim on its own, with shell scripts for VMMs: what it drains, keeps, hands over and survives. */
import assert from 'node:assert/strict'
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, readdir, readFile, readlink, rename, stat, writeFile } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { isAlive, signalProcess } from '../../packages/daemon/src/host/process-identity.ts'
import { findShims } from '../../packages/daemon/src/hypervisors/find-shims.ts'
import { readExit, Shim, type ShimPlan } from '../../packages/daemon/src/hypervisors/shim.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'

const isRoot = process.geteuid?.() === 0
const user = isRoot ? { user: { uid: 654321, gid: 654321 } } : {}

async function planFor(
  t: TestContext,
  script: string,
  changes: Partial<ShimPlan> & { maxBytes?: number } = {},
): Promise<ShimPlan & { dir: string }> {
  const dir = await scratchDir(t)
  const runDir = join(dir, 'run')
  await mkdir(runDir, { mode: 0o700 })
  const { maxBytes = 1 << 20, ...rest } = changes
  return {
    dir,
    shimPath: artefacts.shimPath,
    runDir,
    ...user,
    logs: [
      { name: 'app', file: join(dir, 'app.log'), maxBytes },
      { name: 'vmm', file: join(dir, 'vmm.log'), maxBytes },
      { name: 'journal', file: join(dir, 'journal'), maxBytes, isCapped: true },
    ],
    isolateNetwork: true,
    vmm: {
      argv: ['bash', '-c', script],
      descriptors: [
        { number: 12, kind: 'log', name: 'app' },
        { number: 13, kind: 'log', name: 'journal' },
      ],
    },
    ...rest,
  }
}

async function launched(t: TestContext, plan: ShimPlan): Promise<Shim> {
  const shim = await Shim.launch(plan, makeStep(20_000))
  t.after(async () => {
    await shim.kill()
    shim[Symbol.dispose]()
  })
  return shim
}

const statusOf = async (pid: number, field: string): Promise<string> =>
  new RegExp(`^${field}:[ \\t]*(.*)$`, 'm').exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1] ?? ''

test('an exit is recorded with its code, and everything written before it is in the logs', async (t) => {
  const plan = await planFor(t, 'sleep 0.1; echo out; echo err >&2; echo app >&12; echo fact >&13; exit 7')
  const shim = await launched(t, plan)
  const exit = await shim.ended
  assert.ok(exit.kind === 'exited' && exit.code === 7)
  assert.deepEqual(await readExit(plan.runDir), exit)
  assert.equal(await readFile(join(plan.dir, 'vmm.log'), 'utf8'), 'out\nerr\n')
  assert.equal(await readFile(join(plan.dir, 'app.log'), 'utf8'), 'app\n')
  assert.equal(await readFile(join(plan.dir, 'journal'), 'utf8'), 'fact\n')
})

test('a VMM runs as its own user, without groups, capabilities or a way to gain any', async (t) => {
  if (!isRoot) return t.skip('only root can become another user')
  const shim = await launched(t, await planFor(t, 'sleep 60'))
  const of = (field: string): Promise<string> => statusOf(shim.vmm.pid, field)
  assert.equal(await of('Uid'), '654321\t654321\t654321\t654321')
  assert.equal(await of('Gid'), '654321\t654321\t654321\t654321')
  assert.equal(await of('Groups'), '')
  assert.equal(await of('NoNewPrivs'), '1')
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']) assert.equal(await of(set), '0000000000000000')
  // It has no network but what the helper gives it.
  assert.notEqual(await readlink(`/proc/${shim.vmm.pid}/ns/net`), await readlink('/proc/self/ns/net'))
})

test('a VMM may lock as much memory as it is said to need, and its shim no more than before', async (t) => {
  const lockedOf = async (pid: number): Promise<string | undefined> =>
    /^Max locked memory +(\d+|unlimited) +(\d+|unlimited)/m
      .exec(await readFile(`/proc/${pid}/limits`, 'utf8'))
      ?.slice(1)
      .join(' ')
  const plain = await launched(t, await planFor(t, 'sleep 60'))
  // More than it has is for root to allow; less is for anyone.
  const limited = await launched(t, await planFor(t, 'sleep 60', { lockedBytes: 2 ** 22 }))
  assert.equal(await lockedOf(limited.vmm.pid), `${2 ** 22} ${2 ** 22}`)
  assert.equal(await lockedOf(limited.identity.pid), await lockedOf(process.pid))
  assert.equal(await lockedOf(plain.vmm.pid), await lockedOf(process.pid))
})

test('a VMM has the descriptors that are named and no others', async (t) => {
  const plan = await planFor(t, 'ls -l /proc/self/fd >&2; cat <&20 >&12; exec sleep 60')
  const file = join(plan.dir, 'disk')
  await writeFile(file, 'content of the disk', { mode: 0o600 })
  const descriptors = [...plan.vmm.descriptors, { number: 20, kind: 'read', file } as const]
  await launched(t, { ...plan, vmm: { ...plan.vmm, descriptors } })
  // Opened by the shim: the VMM's user could not have.
  await pollUntil('the disk', async () => (await readFile(join(plan.dir, 'app.log'), 'utf8')) === 'content of the disk', makeStep(5000))
  const numbers = [...(await readFile(join(plan.dir, 'vmm.log'), 'utf8')).matchAll(/ (\d+) -> (\S+)/g)].map(([, number]) => Number(number))
  // 3 is the directory that ls reads.
  assert.deepEqual(
    numbers.sort((a, b) => a - b),
    [0, 1, 2, 3, 12, 13, 20],
  )
})

test('a flood is kept within its limits, and the VMM does not wait for anyone', async (t) => {
  const plan = await planFor(t, 'sleep 0.1; yes 0123456789abcdef | head -c 8000000 >&12; yes fact | head -c 1000000 >&13; exit 0', {
    maxBytes: 100_000,
  })
  const shim = await launched(t, plan)
  assert.equal((await shim.ended).kind, 'exited')
  const size = async (name: string): Promise<number> => (await stat(join(plan.dir, name))).size
  assert.ok((await size('app.log')) <= 100_000)
  assert.ok((await size('app.log.1')) <= 100_000)
  assert.equal(await size('journal'), 100_000)
  // Rotated between lines, and nothing of the newest is missing.
  const text = (await readFile(join(plan.dir, 'app.log.1'), 'utf8')) + (await readFile(join(plan.dir, 'app.log'), 'utf8'))
  const lines = text.trimEnd().split('\n')
  assert.ok(lines.slice(0, -1).every((line) => line === '0123456789abcdef'))
})

test('a log goes on where it was, a journal begins anew', async (t) => {
  const plan = await planFor(t, 'sleep 0.1; echo two >&12; echo two >&13')
  await writeFile(join(plan.dir, 'app.log'), 'one\n')
  await writeFile(join(plan.dir, 'journal'), 'one\n')
  await (await launched(t, plan)).ended
  assert.equal(await readFile(join(plan.dir, 'app.log'), 'utf8'), 'one\ntwo\n')
  assert.equal(await readFile(join(plan.dir, 'journal'), 'utf8'), 'two\n')
})

test('a shim that is killed takes its VMM with it, and that counts as lost', async (t) => {
  const plan = await planFor(t, 'exec sleep 60')
  const shim = await launched(t, plan)
  signalProcess(shim.identity, 'SIGKILL')
  assert.equal((await shim.ended).kind, 'lost')
  await pollUntil('the VMM to die', () => !isAlive(shim.vmm), makeStep(5000))
  assert.equal(await readExit(plan.runDir), undefined)
})

test('a shim and its VMM outlive the process that started them, and are adopted by the next', async (t) => {
  const plan = await planFor(t, 'exec sleep 60')
  // A daemon in the small: it starts a shim, tells who it is, and is killed.
  const daemon = join(plan.dir, 'daemon.ts')
  await writeFile(
    daemon,
    `import { Shim } from ${JSON.stringify(join(import.meta.dirname, '../../packages/daemon/src/hypervisors/shim.ts'))}
     const plan = ${JSON.stringify(plan)}
     const shim = await Shim.launch(plan, { signal: AbortSignal.timeout(20000), log: console })
     process.send({ identity: shim.identity, vmm: shim.vmm })
     setInterval(() => undefined, 1000)`,
  )
  const child: ChildProcess = fork(daemon)
  const [message] = await once(child, 'message')
  child.kill('SIGKILL')
  await once(child, 'exit')
  const { identity, vmm } = message as Pick<Shim, 'identity' | 'vmm'>
  assert.ok(isAlive(identity) && isAlive(vmm))
  const shim = await Shim.adopt(plan.runDir, identity, vmm, makeStep(5000))
  assert.ok(shim)
  const exit = await shim.kill()
  assert.ok(exit.kind === 'signaled' && exit.signal === 'SIGKILL')
  assert.ok(!isAlive(identity))
})

test('a shim whose daemon died before it was ready ends', async (t) => {
  const plan = await planFor(t, 'exec sleep 61.25')
  const shim = spawn(plan.shimPath, ['run', '--dir', plan.runDir, '--rotated', `vmm=1000:${plan.dir}/vmm.log`, '--', 'sleep', '61.25'], {
    stdio: ['ignore', 'pipe', 'ignore'],
    detached: true,
  })
  shim.stdout.destroy()
  const [code, signal] = await once(shim, 'exit')
  assert.ok(code === 1 || signal !== null)
})

test('a stop signal to the shim is passed on, and the end is recorded', async (t) => {
  const plan = await planFor(t, 'trap "exit 3" TERM; echo up >&12; while :; do sleep 0.02; done')
  const shim = await launched(t, plan)
  await pollUntil('the script', async () => (await readFile(join(plan.dir, 'app.log'), 'utf8')) === 'up\n', makeStep(5000))
  signalProcess(shim.identity, 'SIGTERM')
  const exit = await shim.ended
  assert.ok(exit.kind === 'exited' && exit.code === 3)
})

test('what cannot be started is said, and leaves nothing', async (t) => {
  const plan = await planFor(t, '')
  await assert.rejects(
    Shim.launch({ ...plan, vmm: { argv: ['/no/such/vmm'], descriptors: [] } }, makeStep()),
    /cannot start \/no\/such\/vmm: No such file/,
  )
  const descriptors = [{ number: 20, kind: 'write', file: join(plan.dir, 'absent') } as const]
  await assert.rejects(Shim.launch({ ...plan, vmm: { argv: ['true'], descriptors } }, makeStep()), /absent: No such file/)
  await assert.rejects(Shim.launch({ ...plan, shimPath: '/no/such/shim' }, makeStep()), { code: 'dependency_missing' })
})

test('a helper that cannot come up keeps the VMM from starting', async (t) => {
  const marker = (dir: string): string => join(dir, 'started')
  const plan = await planFor(t, '')
  const helper = { argv: ['sh', '-c', 'echo "port_in_use tcp:127.0.0.1:80:80" >&9'], descriptors: [] }
  const vmm = { argv: ['sh', '-c', `touch ${marker(plan.dir)}`], descriptors: [] }
  await assert.rejects(Shim.launch({ ...plan, helper, vmm }, makeStep()), { code: 'port_in_use' })
  await assert.rejects(stat(marker(plan.dir)), { code: 'ENOENT' })
})

test('a helper that takes its time is waited for as long as the step lasts, and goes with it', async (t) => {
  const plan = await planFor(t, 'exec sleep 60')
  const said = join(plan.dir, 'said')
  await writeFile(said, '', { mode: 0o666 })
  await chmod(said, 0o666)
  const helper = (script: string) => ({ argv: ['sh', '-c', `echo $$ >> ${said}; ${script}`], descriptors: [] })
  // Longer than most things take on a host that is not overloaded.
  await launched(t, { ...plan, helper: helper('sleep 6; echo ok >&9; exec sleep 63') })

  const other = await planFor(t, 'exec sleep 60')
  const hanging = Shim.launch({ ...other, helper: helper('exec sleep 64') }, makeStep(1000))
  await assert.rejects(hanging, { code: 'timed_out' })
  for (const pid of (await readFile(said, 'utf8')).trim().split('\n').slice(1))
    await pollUntil('the helper to go', async () => !(await stat(`/proc/${pid}`).catch(() => undefined)), makeStep(5000))
})

test('a helper that dies is started again, one whose VMM ends dies with it', async (t) => {
  const plan = await planFor(t, 'exec sleep 60')
  const life = join(plan.dir, 'lives')
  await writeFile(life, '', { mode: 0o666 })
  await chmod(life, 0o666)
  const helper = { argv: ['sh', '-c', `echo $$ >> ${life}; echo ok >&9; exec sleep 62`], descriptors: [] }
  const shim = await launched(t, { ...plan, helper })
  const pids = async (): Promise<number[]> => (await readFile(life, 'utf8')).trim().split('\n').map(Number)
  process.kill((await pids())[0] ?? 0, 'SIGKILL')
  await pollUntil('the second life', async () => (await pids()).length === 2, makeStep(5000))
  const [, second = 0] = await pids()
  await shim.kill()
  await pollUntil('the helper to die', async () => !(await stat(`/proc/${second}`).catch(() => undefined)), makeStep(5000))
})

test('the control socket answers one line to one line, and lets nonsense go', async (t) => {
  const plan = await planFor(t, 'exec sleep 60')
  const shim = await launched(t, plan)
  const ask = async (...lines: string[]): Promise<string> => {
    const socket = net.connect(join(plan.runDir, 'shim.sock'))
    socket.on('error', () => undefined)
    let text = ''
    socket.on('data', (chunk) => {
      text += chunk
      if (text.split('\n').length > lines.length) socket.destroy()
    })
    socket.write(lines.map((line) => `${line}\n`).join(''))
    await new Promise((resolve) => socket.once('close', resolve))
    return text
  }
  assert.equal(await ask('status'), `running ${shim.vmm.pid}\n`)
  assert.equal(await ask('signal CONT', 'signal HUP', 'dance'), 'ok\nerror no such signal\nerror no such request\n')
  assert.equal(await ask('egress all /run/nowhere'), 'error the VM does not wait\n')
  assert.equal(await ask('x'.repeat(5000)), '')
  assert.equal(await ask('status'), `running ${shim.vmm.pid}\n`)
})

const WRITES = 'while read line <&9; do echo "$line" >&12; echo "$line" >&13; echo "$line"; done'
const waitingPlan = async (t: TestContext): Promise<ShimPlan & { dir: string }> => {
  const plan = await planFor(t, WRITES, { waits: true })
  const { argv, descriptors } = plan.vmm
  return { ...plan, vmm: { argv, descriptors: [...descriptors, { number: 9, kind: 'hold' }] } }
}

test('a VM that waits ends with the last connection of its daemon, one that was claimed does not', async (t) => {
  const plan = await waitingPlan(t)
  const left = await launched(t, plan)
  left[Symbol.dispose]()
  await pollUntil('it to end', () => !isAlive(left.vmm) && !isAlive(left.identity), makeStep())

  const other = await waitingPlan(t)
  const claimed = await launched(t, other)
  const logs = { app: join(other.dir, 'app.own'), vmm: join(other.dir, 'vmm.own'), journal: join(other.dir, 'journal.own') }
  await claimed.claim(logs, makeStep())
  claimed[Symbol.dispose]()
  const again = await Shim.adopt(other.runDir, claimed.identity, claimed.vmm, makeStep())
  assert.ok(again)
  again[Symbol.dispose]()
  assert.ok(isAlive(claimed.vmm))
})

test('logs go on in the files of whoever claims it, bounded as before, and its run directory may be renamed', async (t) => {
  const plan = await planFor(
    t,
    'echo before >&12; echo before >&13; while [ ! -e "$0" ]; do sleep 0.01; done; seq 1 5000 >&12; seq 1 5000 >&13; sleep 60',
    {
      waits: true,
      maxBytes: 4096,
    },
  )
  const go = join(plan.dir, 'go')
  const shim = await launched(t, { ...plan, vmm: { ...plan.vmm, argv: [...plan.vmm.argv, go] } })
  const text = (file: string): Promise<string> => readFile(join(plan.dir, file), 'utf8').catch(() => '')
  await pollUntil('what it says first', async () => (await text('app.log')) !== '' && (await text('journal')) !== '', makeStep())
  const moved = join(plan.dir, 'moved')
  await rename(plan.runDir, moved)
  shim.moved(moved)
  await writeFile(join(plan.dir, 'journal.own'), 'of an earlier start')
  await shim.claim({ app: join(plan.dir, 'app.own'), vmm: join(plan.dir, 'vmm.own'), journal: join(plan.dir, 'journal.own') }, makeStep())
  await writeFile(go, '')
  await pollUntil('the last line', async () => (await text('app.own')).endsWith('\n5000\n'), makeStep())
  assert.ok((await stat(join(plan.dir, 'app.own'))).size <= 4096 && (await stat(join(plan.dir, 'app.own.1'))).size <= 4096)
  await pollUntil('a full journal', async () => (await stat(join(plan.dir, 'journal.own'))).size === 4096, makeStep())
  assert.match(await text('journal.own'), /^1\n2\n/)
  assert.deepEqual([await text('app.log'), await text('journal')], ['before\n', 'before\n'])

  assert.deepEqual(
    (await findShims(moved)).map(({ pid }) => pid),
    [shim.identity.pid],
  )
  await assert.rejects(shim.claim({ app: join(plan.dir, 'nowhere/app'), vmm: '', journal: '' }, makeStep()), /No such file/)
  const exit = await shim.kill()
  assert.deepEqual(await readExit(moved), exit)
})

test('a VMM is started in a directory of its own, and the streams that it opens by the sockets there go into the logs, one at a time', async (t) => {
  const script = `
    const net = require('node:net')
    const say = (words, then) => net.connect('vsock.sock_1', function () { this.end(words) }).on('error', () => undefined).on('close', then)
    const first = net.connect('vsock.sock_1', () => first.write('first\\n', () => say('another\\n', () => first.end(() => undefined))))
    first.on('error', () => undefined).on('close', () => say('second\\n', () => undefined))
    net.connect('vsock.sock_2', function () { this.write('fact\\n') }).on('error', () => undefined)
    net.createServer().listen('mine.sock')
    require('node:fs').mkdirSync('a'); require('node:fs').symlinkSync('/etc', 'a/link')
    setTimeout(() => undefined, 60_000)`
  const plan = await planFor(t, '', {
    ownDir: {
      name: 'own',
      logs: [
        { log: 'app', socket: 'vsock.sock_1' },
        { log: 'journal', socket: 'vsock.sock_2' },
      ],
    },
    vmm: { argv: [process.execPath, '-e', script], descriptors: [] },
  })
  const shim = await launched(t, plan)
  const own = join(plan.runDir, 'own')
  const appIs = (text: string) => async () => (await readFile(join(plan.dir, 'app.log'), 'utf8')) === text
  await pollUntil('both streams', appIs('first\nsecond\n'), makeStep(20_000))
  await pollUntil('the journal', async () => (await readFile(join(plan.dir, 'journal'), 'utf8')) === 'fact\n', makeStep(20_000))
  await pollUntil("the VMM's own socket", async () => (await readdir(own)).includes('mine.sock'), makeStep(20_000))
  assert.equal((await stat(own)).mode & 0o777, 0o700)
  assert.equal((await stat(own)).uid, plan.user?.uid ?? process.getuid?.())
  await shim.kill()
  assert.deepEqual(await readdir(plan.runDir), ['exit'])
  assert.ok((await readdir('/etc')).length > 0)
})

test('streams that a capture has cut are ended, with what came by them in the logs, and others may come', async (t) => {
  const script = `
    const net = require('node:net')
    const open = (words) => net.connect('vsock.sock_1', function () { this.write(words) }).on('error', () => undefined)
    open('first\\n').on('close', () => open('second\\n'))
    setTimeout(() => undefined, 60_000)`
  const plan = await planFor(t, '', {
    ownDir: { name: 'own', logs: [{ log: 'app', socket: 'vsock.sock_1' }] },
    vmm: { argv: [process.execPath, '-e', script], descriptors: [] },
  })
  const shim = await launched(t, plan)
  const appIs = (text: string) => async () => (await readFile(join(plan.dir, 'app.log'), 'utf8')) === text
  await pollUntil('the first stream', appIs('first\n'), makeStep(20_000))
  await shim.cutStreams(makeStep())
  await pollUntil('the second stream', appIs('first\nsecond\n'), makeStep(20_000))
  await shim.cutStreams(makeStep())
})
