/** What a VM asks of its VMM and of its shim, and in which order, beside an API that answers as Firecracker's does. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { silentLogger } from '../../log.ts'
import { type AnsweredFile, answerWord } from '../answered-file.ts'
import type { VmHandle } from '../hypervisor.ts'
import { OWN_DIR } from '../own-dir.ts'
import type { Shim } from '../shim.ts'
import { VSOCK_SOCKET } from '../vsock-guest.ts'
import { API_SOCKET, FirecrackerVm } from './firecracker-vm.ts'

let dir: string
let count = 0
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'firecracker-vm-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const step = () => ({ signal: AbortSignal.timeout(20_000), log: silentLogger })

interface House extends AsyncDisposable {
  readonly vm: FirecrackerVm
  readonly runDir: string
  /** What was asked since this was asked last. */
  asked(): string[]
}

interface Wishes {
  readonly network?: 'tap'
  readonly state?: string
  readonly isAdopted?: boolean
  readonly version?: string
  readonly refusesDisks?: boolean
}

async function houseOf({
  network,
  state = 'Running',
  isAdopted = false,
  version = '1.16.1',
  refusesDisks = false,
}: Wishes): Promise<House> {
  const runDir = path.join(dir, `${count++}`)
  await mkdir(path.join(runDir, OWN_DIR), { recursive: true })
  const asked: string[] = []
  let now = state
  const server = createServer(async (request, answer) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    const body = chunks.length === 0 ? {} : JSON.parse(Buffer.concat(chunks).toString())
    answer.setHeader('content-type', 'application/json')
    if (request.method === 'GET') {
      asked.push('?')
      answer.end(JSON.stringify({ state: now }))
    } else if (request.url === '/snapshot/create') {
      asked.push('save')
      const fault_message = 'Create snapshot error: Cannot perform open on the memory backing file: No such file or directory (os error 2)'
      answer.writeHead(400).end(JSON.stringify({ fault_message }))
    } else if (request.url?.startsWith('/drives/')) {
      asked.push(`${request.url} ${body.path_on_host}`)
      if (refusesDisks) answer.writeHead(400).end(JSON.stringify({ fault_message: 'No such file or directory' }))
      else answer.writeHead(204).end()
    } else {
      asked.push(body.state)
      now = body.state === 'Paused' ? 'Paused' : 'Running'
      answer.writeHead(204).end()
    }
  })
  server.listen(path.join(runDir, OWN_DIR, API_SOCKET))
  await once(server, 'listening')
  const note = (what: string) => async (): Promise<void> => void asked.push(what)
  const shim = {
    ...{ ended: new Promise(() => undefined), shutTap: note('shut'), openTap: note('open'), cutStreams: note('cut') },
    answer: async (file: AnsweredFile): Promise<void> => void asked.push(answerWord(file)),
    extend: async (name: string, bytes: number): Promise<void> => void asked.push(`${name} ${bytes}`),
  }
  const facts = { vmm: `Firecracker ${version}`, ...(network === undefined ? {} : { network }) }
  const handle = { runDir, machine: { base: 'golden/x', baseSum: 'x', memoryBytes: 1, facts } } as unknown as VmHandle
  return {
    runDir,
    vm: new FirecrackerVm(handle, isAdopted ? 'adopted' : 'golden', shim as unknown as Shim),
    asked: () => asked.splice(0),
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      server.close()
    },
  }
}

test('nothing comes by its network from before its devices are waited for until it runs again', async () => {
  await using house = await houseOf({ network: 'tap' })
  await house.vm.pause(step())
  assert.deepEqual(house.asked(), ['?', 'Paused', 'shut', '?', '?'])
  await house.vm.pause(step())
  assert.deepEqual(house.asked(), ['?', 'shut', '?', '?'])
  // A state is saved first, without which no one could reach its guest any more.
  await house.vm.resume(step())
  assert.deepEqual(house.asked(), ['?', 'shut', '?', '?', 'save', 'cut', 'Resumed', 'open'])
  await house.vm.resume(step())
  assert.deepEqual(house.asked(), ['?', 'open'])
})

test('one without a network has none that could be shut', async () => {
  await using house = await houseOf({})
  await house.vm.pause(step())
  await house.vm.resume(step())
  assert.deepEqual(
    house.asked().filter((what) => what === 'shut' || what === 'open'),
    [],
  )
})

test('one that is found has its network again when it runs, and not while it stands still', async () => {
  await using running = await houseOf({ network: 'tap', isAdopted: true })
  await running.vm.takeUp(step())
  assert.deepEqual(running.asked(), ['?', 'open'])
  await using paused = await houseOf({ network: 'tap', isAdopted: true, state: 'Paused' })
  await paused.vm.takeUp(step())
  assert.deepEqual(paused.asked(), ['?'])
  // Nothing there would answer.
  await assert.rejects(paused.vm.connectGuest({ ...step(), signal: AbortSignal.abort() }), {
    code: 'guest_unavailable',
    message: /is paused/,
  })
})

test('of a version whose guests may be reached too early the second connection is the one that counts', async () => {
  for (const [version, number] of [
    ['1.15.1', 2],
    ['1.16.1', 1],
  ] as const) {
    await using house = await houseOf({ version })
    let taken = 0
    const server = net.createServer((socket) => {
      socket.on('error', () => undefined)
      socket.once('data', () => socket.write(`OK ${++taken}\n${taken}`))
    })
    server.listen(path.join(house.runDir, OWN_DIR, VSOCK_SOCKET))
    await once(server, 'listening')
    const stream = await house.vm.connectGuest(step())
    const [said] = await once(stream, 'data')
    assert.deepEqual([String(said), taken], [`${number}`, number])
    stream.destroy()
    server.close()
  }
})

const volume = { role: 'volume-1', path: '/disks/v.raw', format: 'raw', readOnly: false } as const
const opened = '/drives/volume_1 /proc/dormouse/volume-1'

test('a volume that comes, grows or goes is another behind its name first, and then its disk is opened anew', async () => {
  await using house = await houseOf({})
  const { diskHotplug } = house.vm
  await diskHotplug.insertDisk(volume, step())
  assert.deepEqual(house.asked(), ['volume-1=rw:/disks/v.raw', opened])
  await diskHotplug.growDisk('volume-1', 2 ** 30, step())
  assert.deepEqual(house.asked(), [`volume-1 ${2 ** 30}`, opened])
  await diskHotplug.ejectDisk('volume-1', step())
  assert.deepEqual(house.asked(), ['volume-1=blank:', opened])
})

test('a volume that the VMM does not take is not behind its name any more', async () => {
  await using house = await houseOf({ refusesDisks: true })
  await assert.rejects(house.vm.diskHotplug.insertDisk(volume, step()), /No such file/)
  assert.deepEqual(house.asked(), ['volume-1=rw:/disks/v.raw', opened, 'volume-1=blank:', opened])
  for (const role of ['overlay', 'volume-3'] as const)
    await assert.rejects(house.vm.diskHotplug.ejectDisk(role, step()), { code: 'not_supported' })
  assert.deepEqual(house.asked(), [])
})
