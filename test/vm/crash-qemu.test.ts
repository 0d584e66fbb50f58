/**
 * The daemon is killed with SIGKILL at every named step of create, start, stop and delete, with a real VM; what the next daemon finds
 * and makes of it is compared with the host itself. The same matrix runs in a second on the fake driver: instances/crash.test.ts.
 *
 * One data directory serves all cases, so that the image and the golden boot are made once.
 */
import assert from 'node:assert/strict'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import type { ApiClient } from '../harness/api-client.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { Scratch } from '../harness/scratch.ts'
import { assertHostInOrder, atRest, type ShownInstance } from './house-in-order.ts'

let scratch: Scratch
let dir: string
/** The one that was begun after the last death, and takes the house to where the next one wants it. */
let current: DaemonProcess
before(async () => {
  scratch = await Scratch.make()
  dir = join(scratch.path, 'd')
  await mkdir(join(dir, 'run/golden'), { recursive: true })
  current = await begin()
  const image = await makeBusyboxImage(scratch.path)
  await importImage(current, image.path, 'box')
  // With it the golden boot of the shape is made.
  await make(current.client)
})
after(async () => {
  await current?.kill()
  await endProcessesNaming(dir)
  await scratch[Symbol.asyncDispose]()
})

const begin = (crashAt?: string): Promise<DaemonProcess> =>
  startDaemon({ dir, driver: 'qemu-microvm', ...(crashAt === undefined ? {} : { env: { DORMOUSE_CRASH_AT: crashAt } }) })

type Deed = (client: ApiClient) => Promise<unknown>
const make: Deed = async (client) => {
  await client.post('/instances', {
    name: 'a',
    image: 'box',
    vcpus: 1,
    size: '256MB',
    overlay_size: '256MB',
    network: { ports: [{ host_port: 0, guest_port: 80 }] },
  })
  await client.get('/instances/a/wait?state=Running&timeout=60s')
}
const start: Deed = async (client) => {
  await client.post('/instances/a/start', {})
  await client.get('/instances/a/wait?state=Running&timeout=60s')
}
const stop: Deed = (client) => client.post('/instances/a/stop')
const kill: Deed = (client) => client.post('/instances/a/stop', { force: true })
const remove: Deed = (client) => client.delete('/instances/a')
const removeAtOnce: Deed = (client) => client.delete('/instances/a?graceful_shutdown=false')
const endGuest: Deed = async (client) => {
  await client.post('/instances/a/stop', { force: true })
  await client.post('/instances/a/start', { cmd: ['/bin/sh', '-c', 'exit 3'] })
  await client.get('/instances/a/wait?state=Stopped&timeout=60s')
}

interface Case {
  readonly at: string
  readonly from: 'nothing' | 'Running' | 'Stopped'
  readonly deed: Deed
  /** What the instance is after the restart; undefined: gone, with all that it had. */
  readonly ends: 'Running' | 'Stopped' | undefined
}

const CASES: readonly Case[] = [
  { at: 'create:files', from: 'nothing', deed: make, ends: undefined },
  { at: 'create:spawn', from: 'nothing', deed: make, ends: undefined },
  { at: 'create:record', from: 'nothing', deed: make, ends: undefined },
  { at: 'boot:connect', from: 'nothing', deed: make, ends: 'Running' },
  { at: 'boot:go', from: 'nothing', deed: make, ends: 'Running' },
  { at: 'boot:running', from: 'nothing', deed: make, ends: 'Running' },
  { at: 'start:intent', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'start:logs', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'start:spawn', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'start:record', from: 'Stopped', deed: start, ends: 'Stopped' },
  { at: 'boot:go', from: 'Stopped', deed: start, ends: 'Running' },
  { at: 'stop:intent', from: 'Running', deed: stop, ends: 'Running' },
  { at: 'stop:ask_guest', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'stop:await_exit', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'stop:kill', from: 'Running', deed: kill, ends: 'Stopped' },
  { at: 'stop:settle', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'stop:sweep', from: 'Running', deed: stop, ends: 'Stopped' },
  { at: 'delete:intent', from: 'Running', deed: remove, ends: 'Running' },
  { at: 'delete:ask_guest', from: 'Running', deed: remove, ends: undefined },
  { at: 'delete:await_exit', from: 'Running', deed: remove, ends: undefined },
  { at: 'delete:kill', from: 'Running', deed: removeAtOnce, ends: undefined },
  { at: 'delete:sweep', from: 'Running', deed: remove, ends: undefined },
  { at: 'delete:remove_files', from: 'Stopped', deed: remove, ends: undefined },
  { at: 'delete:forget', from: 'Stopped', deed: remove, ends: undefined },
  // The last, since the instance keeps the command that ends at once.
  { at: 'exit:settle', from: 'Running', deed: endGuest, ends: 'Stopped' },
]

for (const { at, from, deed, ends } of CASES) {
  test(`killed at ${at} (${from}): after the restart the instance is ${ends ?? 'gone'} and nothing is left over`, {
    timeout: 180_000,
  }, async () => {
    await bringTo(from)
    await dieAt(at, deed)
    current = await begin()
    const instances = await atRest(current.client)
    assert.deepEqual(
      instances.map(({ state }) => state),
      ends === undefined ? [] : [ends],
    )
    await assertHostInOrder(dir, instances)
    if (at.startsWith('exit:')) assert.equal((instances[0] as ShownInstance).exit_code, 3)
    if (ends === 'Running') await current.client.get('/instances/a/stat?path=/etc/passwd')
  })
}

/** Not disposed of, as that would end the VMs too, which are what the next daemon is to find. */
async function dieAt(at: string, deed: Deed): Promise<void> {
  const daemon = await begin(at)
  // The answer never comes.
  deed(daemon.client).catch(() => undefined)
  const limit = setTimeout(() => void daemon.stop(), 60_000)
  try {
    assert.equal(await daemon.exited, 'SIGKILL', `it never came to ${at}`)
  } finally {
    clearTimeout(limit)
    await daemon.kill()
  }
}

async function bringTo(from: Case['from']): Promise<void> {
  // What a case before this one could not begin, this one does.
  if (!(await answers(current.client))) current = await begin()
  const { client } = current
  const [a] = await atRest(client)
  if (from === 'nothing' && a) await remove(client)
  if (from !== 'nothing' && !a) await make(client)
  if (from === 'Running' && a?.state === 'Stopped') await start(client)
  if (from === 'Stopped' && a?.state !== 'Stopped') await kill(client)
  await current.stop()
}

const answers = (client: ApiClient): Promise<boolean> =>
  client.call('GET', '/health').then(
    () => true,
    () => false,
  )
