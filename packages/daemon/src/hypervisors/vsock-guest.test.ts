import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { connectToOwn, OWN_DIR } from './own-dir.ts'
import { connectToAgent, GUEST_CID, VSOCK_OWN_DIR, VSOCK_SOCKET } from './vsock-guest.ts'

let dir: string
let count = 0
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'vsock-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const within = (ms: number) => ({ signal: AbortSignal.timeout(ms) })
const stillThere = (): boolean => false

async function makeRunDir(): Promise<string> {
  // Longer than a socket's path may be.
  const runDir = path.join(dir, `${count++}`, 'x'.repeat(120))
  await mkdir(path.join(runDir, OWN_DIR), { recursive: true })
  return runDir
}

/** Answers each connection with what `answer` gives for its first line. */
async function vmmAt(runDir: string, answer: (line: string) => string | undefined): Promise<AsyncDisposable> {
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined)
    socket.once('data', (bytes) => {
      const words = answer(bytes.toString())
      if (words === undefined) socket.destroy()
      else socket.write(words)
    })
  })
  const there = process.cwd()
  process.chdir(path.join(runDir, OWN_DIR))
  server.listen(VSOCK_SOCKET)
  process.chdir(there)
  await once(server, 'listening')
  return { [Symbol.asyncDispose]: async () => void server.close() }
}

test('the agent is connected to once it listens, and what it says at once is not lost', async () => {
  const runDir = await makeRunDir()
  const asked: string[] = []
  await using _vmm = await vmmAt(runDir, (line) => (asked.push(line) < 3 ? undefined : 'OK 1073741824\nhello'))
  const socket = await connectToAgent(runDir, stillThere, within(10_000))
  const [first] = await once(socket, 'data')
  assert.equal(String(first), 'hello')
  assert.deepEqual(asked, ['CONNECT 1000\n', 'CONNECT 1000\n', 'CONNECT 1000\n'])
  socket.destroy()
})

test('a VM that is gone, or whose VMM talks nonsense, is not waited for beyond the time', async () => {
  const runDir = await makeRunDir()
  await assert.rejects(
    connectToAgent(runDir, () => true, within(10_000)),
    { code: 'guest_unavailable' },
  )
  await assert.rejects(connectToAgent(runDir, stillThere, within(30)), { code: 'timed_out' })
  await using _vmm = await vmmAt(runDir, () => 'x'.repeat(100))
  await assert.rejects(connectToAgent(runDir, stillThere, within(50)), { code: 'timed_out' })
})

test('a name in the directory of a VMM is never followed', async () => {
  const runDir = await makeRunDir()
  const elsewhere = await makeRunDir()
  await using _vmm = await vmmAt(elsewhere, () => 'OK 1\n')
  await symlink(path.join(elsewhere, OWN_DIR, VSOCK_SOCKET), path.join(runDir, OWN_DIR, VSOCK_SOCKET))
  await writeFile(path.join(runDir, OWN_DIR, 'file'), '')
  await assert.rejects(connectToAgent(runDir, stillThere, within(5000)), { code: 'internal_error' })
  await assert.rejects(connectToOwn(runDir, 'file', within(5000)), { code: 'internal_error' })
})

test("the guest's streams come to sockets beside the VMM's, and its address is none that is taken", () => {
  assert.deepEqual(VSOCK_OWN_DIR.logs, [
    { log: 'app', socket: 'vsock.sock_1001' },
    { log: 'journal', socket: 'vsock.sock_1002' },
  ])
  assert.ok(GUEST_CID > 2)
})
